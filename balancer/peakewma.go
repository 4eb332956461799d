package balancer

import (
	"math"
	"sync/atomic"
	"time"
)

// peakEWMA compares latency times calls in flight. What was learned of an endpoint is forgotten with time, so that one that was slow is tried
// again eventually. That needs no probing at a fixed rate, which would add up to load with many clients.
type peakEWMA struct{ *sampler }

// learned is what picks look at, in one cache line with the beginning of its Host: the calls in flight, and the answers that it gave. Latency
// is the time that was waited, for each answer. Two fields that are read while they are written may not belong together, which does no harm.
type learned struct {
	state   atomic.Uint64 // see Host.state
	answers atomic.Uint64 // see answers
	at      atomic.Int64  // when they were valid
	since   atomic.Int64  // how long the calls in flight have waited at least: since the first began, or the last one ended; see overlapped
}

// overlapped is a bit of learned.since, a nanosecond that does not matter: a call has ended since then while others were in flight.
const overlapped = 1

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
	host    int
	state   uint64
	answers // with the one that is assumed
}

// cost is what grows with the time that one more call is expected to take there: with latency times calls in flight.
func (c *candidate) cost() float64 { return c.waited * float64(int64(c.state&calls)+1) }

func (p *peakEWMA) candidate(i int, now int64, usual float64) candidate {
	l := p.hosts[i].learned
	state := l.state.Load()
	a := unpackAnswers(l.answers.Load())
	a.fade(now-l.at.Load(), p.balancer.cfg.fading)
	if state&calls > 0 { // a call that is waited for counts as long as it is
		if wait := float64(now - l.since.Load()); wait > 0 && wait < longestWait*usual {
			a.waited += wait
		}
	}
	return candidate{i, state, answers{a.waited + prior*usual, a.number + 1}}
}

func (p *peakEWMA) lighter(b, a *candidate) bool {
	if p.weights == nil && (b.state|a.state)&warming == 0 {
		return b.cost()*a.number < a.cost()*b.number // what the code below reduces to
	}
	callsB, weightB := p.load(b.host)
	callsA, weightA := p.load(a.host)
	return lighter(callsB, weightB, b.waited/b.number, callsA, weightA, a.waited/a.number)
}

// pick is what a pick usually comes to. It returns nil if the host needs a closer look.
func (p *peakEWMA) pick(now int64) *Host {
	h := p.hosts[p.nextOf(now)]
	l := h.learned
	state := l.state.Add(1)
	if state&(gone|ejected) != 0 { // removed or ejected meanwhile
		h.exit()
		return nil
	}
	if state&calls == 1 {
		l.since.Store(now &^ overlapped)
	}
	return h
}

func (p *peakEWMA) next(info pick, _ int) int { return p.nextOf(info.now) }

func (p *peakEWMA) nextOf(now int64) int {
	usual := p.balancer.usual.latency()
	if p.near != nil {
		return p.nextNear(now, usual)
	}
	var first, second int
	if p.weights == nil && p.balancer.cfg.Choices == 2 && len(p.hosts) > 1 {
		first, second = twoOf(p.balancer.rand(), len(p.hosts))
		best, other := p.candidate(first, now, usual), p.candidate(second, now, usual)
		if (best.state|other.state)&warming == 0 {
			if other.cost()*best.number < best.cost()*other.number {
				return second
			}
			return first
		}
		first = p.drawRipe(first)
		second = p.drawOther(first)
	} else {
		first, second = p.drawTwo()
	}
	best, other := p.candidate(first, now, usual), p.candidate(second, now, usual)
	for k := 1; ; k++ {
		if p.lighter(&other, &best) {
			best = other
		}
		if k == p.balancer.choices()-1 {
			return best.host
		}
		other = p.candidate(p.drawOther(best.host), now, usual)
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
	next := alias(nil).at(r, width)
	var best candidate
	for k := range min(b.choices(), width) {
		if k > 0 && width > b.choices() {
			next = alias(nil).at(b.rand(), width)
		}
		i := from + next
		if i >= len(p.near) {
			i -= len(p.near)
		}
		if other := p.candidate(int(p.near[i]), now, usual); k == 0 || other.host != best.host && p.lighter(&other, &best) {
			best = other
		}
		if next++; next == width { // if all are compared, that needs no more random numbers
			next = 0
		}
	}
	return best.host
}

func (a answers) latency(usual float64) float64 {
	return (a.waited + prior*usual) / (a.number + 1)
}

// fade lets the answers fade for a time, and reports whether it is long enough to matter.
func (a *answers) fade(age int64, fading float64) bool {
	lost := float64(age) * fading
	if lost < 1.0/512 {
		return false
	}
	left := fade(lost)
	a.waited *= left
	a.number *= left
	return true
}

// fade returns 2^-x, within 0.02%, for x from 0 to 64, and 2^-64 above. It takes a third of the time of math.Exp2.
func fade(x float64) float64 {
	x = min(x, 64)
	whole := int64(x)
	power := math.Float64frombits(uint64(1022-whole) << 52)
	rest := 1 - (x - float64(whole))
	return power * (1 + rest*(0.695556856+rest*(0.226173572+rest*0.078024523)))
}

// ended notes that a call has ended, after a latency that is 0 if it is not known. A call that was alone in flight was answered that long
// after since: most calls therefore need no reading of the clock.
func (h *Host) ended(latency time.Duration, failed bool) {
	l, b := h.learned, h.balancer
	since := l.since.Load()
	now := since + int64(latency)
	if waiting := l.state.Load()&calls > 1; waiting || since&overlapped != 0 {
		now = b.now()
		if waiting {
			l.since.Store(now | overlapped)
		}
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
		faded := a.fade(now-l.at.Load(), b.cfg.fading)
		if failed {
			// However slow the others are, errors make this one look slower.
			sample = max(sample, min(max(2*a.latency(b.usual.latency()), errorCost), mostCost))
		}
		a.waited, a.number = a.waited+sample, a.number+1
		if a.number > mostAnswers {
			a.waited, a.number = a.waited*mostAnswers/a.number, mostAnswers
		}
		if l.answers.CompareAndSwap(last, a.pack()) {
			if faded {
				l.at.Store(now)
			}
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
