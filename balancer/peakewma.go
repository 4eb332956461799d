package balancer

import (
	"math"
	"time"
)

// peakEWMA compares latency times calls in flight. The latency decays while nothing is observed, so that an endpoint that
// was slow once is tried again eventually. That needs no probing at a fixed rate, which would add up to load with many
// clients.
type peakEWMA struct{ *sampler }

func (p *peakEWMA) next(info pick, _ int) int {
	if p.near != nil {
		return p.nextNear(info.now)
	}
	best, other := p.drawTwo()
	for k := 1; ; k++ {
		if p.lighter(info.now, other, best) {
			best = other
		}
		if k == p.balancer.cfg.Choices-1 {
			return best
		}
		other = p.drawOther(best)
	}
}

// nextNear is next among the endpoints of the aperture.
func (p *peakEWMA) nextNear(now int64) int {
	b := p.balancer
	r := b.rand()
	if r>>32%sampled == 0 {
		b.aperture.count(now)
	}
	from, width := b.aperture.near(now, len(p.near))
	at := func(r uint64) int {
		return int(p.near[(from+alias(nil).at(r, width))%len(p.near)])
	}
	best := at(r)
	if width <= b.cfg.Choices { // all of them, which needs no more random numbers
		first := alias(nil).at(r, width)
		for k := 1; k < width; k++ {
			if other := int(p.near[(from+(first+k)%width)%len(p.near)]); p.lighter(now, other, best) {
				best = other
			}
		}
		return best
	}
	for k := 1; k < b.cfg.Choices; k++ {
		if other := at(b.rand()); other != best && p.lighter(now, other, best) {
			best = other
		}
	}
	return best
}

func (p *peakEWMA) lighter(now int64, b, a int) bool {
	callsB, weightB := p.load(b)
	callsA, weightA := p.load(a)
	costB, costA := p.hosts[b].latency(now, callsB > 0), p.hosts[a].latency(now, callsA > 0)
	if costB == 0 || costA == 0 {
		// One is unknown: it gets neither a herd nor a penalty; its calls in flight decide.
		costB, costA = 1, 1
	}
	return lighter(callsB, weightB, costB, callsA, weightA, costA)
}

// A cost is a latency in ns as a float32, and below that the time when it was valid, in units of 1<<tick ns: both are read
// and written at once. The time is too short for an endpoint that had no calls for weeks, whose latency may then count once more.
const tick = 20

func packCost(latency float64, now int64) uint64 {
	return uint64(math.Float32bits(float32(latency)))<<32 | uint64(uint32(now>>tick))
}

// longestWait is how many times the latency that was observed last a call may be waited for and still count: one that takes longer
// is probably a stream, which was answered long ago.
const longestWait = 64

// latency returns the decayed latency in ns, 0 if none was observed yet. A call that is in flight for longer, waiting, counts
// at once: since its begin, or since the last call ended.
func (h *Host) latency(now int64, waiting bool) float64 {
	cost := h.cost.Load()
	latency := h.decayed(cost, now)
	if !waiting || cost == 0 {
		return latency
	}
	wait := float64(now - h.since.Load())
	if wait > latency && wait < longestWait*float64(math.Float32frombits(uint32(cost>>32))) {
		return wait
	}
	return latency
}

func (h *Host) decayed(cost uint64, now int64) float64 {
	latency := float64(math.Float32frombits(uint32(cost >> 32)))
	if age := int32(uint32(now>>tick) - uint32(cost)); age > 0 {
		latency *= fade(float64(age) * h.balancer.cfg.fading)
	}
	return latency
}

// fade returns 2^-x, within 0.02%, for x of 0 or more. It takes a third of the time of math.Exp2.
func fade(x float64) float64 {
	const most = 64
	whole := math.Floor(-min(x, most))
	rest := -min(x, most) - whole
	power := math.Float64frombits(uint64(int64(whole)+1023) << 52)
	return power * (1 + rest*(0.695556856+rest*(0.226173572+rest*0.078024523)))
}

const (
	// errorCost is what an error costs at least. Failing fast is not being fast.
	errorCost = float64(100 * time.Millisecond)

	// mostCost is what errors in a row cost at most.
	mostCost = float64(time.Minute)
)

// observe adds a latency to the average.
func (h *Host) observe(now int64, latency time.Duration, failed bool) {
	for {
		last := h.cost.Load()
		cost, sample := h.decayed(last, now), float64(latency)
		switch {
		case failed:
			// However slow the others are, errors in a row make this one look slower.
			sample = max(sample, min(max(2*cost, errorCost), mostCost))
		case sample < cost:
			// cost is what the average has become, to which the sample brings what it has lost.
			whole := float64(math.Float32frombits(uint32(last >> 32)))
			sample = cost + sample*(1-cost/whole)
		}
		if h.cost.CompareAndSwap(last, packCost(sample, now)) {
			return
		}
	}
}
