package balancer

import (
	"math"
	"sync/atomic"
	"time"
)

// peakEWMA compares latency times calls in flight. What was learned of an endpoint is forgotten with time, so that one that was slow is tried
// again eventually. That needs no probing at a fixed rate, which would add up to load with many clients.
type peakEWMA struct {
	*sampler
	learned []*learned // of hosts
}

// learned is what picks look at, in one cache line: the calls in flight on a host, and the answers that it gave. Latency is the time that was
// waited, for each answer. Two fields that are read while they are written may not belong together, which does no harm.
type learned struct {
	state   atomic.Uint64 // see Host.state
	answers atomic.Uint64 // see answers
	at      atomic.Int64  // when they were valid
	since   atomic.Int64  // how long the calls in flight have waited at least: since the first began, or the last one ended
}

// answers are the number of answers and the nanoseconds that were waited for them. Both fade.
type answers struct{ waited, number float64 }

func unpackAnswers(bits uint64) answers {
	return answers{float64(math.Float32frombits(uint32(bits >> 32))), float64(math.Float32frombits(uint32(bits)))}
}

func (a answers) pack() uint64 {
	return uint64(math.Float32bits(float32(a.waited)))<<32 | uint64(math.Float32bits(float32(a.number)))
}

const (
	// prior is the latency of one more answer that is assumed of each endpoint, as a share of the usual latency. So one that nothing is known
	// of, or that has not been used for a while, attracts no herd and is not avoided, but is tried before one that is as slow as usual.
	prior = 0.7

	// mostAnswers is how many answers count at most, however many there are: a change is then noticed within a few.
	mostAnswers = 4

	// longestWait is how many times the usual latency a call may be waited for and still count: one that takes longer is probably a
	// stream, which was answered long ago.
	longestWait = 64

	// errorCost is what an error costs at least. Failing fast is not being fast.
	errorCost = float64(100 * time.Millisecond)

	// mostCost is what an error costs at most.
	mostCost = float64(time.Minute)
)

// candidate is a host that is compared with others.
type candidate struct {
	host                 int
	calls, weight, costs float64
}

func (p *peakEWMA) candidate(i int, now int64, usual float64) candidate {
	l := p.learned[i]
	state := l.state.Load()
	c := candidate{i, float64(state & calls), 1, l.latency(now, usual, state&calls > 0, p.balancer.cfg.fading)}
	if p.weights != nil || state&warming != 0 {
		c.calls, c.weight = p.load(i)
	}
	return c
}

func (c *candidate) lighter(than *candidate) bool {
	return lighter(c.calls, c.weight, c.costs, than.calls, than.weight, than.costs)
}

// pick is what a pick usually comes to. It returns nil if the host needs a closer look.
func (p *peakEWMA) pick(now int64) *Host {
	i := p.next(pick{now: now}, 0)
	l := p.learned[i]
	if l.state.Load()&ejected != 0 {
		return nil
	}
	state := l.state.Add(1)
	if state&gone != 0 {
		p.hosts[i].exit() // removed meanwhile
		return nil
	}
	if state&calls == 1 {
		l.since.Store(now)
	}
	return p.hosts[i]
}

func (p *peakEWMA) next(info pick, _ int) int {
	usual := p.balancer.usual.latency()
	if p.near != nil {
		return p.nextNear(info.now, usual)
	}
	first, second := p.drawTwo()
	best, other := p.candidate(first, info.now, usual), p.candidate(second, info.now, usual)
	for k := 1; ; k++ {
		if other.lighter(&best) {
			best = other
		}
		if k == p.balancer.cfg.Choices-1 {
			return best.host
		}
		other = p.candidate(p.drawOther(best.host), info.now, usual)
	}
}

// nextNear is next among the endpoints of the aperture.
func (p *peakEWMA) nextNear(now int64, usual float64) int {
	b := p.balancer
	r := b.rand()
	if r>>32%sampled == 0 {
		b.aperture.count(now)
	}
	from, width := b.aperture.near(now, len(p.near))
	first := alias(nil).at(r, width)
	at := func(k int) candidate { return p.candidate(int(p.near[(from+k)%len(p.near)]), now, usual) }
	best := at(first)
	for k := 1; k < min(b.cfg.Choices, width); k++ {
		next := (first + k) % width // if all are compared, that needs no more random numbers
		if width > b.cfg.Choices {
			next = alias(nil).at(b.rand(), width)
		}
		if other := at(next); other.host != best.host && other.lighter(&best) {
			best = other
		}
	}
	return best.host
}

// latency returns the latency to expect. A call that is in flight, waiting, counts as long as it does.
func (l *learned) latency(now int64, usual float64, waiting bool, fading float64) float64 {
	a := unpackAnswers(l.answers.Load())
	a.fade(now-l.at.Load(), fading)
	if waiting {
		if wait := float64(now - l.since.Load()); wait < longestWait*usual {
			a.waited += max(wait, 0)
		}
	}
	return a.latency(usual)
}

func (a answers) latency(usual float64) float64 {
	return (a.waited + prior*usual) / (a.number + 1)
}

func (a *answers) fade(age int64, fading float64) {
	if lost := float64(age) * fading; lost > 1.0/512 { // less does not matter
		left := fade(lost)
		a.waited *= left
		a.number *= left
	}
}

// fade returns 2^-x, within 0.02%, for x of 0 or more. It takes a third of the time of math.Exp2.
func fade(x float64) float64 {
	const most = 64
	whole := math.Floor(-min(x, most))
	rest := -min(x, most) - whole
	power := math.Float64frombits(uint64(int64(whole)+1023) << 52)
	return power * (1 + rest*(0.695556856+rest*(0.226173572+rest*0.078024523)))
}

// ended notes that a call has ended, after a latency that is 0 if it is not known.
func (h *Host) ended(now int64, latency time.Duration, failed bool) {
	l, b := h.learned, h.balancer
	if l.state.Load()&calls > 1 { // others wait
		l.since.Store(now)
	}
	if latency <= 0 && !failed {
		return
	}
	if !failed {
		b.usual.observe(now, float64(latency))
	}
	for {
		last := l.answers.Load()
		a, sample := unpackAnswers(last), float64(latency)
		a.fade(now-l.at.Load(), b.cfg.fading)
		if failed {
			// However slow the others are, errors make this one look slower.
			sample = max(sample, min(max(2*a.latency(b.usual.latency()), errorCost), mostCost))
		}
		a.waited, a.number = a.waited+sample, a.number+1
		if a.number > mostAnswers {
			a.waited, a.number = a.waited*mostAnswers/a.number, mostAnswers
		}
		if l.answers.CompareAndSwap(last, a.pack()) {
			l.at.Store(now)
			return
		}
	}
}

// usual is the average latency of all endpoints as a float32, and below that when it last changed, in units of 1<<tick ns. It takes in one
// answer per tick, so that processors hardly contend for it.
type usual struct{ bits atomic.Uint64 }

const (
	tick = 20

	// slowness is how many answers are averaged.
	slowness = 16
)

// latency returns the latency in ns, which is never 0.
func (u *usual) latency() float64 {
	return max(1, float64(math.Float32frombits(uint32(u.bits.Load()>>32))))
}

func (u *usual) observe(now int64, latency float64) {
	last := u.bits.Load()
	if last != 0 {
		if uint32(last) == uint32(now>>tick) {
			return
		}
		average := float64(math.Float32frombits(uint32(last >> 32)))
		latency = average + (latency-average)/slowness
	}
	u.bits.CompareAndSwap(last, uint64(math.Float32bits(float32(latency)))<<32|uint64(uint32(now>>tick)))
}
