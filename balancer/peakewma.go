package balancer

import (
	"math"
	"time"
)

// peakEWMA compares latency times calls in flight. The latency decays while nothing is observed, so that an endpoint that
// was slow once is tried again eventually. That needs no probing at a fixed rate, which would add up to load with many
// clients.
type peakEWMA struct{ *sampler }

func (p *peakEWMA) next(PickInfo, int) int {
	now := p.balancer.now()
	best, other := p.drawTwo()
	for k := 1; ; k++ {
		if p.lighter(now, other, best) {
			best = other
		}
		if k == p.balancer.cfg.Choices-1 {
			return best
		}
		other = p.drawOther(best)
	}
}

func (p *peakEWMA) lighter(now int64, b, a int) bool {
	callsB, weightB := p.load(b)
	callsA, weightA := p.load(a)
	costB, costA := p.hosts[b].latency(now), p.hosts[a].latency(now)
	if costB == 0 || costA == 0 {
		// One is unknown: it gets neither a herd nor a penalty; its calls in flight decide.
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

// observe adds a latency to the average.
func (h *Host) observe(now int64, latency time.Duration, failed bool) {
	h.observing.Lock()
	defer h.observing.Unlock()
	cost := math.Float64frombits(h.cost.Load())
	sample := float64(latency)
	switch {
	case failed && sample < cost:
		// Failing fast is not being fast.
		sample = cost
	case sample < cost:
		age := float64(max(0, now-h.observed.Load()))
		keep := math.Exp(-age / float64(h.balancer.cfg.Decay))
		sample = cost*keep + sample*(1-keep)
	}
	// In this order, a concurrent pick sees the old latency as fresh, which is the smaller error.
	h.observed.Store(now)
	h.cost.Store(math.Float64bits(sample))
}
