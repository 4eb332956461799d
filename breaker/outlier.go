package breaker

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/internal/smallmap"
)

// Result is how a call to an endpoint ended: an HTTP status, or one of the constants.
type Result int

const (
	// NoResult does not count: the caller gave up, or nothing was sent.
	NoResult Result = -iota
	// ConnectFailure is a connection that could not be made. Counts as 503.
	ConnectFailure
	// Timeout is a response that did not come, or did not end, in time. Counts as 504.
	Timeout
	// Reset is a connection or stream that broke. Counts as 503.
	Reset
)

// Reason is why an endpoint was ejected, in Envoy's words.
type Reason string

const (
	Consecutive5xx         Reason = "consecutive_5xx"
	ConsecutiveGateway     Reason = "consecutive_gateway_failure"
	ConsecutiveLocalOrigin Reason = "consecutive_local_origin_failure"
	SuccessRate            Reason = "success_rate"
	FailurePercentage      Reason = "failure_percentage"
)

// Event is an ejection, a readmission or, for [Outlier.OnWithheld] only, an ejection that did not happen.
type Event struct {
	Endpoint string
	Ejected  bool // false: readmitted, or not ejected
	At       time.Time

	// Set for an ejection: the reason, and the earliest time at which it can end.
	Reason Reason
	Until  time.Time

	// Failures is the number of failures, out of Calls, that caused an ejection: the consecutive ones or, for the reasons
	// that compare endpoints, those since the last sweep.
	Failures, Calls int

	// Set for an ejection that did not happen: MaxEjectedFraction, and the least value of it with which it would have. Needed is 1 if
	// no other endpoint takes calls: an ejection would leave none. Reason, Failures and Calls are set, too.
	Limit, Needed float64
}

// EndpointStatus is what an Outlier knows about an endpoint.
type EndpointStatus struct {
	ID      string
	Ejected bool

	// Set for the current ejection.
	Reason Reason
	Until  time.Time

	// Multiplier is the length of the last ejection as a multiple of BaseEjection, minus one for each healthy sweep since.
	Multiplier int

	// Withheld is the ejection that did not happen, if the endpoint fails and stays: the event that [Outlier.OnWithheld] is told of.
	// It is the zero Event before, and again once a sweep has found that the endpoint answers well.
	Withheld Event
}

// Outlier ejects endpoints of one destination that fail while others do not. It is safe for concurrent use. Use
// [NewOutlier].
//
// A caller that knows the set of endpoints calls [Outlier.Track] and [Outlier.Forget] as it changes, keeps the [Tracker] of each
// endpoint, and calls [Outlier.Sweep] with every call. A caller that does not know the set needs only [Outlier.Report] and
// [Outlier.Ejected].
type Outlier struct {
	// OnWithheld, if not nil, is called when an endpoint fails often enough to be ejected and stays, because of
	// [OutlierConfig.MaxEjectedFraction]. It is called once for an endpoint, and again only after the endpoint was ejected, or
	// answered well and a sweep found it so. It is called like the onEvent of [NewOutlier], which is not told: it would take an
	// event that is not Ejected for a readmission. Set it before the first use.
	OnWithheld func(Event)

	least    int16        // of cfg.ErrorCodes
	compares bool         // a rule compares endpoints, for which [Tracker] counts its calls
	ejected  atomic.Int32 // number of ejected trackers; written with mu held

	cfg    OutlierConfig // with defaults
	start  time.Time     // sweeps are due at multiples of cfg.Interval from here
	due    atomic.Int64  // when the next sweep is, in nanoseconds from start
	events mailbox[Event]

	mu       sync.RWMutex
	trackers smallmap.Map[string, *Tracker]
}

// NewOutlier returns an Outlier that knows no endpoint. The error is that of [OutlierConfig.Validate]. onEvent, if not nil,
// is called for every ejection and readmission, in order, on one of the goroutines that use the Outlier, with no lock held:
// it may use the Outlier.
func NewOutlier(cfg OutlierConfig, onEvent func(Event)) (*Outlier, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	o := &Outlier{cfg: cfg, least: int16(cfg.ErrorCodes.set.Least()), start: time.Now()}
	o.compares = cfg.SuccessRate || cfg.FailureFraction > 0
	o.due.Store(int64(cfg.Interval))
	o.events.handler = onEvent
	return o, nil
}

// deliver must be called, with no lock held, after anything that may have posted an event.
func (o *Outlier) deliver() {
	if o.events.waiting.Load() {
		o.events.drain(o.tell)
	}
}

func (o *Outlier) tell(e Event) {
	if e.Limit > 0 {
		o.OnWithheld(e)
		return
	}
	o.events.handler(e)
}

// Track returns the Tracker of the endpoint with the given ID, the same until the endpoint is forgotten.
func (o *Outlier) Track(id string) *Tracker {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.trackLocked(id)
	t.kept = true
	return t
}

func (o *Outlier) trackLocked(id string) *Tracker {
	t := o.trackers.Get(id)
	if t == nil {
		t = &Tracker{outlier: o, id: id}
		o.trackers.Set(id, t)
	}
	return t
}

// Forget drops the endpoint with the given ID. It no longer counts among the endpoints or the ejected ones, and its
// Tracker does nothing any more.
func (o *Outlier) Forget(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if t := o.trackers.Get(id); t != nil {
		o.forgetLocked(t)
	}
}

func (o *Outlier) forgetLocked(t *Tracker) {
	o.trackers.Delete(t.id)
	t.forgotten = true
	if t.out.Swap(false) {
		o.ejected.Add(-1)
	}
}

// Endpoints returns the status of every endpoint, sorted by ID.
func (o *Outlier) Endpoints() []EndpointStatus {
	o.mu.RLock()
	list := make([]EndpointStatus, 0, o.trackers.Len())
	for id, t := range o.trackers.All() {
		s := EndpointStatus{ID: id, Ejected: t.Ejected(), Multiplier: int(t.multiplier())}
		if s.Ejected {
			s.Reason, s.Until = t.last.reason, t.last.until
		}
		if t.withheld != notWithheld && !t.aside {
			s.Withheld = *t.last.withheld
		}
		list = append(list, s)
	}
	o.mu.RUnlock()
	slices.SortFunc(list, func(a, b EndpointStatus) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Tracker watches one endpoint. Its methods are safe for concurrent use and do not allocate unless they cause an event.
type Tracker struct {
	outlier *Outlier
	id      string

	streak atomic.Uint64 // three counts of consecutive failures: see streakOf
	rate   atomic.Uint64 // since the last sweep: calls in the upper half, successes in the lower
	out    atomic.Bool   // ejected; written with outlier.mu held
	used   atomic.Bool   // by Outlier.Report or Outlier.Ejected, since the last sweep

	// Guarded by outlier.mu. There may be many trackers, and few with an ejection.
	kept      bool // until Forget
	aside     bool // it can get no calls: see SetTakesCalls
	forgotten bool
	withheld  withheld
	idle      int32     // sweeps without use
	last      *ejection // nil before the first, withheld ones included
}

// withheld says whether the limit keeps an endpoint from being ejected.
type withheld uint8

const (
	notWithheld withheld = iota
	wasWithheld          // and not since the last sweep
	isWithheld           // since the last sweep
)

// ejection is why an endpoint was ejected, and until when at least.
type ejection struct {
	reason     Reason
	until      time.Time
	multiplier int32 // see OutlierConfig.BaseEjection; it shrinks while the endpoint is healthy
	forgiven   bool  // it shrank in the latest sweep

	withheld *Event // of one that did not happen since; of no meaning unless the tracker says so
}

// multiplier returns that of the latest ejection, or 0 if there is none.
func (t *Tracker) multiplier() int32 {
	if t.last == nil {
		return 0
	}
	return t.last.multiplier
}

// Ejected reports whether the endpoint is ejected.
func (t *Tracker) Ejected() bool {
	return t.out.Load()
}

// SetTakesCalls sets whether the endpoint can receive calls; initially it can. It cannot while it drains, or when it has no
// share of the traffic. It counts toward [OutlierConfig.MaxEjectedFraction] only if it can.
func (t *Tracker) SetTakesCalls(takes bool) {
	t.outlier.mu.Lock()
	defer t.outlier.mu.Unlock()
	t.aside = !takes
}

// A streak holds the number of consecutive failures that each rule counts. The bit above them is set when an ejection is withheld;
// the next success clears it with the rest.
const (
	streakBits  = 21
	withheldBit = 1 << (3 * streakBits)
)

type streak struct {
	any, gateway, local uint64
}

func streakOf(bits uint64) streak {
	const mask = 1<<streakBits - 1
	return streak{bits & mask, bits >> streakBits & mask, bits >> (2 * streakBits) & mask}
}

func (s streak) bits() uint64 {
	const limit = 1<<streakBits - 1
	return min(s.any, limit) | min(s.gateway, limit)<<streakBits | min(s.local, limit)<<(2*streakBits)
}

// Report records how a call to the endpoint ended. It ejects the endpoint if that was one failure too many.
//
// Results that arrive while the endpoint is ejected are not counted, and it is readmitted with all counts at zero: it takes
// a full run of failures to eject it again, which may include failures of calls that began earlier.
func (t *Tracker) Report(r Result) {
	if r == NoResult || t.out.Load() {
		return
	}
	o := t.outlier
	local := r < 0
	code := int(r)
	if local {
		if code = 503; r == Timeout {
			code = 504
		}
	}
	if local && o.cfg.SplitLocalOrigin {
		t.fail(func(s streak) streak { s.local++; return s })
		return
	}
	failed := local || code >= int(o.least) && o.cfg.ErrorCodes.set.Has(code)
	if o.compares {
		add := uint64(1) << 32
		if !failed {
			add++
		}
		t.rate.Add(add)
	}
	switch {
	case failed && code >= 502 && code <= 504:
		t.fail(func(s streak) streak { return streak{any: s.any + 1, gateway: s.gateway + 1} })
	case failed:
		t.fail(func(s streak) streak { return streak{any: s.any + 1} })
	case t.streak.Load() != 0:
		t.streak.Store(0)
	}
}

func (t *Tracker) fail(next func(streak) streak) {
	var s streak
	for {
		old := t.streak.Load()
		s = next(streakOf(old))
		if t.streak.CompareAndSwap(old, s.bits()|old&withheldBit) {
			break
		}
	}
	reached := func(count uint64, limit int) bool { return limit > 0 && count >= uint64(limit) }
	cfg := &t.outlier.cfg
	switch {
	case reached(s.any, cfg.Consecutive5xx):
		t.outlier.ejectNow(t, Consecutive5xx, s.any)
	case reached(s.gateway, cfg.ConsecutiveGateway):
		t.outlier.ejectNow(t, ConsecutiveGateway, s.gateway)
	case reached(s.local, cfg.ConsecutiveLocalOrigin):
		t.outlier.ejectNow(t, ConsecutiveLocalOrigin, s.local)
	}
}

func (o *Outlier) ejectNow(t *Tracker, reason Reason, failures uint64) {
	now := time.Now()
	o.mu.Lock()
	o.sweepLocked(now) // endpoints that this sweep readmits make room for t
	// Whether or not the ejection happens, the run of failures is used up.
	t.streak.Store(0)
	o.ejectLocked(t, reason, now, int(failures), int(failures))
	o.mu.Unlock()
	o.deliver()
}

func (o *Outlier) ejectLocked(t *Tracker, reason Reason, now time.Time, failures, calls int) {
	if t.forgotten || t.out.Load() {
		return
	}
	if ok, needed := o.mayEjectLocked(); !ok {
		o.withholdLocked(t, Event{Endpoint: t.id, At: now, Reason: reason, Failures: failures, Calls: calls, Limit: o.cfg.MaxEjectedFraction, Needed: needed})
		return
	}
	// Like Envoy's, the multiplier stops growing one past the point where the duration does.
	multiplier := t.multiplier()
	if int(multiplier) <= int((o.cfg.MaxEjection-1)/o.cfg.BaseEjection)+1 && multiplier < math.MaxInt32 {
		multiplier++
	}
	d := o.cfg.MaxEjection
	if int(multiplier) <= int(o.cfg.MaxEjection/o.cfg.BaseEjection) {
		d = time.Duration(multiplier) * o.cfg.BaseEjection
	}
	if o.cfg.Jitter > 0 {
		d += time.Duration(rand.Int64N(int64(o.cfg.Jitter) + 1))
	}
	t.last = &ejection{reason: reason, until: now.Add(d), multiplier: multiplier}
	t.out.Store(true)
	t.withheld = notWithheld
	o.ejected.Add(1)
	o.events.post(Event{Endpoint: t.id, Ejected: true, At: now, Reason: reason, Until: t.last.until, Failures: failures, Calls: calls})
}

// withholdLocked reports that t is not ejected, unless that is known. It does not matter for an endpoint that gets no calls.
func (o *Outlier) withholdLocked(t *Tracker, e Event) {
	if t.aside {
		return
	}
	if t.withheld == notWithheld {
		if t.last == nil {
			t.last = new(ejection)
		}
		t.last.withheld = &e
		if o.OnWithheld != nil {
			o.events.add(e)
		}
	}
	t.withheld = isWithheld
	t.streak.Or(withheldBit)
}

// recoverLocked notices that an endpoint whose ejection was withheld answers again, and was not to be ejected since the sweep before.
func (t *Tracker) recoverLocked(sweeps int) {
	if t.withheld == isWithheld {
		t.withheld = wasWithheld
		sweeps--
	}
	if t.withheld == wasWithheld && sweeps > 0 && t.streak.Load()&withheldBit == 0 {
		t.withheld, t.last.withheld = notWithheld, nil
	}
}

// mayEjectLocked reports whether one more endpoint may be ejected, and the fraction that this needs. It counts only endpoints that
// take calls: the others cannot take over the calls of an ejected one.
func (o *Outlier) mayEjectLocked() (ok bool, needed float64) {
	total, ejected := 0, 0
	for _, t := range o.trackers.All() {
		if t.aside {
			continue
		}
		total++
		if t.out.Load() {
			ejected++
		}
	}
	ok = ejected == 0 && total >= 2 || fraction.AtMost(ejected+1, total, o.cfg.MaxEjectedFraction)
	return ok, float64(ejected+1) / float64(max(total, ejected+1))
}

// Sweep readmits the endpoints whose ejection is over and applies the rules that compare endpoints, if a sweep is due at now.
// Otherwise it costs next to nothing, so it may be called for every call. It makes up for sweeps that were missed because there
// were no calls.
func (o *Outlier) Sweep(now time.Time) {
	if int64(now.Sub(o.start)) < o.due.Load() {
		return
	}
	o.mu.Lock()
	o.sweepLocked(now)
	o.mu.Unlock()
	o.deliver()
}

func (o *Outlier) sweepLocked(now time.Time) {
	elapsed := now.Sub(o.start)
	due := time.Duration(o.due.Load())
	if elapsed < due {
		return
	}
	last := elapsed / o.cfg.Interval * o.cfg.Interval // the latest of the sweeps that are due
	sweeps := int((last-due)/o.cfg.Interval) + 1
	o.due.Store(int64(last + o.cfg.Interval))

	for _, t := range o.sortedLocked() {
		if o.expiredLocked(t, sweeps) {
			o.forgetLocked(t)
			continue
		}
		t.recoverLocked(sweeps)
		healthy := sweeps
		if t.out.Load() {
			if now.Before(t.last.until) {
				continue
			}
			// The sweep that readmits is the first at or after until; those that follow it found t healthy.
			readmits := (t.last.until.Sub(o.start) + o.cfg.Interval - 1) / o.cfg.Interval * o.cfg.Interval
			if last < readmits {
				continue
			}
			healthy = int((last - readmits) / o.cfg.Interval)
			o.readmitLocked(t, now)
		}
		t.forgiveLocked(healthy)
	}
	if o.compares {
		o.compareLocked(now)
	}
}

// sortedLocked returns the trackers, sorted by ID.
func (o *Outlier) sortedLocked() []*Tracker {
	list := make([]*Tracker, 0, o.trackers.Len())
	for _, t := range o.trackers.All() {
		list = append(list, t)
	}
	slices.SortFunc(list, func(a, b *Tracker) int { return strings.Compare(a.id, b.id) })
	return list
}

func (o *Outlier) readmitLocked(t *Tracker, now time.Time) {
	t.streak.Store(0)
	t.rate.Store(0)
	t.out.Store(false)
	o.ejected.Add(-1)
	o.events.post(Event{Endpoint: t.id, At: now})
}

// expiredLocked reports whether t is known only from Report and Ejected, and was used so long ago that its endpoint must be gone.
func (o *Outlier) expiredLocked(t *Tracker, sweeps int) bool {
	if t.kept || t.used.Swap(false) {
		t.idle = 0
		return false
	}
	t.idle = int32(min(int(t.idle)+sweeps, math.MaxInt32))
	return time.Duration(t.idle) > (minIdle+o.cfg.MaxEjection+o.cfg.Jitter)/o.cfg.Interval
}
