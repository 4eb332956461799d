package balancer

import (
	"math/bits"
	"slices"
	"time"
)

// peakEWMA compares latency times calls in flight. What was learned of an endpoint is forgotten with time, so that one that was slow is tried
// again eventually. That needs no probing at a fixed rate, which would add up to load with many clients.
type peakEWMA struct {
	*sampler
	learned []*learned // of hosts
	two     bool       // two hosts of equal weights are compared, none in slow start
}

const (
	// prior is the latency of one more answer that is assumed of each endpoint, as a share of the usual latency. So one that nothing is known
	// of, or that has not been used for a while, attracts no herd and is not avoided, but is tried before one that is as slow as usual.
	prior = 0.7

	// longestWait is how many times the usual latency a call may be waited for and still count: one that takes longer is probably a
	// stream, which was answered long ago.
	longestWait = 64

	// errorCost is what an error costs at least. Failing fast is not being fast.
	errorCost = uint64(100 * time.Millisecond / grain)
)

func newPeakEWMA(s *sampler) *peakEWMA {
	p := &peakEWMA{sampler: s, learned: make([]*learned, len(s.hosts))}
	for i, h := range s.hosts {
		p.learned[i] = h.learned
	}
	p.two = s.near == nil && s.weights == nil && s.balancer.cfg.Choices == 2 && len(s.hosts) > 1 && !slices.ContainsFunc(s.states, isWarming)
	return p
}

// moment is the time of a pick, and what follows from it for all candidates.
type moment struct {
	now    tick
	weight uint64 // of an answer
	waited uint64 // for the answer that is assumed
}

func (b *Balancer) moment(now int64) moment {
	t := b.cfg.ticks(now)
	w := weight(t)
	return moment{t, w, b.assumed(w)}
}

// candidate is a host that is compared with others.
type candidate struct {
	host           int
	state          uint64
	waited, number uint64 // of its answers, with the one that is assumed
}

// cost is what grows with the time that one more call is expected to take there: with latency times calls in flight.
func (c *candidate) cost() float64 {
	return float64(int64(c.waited)) * float64(int64(c.state&calls)+1)
}

func (c *candidate) latency() float64 { return float64(int64(c.waited)) / float64(int64(c.number)) }

func (p *peakEWMA) candidate(i int, m *moment, c *candidate) {
	l := p.learned[i]
	state := l.state.Load()
	waited, number := answers(l.answers.Load()).at(m.now)
	waited += m.waited
	if state&calls > 0 {
		waited += p.wait(state, m)
	}
	c.host, c.state, c.waited, c.number = i, state, waited, number+m.weight
}

// wait is what a call that is waited for adds to the time that was waited: it counts as long as it is.
func (p *peakEWMA) wait(state uint64, m *moment) uint64 {
	b := p.balancer
	wait := float32(int64((m.now-state>>sinceShift)&sinceMask)) * b.cfg.tick
	if wait >= longestWait*b.usual.latency() {
		return 0
	}
	return uint64(int64(wait)) * m.weight >> oneBits
}

func (p *peakEWMA) lighter(b, a *candidate) bool {
	if either := b.state | a.state; p.weights == nil && either&warming == 0 { // what the code below reduces to
		if either&calls == 0 {
			return b.waited*a.number < a.waited*b.number
		}
		return b.cost()*float64(int64(a.number)) < a.cost()*float64(int64(b.number))
	}
	callsB, weightB := p.load(b.host)
	callsA, weightA := p.load(a.host)
	return lighter(callsB, weightB, b.latency(), callsA, weightA, a.latency())
}

// pick is what a pick usually comes to. It returns nil if the host needs a closer look.
func (p *peakEWMA) pick(now int64) *Host {
	if p.two {
		return p.pickOfTwo(now)
	}
	m := p.balancer.moment(now)
	if i := p.nextOf(&m, now); p.learned[i].enter(m.now, gone|ejected) {
		return p.hosts[i]
	}
	return nil // it was removed or ejected meanwhile
}

// pickOfTwo is pick of two hosts with equal weights. It does not branch on what a processor cannot foresee.
func (p *peakEWMA) pickOfTwo(now int64) *Host {
	m := p.balancer.moment(now)
	first, second := twoOf(p.balancer.rand(), len(p.learned))
	a, b := p.learned[first], p.learned[second]
	stateA, stateB := a.state.Load(), b.state.Load()
	switch either := stateA | stateB; {
	case either&(gone|ejected) != 0:
		return nil
	case either&calls == 0:
		waitedA, numberA := answers(a.answers.Load()).at(m.now)
		waitedB, numberB := answers(b.answers.Load()).at(m.now)
		_, lighter := bits.Sub64((waitedB+m.waited)*(numberA+m.weight), (waitedA+m.waited)*(numberB+m.weight), 0)
		state := stateA ^ (stateA^stateB)&-lighter
		a = p.learned[first^(first^second)&-int(lighter)]
		if a.state.CompareAndSwap(state, began(state, m.now)) {
			return a.host
		}
	default:
		var x, y candidate
		p.candidate(first, &m, &x)
		p.candidate(second, &m, &y)
		if p.lighter(&y, &x) {
			a = b
		}
	}
	if a.enter(m.now, gone|ejected) {
		return a.host
	}
	return nil
}

func (p *peakEWMA) next(info pick, _ int) int {
	m := p.balancer.moment(info.now)
	return p.nextOf(&m, info.now)
}

func (p *peakEWMA) nextOf(m *moment, now int64) int {
	if p.near != nil {
		return p.nextNear(m, now)
	}
	first, second := p.drawTwo()
	var best, other candidate
	p.candidate(first, m, &best)
	p.candidate(second, m, &other)
	for k := 1; ; k++ {
		if p.lighter(&other, &best) {
			best = other
		}
		if k == p.balancer.choices()-1 {
			return best.host
		}
		p.candidate(p.drawOther(best.host), m, &other)
	}
}

// nextNear is next among the endpoints of the aperture.
func (p *peakEWMA) nextNear(m *moment, now int64) int {
	b := p.balancer
	r := b.rand()
	if r>>32%sampled == 0 {
		b.aperture.count(now)
	}
	from, width := b.aperture.near(now, len(p.near))
	next := alias(nil).at(r, width)
	var best, other candidate
	for k := range min(b.choices(), width) {
		if k > 0 && width > b.choices() {
			next = alias(nil).at(b.rand(), width)
		}
		i := from + next
		if i >= len(p.near) {
			i -= len(p.near)
		}
		if p.candidate(int(p.near[i]), m, &other); k == 0 || other.host != best.host && p.lighter(&other, &best) {
			best = other
		}
		if next++; next == width { // if all are compared, that needs no more random numbers
			next = 0
		}
	}
	return best.host
}
