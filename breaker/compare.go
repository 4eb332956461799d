package breaker

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/fraction"
)

// endpointCalls are the calls to an endpoint since the last sweep.
type endpointCalls struct {
	tracker         *Tracker
	calls, failures int
	success         float64 // in percent: sums are more exact than with fractions
}

// compareLocked applies the rules that compare endpoints to the counts since the last sweep.
func (o *Outlier) compareLocked(now time.Time) {
	counted := o.countedLocked()
	if o.cfg.SuccessRate {
		among := enough(counted, o.cfg.SuccessRateVolume, o.cfg.SuccessRateMinHosts)
		least := leastSuccess(among, o.cfg.SuccessRateFactor)
		for _, e := range among {
			if e.success < least {
				e.tracker.failsLocked()
				o.ejectLocked(e.tracker, SuccessRate, now, e.failures, e.calls)
			}
		}
	}
	if o.cfg.FailureFraction > 0 {
		for _, e := range enough(counted, o.cfg.FailureFractionVolume, o.cfg.FailureFractionMinHosts) {
			if fraction.AtLeast(e.failures, e.calls, o.cfg.FailureFraction) {
				e.tracker.failsLocked()
				o.ejectLocked(e.tracker, FailurePercentage, now, e.failures, e.calls)
			}
		}
	}
}

// forgiveLocked shortens the next ejection, for a number of sweeps of which none has found the endpoint ejected.
func (t *Tracker) forgiveLocked(sweeps int) {
	if e := t.last; e != nil {
		e.forgiven = sweeps > 0 && int(e.multiplier) >= sweeps
		e.multiplier = int32(max(0, int(e.multiplier)-sweeps))
	}
}

// failsLocked takes back what forgiveLocked has done for the latest sweep, which finds the endpoint failing. Otherwise the ejections of an
// endpoint that always fails would never become longer: the sweep that ejects it again would first shorten its next ejection.
func (t *Tracker) failsLocked() {
	if e := t.last; e != nil && e.forgiven {
		e.forgiven = false
		e.multiplier++
	}
}

// countedLocked takes the counts of the endpoints that are not ejected and were called. The worst come first, so that they
// are ejected if not all may be.
func (o *Outlier) countedLocked() []endpointCalls {
	var counted []endpointCalls
	for _, t := range o.trackers.All() {
		counts := t.rate.Swap(0)
		calls, successes := counts>>32, counts&(1<<32-1)
		if calls > 0 && !t.out.Load() {
			counted = append(counted, endpointCalls{t, int(calls), int(calls - successes), 100 * float64(successes) / float64(calls)})
		}
	}
	slices.SortFunc(counted, func(a, b endpointCalls) int {
		return cmp.Or(cmp.Compare(a.success, b.success), strings.Compare(a.tracker.id, b.tracker.id))
	})
	return counted
}

// enough returns the endpoints with at least volume calls, and none if those are fewer than minHosts.
func enough(counted []endpointCalls, volume, minHosts int) []endpointCalls {
	among := slices.DeleteFunc(slices.Clone(counted), func(e endpointCalls) bool { return e.calls < volume })
	if len(among) < minHosts {
		return nil
	}
	return among
}

// leastSuccess returns the mean success rate minus factor standard deviations.
func leastSuccess(among []endpointCalls, factor float64) float64 {
	var sum, squares float64
	for _, e := range among {
		sum += e.success
	}
	n := float64(len(among))
	mean := sum / n
	for _, e := range among {
		squares += (e.success - mean) * (e.success - mean)
	}
	return mean - factor*math.Sqrt(squares/n)
}
