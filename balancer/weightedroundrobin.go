package balancer

import (
	"math"
	"slices"
	"sync/atomic"
	"time"
)

// The periods of gRFC A58, which are its defaults.
const (
	// blackout is how long an endpoint must have reported before its reports count: the first ones are not typical.
	blackout = 10 * time.Second

	// reportsLast is how long a report counts.
	reportsLast = 3 * time.Minute

	// weighEvery is how often the weights are brought up to date.
	weighEvery = time.Second
)

// Whatever an endpoint reports, it gets at most mostShare times as many calls as the median of those that report, in terms of their weights,
// and at least leastShare of it. So one that lies does not attract all calls, and one that was slow is still heard of.
const (
	mostShare  = 4
	leastShare = 1.0 / 20
)

// reports is what an endpoint has reported.
type reports struct {
	rate  atomic.Uint64 // the float64 of requests a second for each unit of utilization
	last  atomic.Int64  // when that was
	since atomic.Int64  // when it began to report without a gap; 0: not yet
}

// Report records the load that the endpoint has reported: its utilization (of the application, or else of the processor, 1 for a full
// one), and requests and errors per second. It matters to [WeightedRoundRobin] only. A report with values that are not finite or negative,
// or without utilization or requests, changes nothing.
func (h *Host) Report(utilization, requests, errors float64) {
	if h.balancer.cfg.Algorithm != WeightedRoundRobin || !(utilization > 0 && requests > 0 && errors >= 0) {
		return
	}
	rate := requests / (utilization + errors/requests) // the penalty of errors is 1
	if !(rate > 0 && rate <= math.MaxFloat32) {
		return
	}
	r := h.reports.Load()
	if r == nil {
		h.reports.CompareAndSwap(nil, new(reports))
		r = h.reports.Load()
	}
	now := h.balancer.now()
	if since := r.since.Load(); since == 0 || now-r.last.Load() >= int64(reportsLast) {
		r.since.CompareAndSwap(since, now)
	}
	r.rate.Store(math.Float64bits(rate))
	r.last.Store(now)
	h.balancer.reweigh(now)
}

// reported returns the rate that an endpoint has reported, 0 if none counts now.
func (h *Host) reported(now int64) float64 {
	r := h.reports.Load()
	if r == nil {
		return 0
	}
	last := r.last.Load()
	if last == 0 || now-last >= int64(reportsLast) || now-r.since.Load() < int64(blackout) {
		return 0
	}
	return math.Float64frombits(r.rate.Load())
}

// weightedRoundRobin is roundRobin by the weights that follow from reports.
type weightedRoundRobin struct {
	roundRobin
	table atomic.Pointer[alias] // nil: reports do not matter
}

func (w *weightedRoundRobin) next(pick, int) int {
	if table := w.table.Load(); table != nil {
		return w.take(*table)
	}
	return w.take(w.alias)
}

// reweigh brings the weights up to date if it is time. It runs as calls end, not in picks; other calls do not wait for it.
func (b *Balancer) reweigh(now int64) {
	if next := b.weighing.Load(); now < next || !b.weighing.CompareAndSwap(next, now+int64(weighEvery)) {
		return
	}
	for _, g := range b.picks.Load().groups {
		g.picker.(*weightedRoundRobin).weigh(now)
	}
}

// weigh makes the table of the weights. An endpoint whose reports do not count has the mean of the others.
func (w *weightedRoundRobin) weigh(now int64) {
	rates := make([]float64, len(w.hosts))
	var known []float64
	for i, h := range w.hosts {
		if rates[i] = h.reported(now); rates[i] > 0 {
			known = append(known, rates[i])
		}
	}
	if len(known) < 2 {
		w.table.Store(nil)
		return
	}
	slices.Sort(known)
	median := known[(len(known)-1)/2] // the lower one of two: their mean would move with one that lies
	bound := func(rate float64) float64 { return min(max(rate/median, leastShare), mostShare) }
	mean := 0.0
	for _, rate := range known {
		mean += bound(rate) / float64(len(known))
	}
	for i, rate := range rates {
		share := mean
		if rate > 0 {
			share = bound(rate)
		}
		rates[i] = share * w.weight(i)
	}
	table := newAlias(rates)
	w.table.Store(&table)
}
