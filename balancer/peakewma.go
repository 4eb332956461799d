package balancer

import (
	"math"
	"time"
)

// peakEWMA compares latency times calls in flight. The latency decays while nothing is observed, so that an endpoint
// that was slow once is asked again some time; that needs no probing at a fixed pace, which many clients together would
// turn into load.
type peakEWMA struct{ *sampler }

func (p *peakEWMA) next(PickInfo, int) *Host {
	if len(p.entries) == 1 {
		return p.entries[0].host
	}
	now := p.balancer.now()
	best := p.draw()
	for range p.balancer.cfg.Choices - 1 {
		if other := p.drawOther(best); p.lighter(now, other, best) {
			best = other
		}
	}
	return p.entries[best].host
}

func (p *peakEWMA) lighter(now int64, b, a int) bool {
	x, y := &p.entries[b], &p.entries[a]
	callsB, weightB := x.load()
	callsA, weightA := y.load()
	costB, costA := x.host.latency(now), y.host.latency(now)
	if costB == 0 || costA == 0 {
		// One is unknown: neither a herd to it nor a penalty, its calls in flight decide.
		costB, costA = 1, 1
	}
	return lighter(callsB, weightB, costB, callsA, weightA, costA)
}

// latency returns the decayed latency in ns, 0 if none was observed yet.
func (h *Host) latency(now int64) float64 {
	cost := math.Float64frombits(h.cost.Load())
	if cost == 0 {
		return 0
	}
	age := float64(max(0, now-h.observed.Load()))
	return cost * math.Exp(-age/float64(h.balancer.cfg.Decay))
}

// observe takes a latency into the average.
func (h *Host) observe(now int64, latency time.Duration, failed bool) {
	h.observing.Lock()
	defer h.observing.Unlock()
	cost := math.Float64frombits(h.cost.Load())
	sample := float64(latency)
	switch {
	case failed && sample < cost:
		// To fail fast is not to be fast.
		sample = cost
	case sample < cost:
		age := float64(max(0, now-h.observed.Load()))
		keep := math.Exp(-age / float64(h.balancer.cfg.Decay))
		sample = cost*keep + sample*(1-keep)
	}
	// In this order a pick in between sees the old latency as fresh, which is the lesser error.
	h.observed.Store(now)
	h.cost.Store(math.Float64bits(sample))
}
