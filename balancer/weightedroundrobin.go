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

// reports is what an endpoint has reported. The numbers are float64s. Those of two reports may mix, which does no harm.
type reports struct {
	utilization atomic.Uint64
	requests    atomic.Uint64 // a second
	failing     atomic.Uint64 // errors for each request
	last        atomic.Int64  // when that was
	since       atomic.Int64  // when it began to report without a gap; 0: not yet
}

// Report records the load that the endpoint has reported: its utilization (of the application, or else of the processor, 1 for a full
// one), and requests and errors per second. It matters to [WeightedRoundRobin] only. A report with values that are not finite or negative,
// or without utilization or requests, changes nothing.
func (h *Host) Report(utilization, requests, errors float64) {
	if h.balancer.cfg.Algorithm != WeightedRoundRobin || !(errors >= 0 && errors <= math.MaxFloat32) {
		return
	}
	for _, v := range [...]float64{utilization, requests, requests / (utilization + errors/requests)} {
		if !(v >= 1/math.MaxFloat32 && v <= math.MaxFloat32) {
			return
		}
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
	r.utilization.Store(math.Float64bits(utilization))
	r.requests.Store(math.Float64bits(requests))
	r.failing.Store(math.Float64bits(errors / requests))
	r.last.Store(now)
	h.balancer.reweigh(now)
}

// reported returns what an endpoint has reported, false if that does not count now.
func (h *Host) reported(now int64) (l load, ok bool) {
	r := h.reports.Load()
	if r == nil {
		return load{}, false
	}
	last := r.last.Load()
	if last == 0 || now-last >= int64(reportsLast) || now-r.since.Load() < int64(blackout) {
		return load{}, false
	}
	return load{math.Float64frombits(r.utilization.Load()), math.Float64frombits(r.requests.Load()), math.Float64frombits(r.failing.Load())}, true
}

// load is a report that counts.
type load struct{ utilization, requests, failing float64 }

// rate returns the requests a second for each unit of utilization. A request that fails costs penalty.
func (l load) rate(penalty float64) float64 { return l.requests / (l.utilization + penalty*l.failing) }

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
	loads := make([]load, len(w.hosts))
	known := make([]float64, 0, len(w.hosts))
	for i, h := range w.hosts {
		if l, ok := h.reported(now); ok {
			loads[i] = l
			known = append(known, l.utilization)
		}
	}
	if len(known) < 2 {
		w.table.Store(nil)
		return
	}
	// Utilization need not be a share: it may be the requests in flight. To fail at once must not look cheap beside that.
	penalty := max(1, median(known))
	known = known[:0]
	for _, l := range loads {
		if l.requests > 0 {
			known = append(known, l.rate(penalty))
		}
	}
	middle := median(known)
	bound := func(rate float64) float64 { return min(max(rate/middle, leastShare), mostShare) }
	mean := 0.0
	for _, rate := range known {
		mean += bound(rate) / float64(len(known))
	}
	weights := make([]float64, len(loads))
	for i, l := range loads {
		share := mean
		if l.requests > 0 {
			share = bound(l.rate(penalty))
		}
		weights[i] = share * w.weight(i)
	}
	table := newAlias(weights)
	w.table.Store(&table)
}

// median sorts values and returns the one in the middle, the lower one of two: their mean would move with one that lies.
func median(values []float64) float64 {
	slices.Sort(values)
	return values[(len(values)-1)/2]
}
