package breaker

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"

	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/internal/refusal"
)

// ErrOpen means that the circuit refused a call: it is open, or half-open with all its probes in flight. Nothing was sent.
// Test for it with errors.Is.
var ErrOpen = refusal.New("breaker: open")

// Config says when a circuit opens and how it closes again. The zero Config opens after 5 consecutive failures and
// probes with one call every 30 seconds. Configs can be compared with ==.
type Config struct {
	// ConsecutiveFailures opens the circuit after this many failures with no success between them, however far apart.
	// 0 means 5; negative switches the rule off.
	ConsecutiveFailures int

	// FailureFraction opens the circuit when a call fails and at least this fraction of the calls that ended within Window
	// failed. It lies between 0 and 1. 0 means that there is no such rule.
	FailureFraction float64

	// SlowCallFraction opens the circuit when a call fails or is slow and at least this fraction of the calls that ended
	// within Window were slow, failed or not. It lies between 0 and 1. 0 means that there is no such rule. It requires
	// SlowCall.
	//
	// A slow call that succeeded counts as a success for the two rules above. In a half-open circuit with a SlowCallFraction,
	// it counts as a failure: the circuit may have opened for slowness.
	SlowCallFraction float64

	// SlowCall is the response time from which a call counts as slow. 0 means that no call does. It requires
	// SlowCallFraction.
	SlowCall time.Duration

	// MinRequests is the number of calls that must have ended within Window before a rate is evaluated. 0 means 20.
	MinRequests int

	// Window is the period over which the rates are computed. 0 means 10 seconds.
	Window time.Duration

	// Buckets is the number of steps in which Window advances. 0 means 10; at most 1000.
	Buckets int

	// OpenDuration is how long the circuit refuses every call before it lets probes through. 0 means 30 seconds.
	OpenDuration time.Duration

	// Probes is the number of calls that a half-open circuit lets through. The circuit closes when that many have succeeded,
	// and opens again when one fails. 0 means 1.
	Probes int

	// ProbeTimeout is how long a probe may take to end. After that the next caller gets its place, and its outcome is
	// ignored: a probe that hangs or is never reported does not keep the circuit half-open. 0 means 30 seconds.
	ProbeTimeout time.Duration
}

const (
	maxBuckets = 1000
	maxProbes  = 1 << 16
)

// Validate returns an error that names the field if no circuit can honour the settings.
func (c Config) Validate() error {
	_, err := c.withDefaults()
	return err
}

// withDefaults returns c with its defaults filled in.
func (c Config) withDefaults() (Config, error) {
	switch {
	case !fraction.Valid(c.FailureFraction):
		return c, fmt.Errorf("breaker: Config.FailureFraction is %v, want 0 to 1", c.FailureFraction)
	case !fraction.Valid(c.SlowCallFraction):
		return c, fmt.Errorf("breaker: Config.SlowCallFraction is %v, want 0 to 1", c.SlowCallFraction)
	case c.SlowCall < 0:
		return c, fmt.Errorf("breaker: Config.SlowCall is %v, want 0 or more", c.SlowCall)
	case (c.SlowCallFraction > 0) != (c.SlowCall > 0):
		return c, errors.New("breaker: Config has one of SlowCallFraction and SlowCall, want both")
	case c.MinRequests < 0:
		return c, fmt.Errorf("breaker: Config.MinRequests is %d, want 0 or more", c.MinRequests)
	case c.Window < 0:
		return c, fmt.Errorf("breaker: Config.Window is %v, want 0 or more", c.Window)
	case c.Buckets < 0 || c.Buckets > maxBuckets:
		return c, fmt.Errorf("breaker: Config.Buckets is %d, want 0 to %d", c.Buckets, maxBuckets)
	case c.OpenDuration < 0:
		return c, fmt.Errorf("breaker: Config.OpenDuration is %v, want 0 or more", c.OpenDuration)
	case c.Probes < 0 || c.Probes > maxProbes:
		return c, fmt.Errorf("breaker: Config.Probes is %d, want 0 to %d", c.Probes, maxProbes)
	case c.ProbeTimeout < 0:
		return c, fmt.Errorf("breaker: Config.ProbeTimeout is %v, want 0 or more", c.ProbeTimeout)
	case c.ConsecutiveFailures < 0 && c.FailureFraction == 0 && c.SlowCallFraction == 0:
		return c, errors.New("breaker: Config has all rules off and the circuit would never open, want one of them")
	}
	c.ConsecutiveFailures = cmp.Or(c.ConsecutiveFailures, 5)
	c.MinRequests = cmp.Or(c.MinRequests, 20)
	c.Window = cmp.Or(c.Window, 10*time.Second)
	c.Buckets = cmp.Or(c.Buckets, 10)
	c.OpenDuration = cmp.Or(c.OpenDuration, 30*time.Second)
	c.Probes = cmp.Or(c.Probes, 1)
	c.ProbeTimeout = cmp.Or(c.ProbeTimeout, 30*time.Second)
	if c.Window/time.Duration(c.Buckets) <= 0 {
		return c, fmt.Errorf("breaker: Config.Window is %v, want at least 1ns for each of %d buckets", c.Window, c.Buckets)
	}
	if c.OpenDuration < time.Microsecond {
		return c, fmt.Errorf("breaker: Config.OpenDuration is %v, want at least 1µs", c.OpenDuration)
	}
	return c, nil
}

// State is what a circuit does with calls.
type State uint8

const (
	Closed   State = iota // calls pass
	HalfOpen              // a few probes pass, other calls are refused
	Open                  // calls are refused
)

var states = [...]string{Closed: "closed", HalfOpen: "half-open", Open: "open"}

// String returns "closed", "half-open" or "open".
func (s State) String() string {
	if int(s) < len(states) {
		return states[s]
	}
	return "State(" + strconv.Itoa(int(s)) + ")"
}

// Outcome is how a call ended, as far as a circuit is concerned.
type Outcome uint8

const (
	Success Outcome = iota // the destination did its work
	Failure                // the destination did not
	Ignored                // the call says nothing about the destination, as when the caller gave up
)

// Change is a change of a circuit's state.
type Change struct {
	From, To State
	At       time.Time

	// Set when a circuit opens: the calls that opened it, and how many of them failed and how many were slow. They are the
	// consecutive failures, the calls within Window, or the probe, which also counts as failed if it was slow.
	Calls, Failures, Slow int
}

// Circuit decides whether calls to one destination may be made. It is safe for concurrent use. Use [New].
type Circuit struct {
	cfg      Config // with defaults
	onChange func(Change)

	phase       atomic.Uint64 // see phase; written with the lock of trips.breaker held
	consecutive atomic.Int64  // failures; written with mu held

	mu     sync.Mutex // may be held when trips.breaker is used, never taken in its callbacks
	window *window    // nil if no rate is evaluated

	trips atomic.Pointer[trips] // nil until the circuit opens for the first time, which most never do; set once, with mu held
}

// trips is the part of a circuit that is needed once it opens.
type trips struct {
	// breaker is the state machine: it times the open period, and admits and judges the probes. It takes no part in calls
	// that pass a closed circuit, except the one that trips it: it would cost two clock reads and an allocation, and it
	// drops the results of calls that outlast its window.
	breaker *gobreaker.TwoStepCircuitBreaker[struct{}]
	changes mailbox[Change]

	probes []*probe // not yet ended, or not yet known to have; guarded by Circuit.mu
	by     tally    // what opened the closed circuit last
}

// A phase is the time between two changes of state. Its lower two bits are the State.
type phase uint64

func (p phase) state() State {
	return State(p & 3)
}

func (p phase) next(s State) phase {
	return (p>>2+1)<<2 | phase(s)
}

func (c *Circuit) current() phase {
	return phase(c.phase.Load())
}

// New returns a closed circuit. The error is that of [Config.Validate]. onChange, if not nil, is called for every change of
// state, in order, on one of the goroutines that use the circuit, with no lock held: it may use the circuit. It delays the
// call that caused it, so it should be quick.
func New(cfg Config, onChange func(Change)) (*Circuit, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Circuit{cfg: cfg, onChange: onChange}
	if cfg.FailureFraction > 0 || cfg.SlowCallFraction > 0 {
		c.window = newWindow(cfg.Window, cfg.Buckets)
	}
	return c, nil
}

// newTrips returns the state machine of a circuit that is closed.
func (c *Circuit) newTrips() *trips {
	return &trips{changes: mailbox[Change]{handler: c.onChange}, breaker: gobreaker.NewTwoStepCircuitBreaker[struct{}](gobreaker.Settings{
		MaxRequests:   uint32(c.cfg.Probes),
		Timeout:       c.cfg.OpenDuration - 1, // gobreaker waits for more than Timeout to pass, not for Timeout
		IsExcluded:    func(err error) bool { return err == errIgnored },
		ReadyToTrip:   func(gobreaker.Counts) bool { return true }, // a closed breaker is only told of calls that trip it
		OnStateChange: func(_ string, from, to gobreaker.State) { c.changed(from, to) },
	})}
}

// State returns the current state.
func (c *Circuit) State() State {
	if c.current().state() == Closed {
		return Closed
	}
	state := fromGobreaker(c.trips.Load().breaker.State()) // may notice that the open period is over
	c.deliver()
	return state
}

// Allow returns a Lease for one call, or [ErrOpen]. The caller must call Done on the lease when the call has ended.
func (c *Circuit) Allow() (Lease, error) {
	if p := c.current(); p.state() == Closed && c.cfg.SlowCall == 0 {
		return Lease{circuit: c, phase: p}, nil
	}
	return c.allow()
}

func (c *Circuit) allow() (Lease, error) {
	lease := Lease{circuit: c, phase: c.current()}
	if lease.phase.state() != Closed {
		breaker := c.trips.Load().breaker
		done, err := breaker.Allow()
		if err == gobreaker.ErrTooManyRequests && c.reclaim(time.Now()) {
			done, err = breaker.Allow()
		}
		if err != nil {
			c.deliver()
			return Lease{}, ErrOpen
		}
		// If the phase changed once more since breaker let the call pass, it passes, but its outcome is either that of
		// an ordinary call or belongs to a phase that is over; done knows if so.
		if lease.phase = c.current(); lease.phase.state() != Closed {
			lease.probe = c.newProbe(done, time.Now())
		}
		c.deliverBefore(lease.probe)
	}
	if c.cfg.SlowCall > 0 {
		lease.clock = time.Since(c.window.start) + 1
	}
	return lease, nil
}

// Lease is the permission to make one call. The zero Lease does nothing. A Lease must not be copied once its methods are
// used, nor used by several goroutines at once.
type Lease struct {
	circuit *Circuit // nil once done
	phase   phase
	probe   *probe // nil if the circuit was closed

	// clock is 1 and when the call began, relative to circuit.window.start; once it is answered, the complement of the response time.
	// It is 0 unless slow calls count.
	clock time.Duration
}

// Answered reports that the response has begun. What follows, such as a long body, does not make the call slow.
func (l *Lease) Answered() {
	if l.clock > 0 {
		l.answered()
	}
}

func (l *Lease) answered() {
	if l.circuit != nil {
		l.clock = ^(time.Since(l.circuit.window.start) + 1 - l.clock)
	}
}

// Done reports that the call has ended. Calls after the first do nothing. An outcome that arrives after the circuit has
// changed state, or after the lease of a probe has expired, is not counted.
func (l *Lease) Done(outcome Outcome) {
	if l.circuit != nil {
		l.done(outcome)
	}
}

func (l *Lease) done(outcome Outcome) {
	c := l.circuit
	if outcome == Success && l.probe == nil && c.unmoved() {
		l.circuit = nil // the usual case
		return
	}
	slow := false
	if c.cfg.SlowCall > 0 {
		l.Answered()
		slow = ^l.clock >= c.cfg.SlowCall
	}
	l.circuit = nil
	switch {
	case l.probe != nil:
		l.probe.end(outcome, slow)
	case outcome != Ignored:
		c.record(l.phase, outcome == Failure, slow)
	}
	c.deliver()
}

// unmoved reports whether there is nothing to count about a call that succeeds.
func (c *Circuit) unmoved() bool { return c.window == nil && c.consecutive.Load() == 0 }

// deliver calls the handler of changes, if there are any.
func (c *Circuit) deliver() {
	if t := c.trips.Load(); t != nil {
		t.changes.deliver()
	}
}

// deliverBefore is deliver for a call that passes. If the handler panics, there is no call, and the place of its probe, if any, is free
// again.
func (c *Circuit) deliverBefore(p *probe) {
	delivered := false
	defer func() {
		if !delivered && p != nil {
			p.end(Ignored, false)
		}
	}()
	c.deliver()
	delivered = true
}

// record counts a call that passed the closed circuit in phase p, and trips the circuit if it must.
func (c *Circuit) record(p phase, failed, slow bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current() != p { // a closed circuit changes state only below, with mu held
		return
	}
	if failed {
		c.consecutive.Add(1)
	} else {
		c.consecutive.Store(0)
	}
	if c.window != nil {
		c.window.add(time.Since(c.window.start), failed, slow)
	}
	if !failed && !slow {
		return
	}
	by, trips := c.tripsLocked()
	if !trips {
		return
	}
	t := c.trips.Load()
	if t == nil {
		t = c.newTrips()
		c.trips.Store(t)
	}
	t.by = by
	c.consecutive.Store(0)
	if c.window != nil {
		c.window.reset()
	}
	if done, err := t.breaker.Allow(); err == nil {
		done(errFailed)
	}
}

// tripsLocked reports whether the circuit must open, and because of which calls.
func (c *Circuit) tripsLocked() (by tally, trips bool) {
	if n := int(c.consecutive.Load()); c.cfg.ConsecutiveFailures > 0 && n >= c.cfg.ConsecutiveFailures {
		return tally{calls: n, failed: n}, true
	}
	if c.window == nil || c.window.sum.calls < c.cfg.MinRequests {
		return tally{}, false
	}
	sum := c.window.sum
	return sum, c.cfg.FailureFraction > 0 && fraction.AtLeast(sum.failed, sum.calls, c.cfg.FailureFraction) ||
		c.cfg.SlowCallFraction > 0 && fraction.AtLeast(sum.slow, sum.calls, c.cfg.SlowCallFraction)
}

// changed notes a change of state. gobreaker calls it with its lock held.
func (c *Circuit) changed(from, to gobreaker.State) {
	change, t := Change{From: fromGobreaker(from), To: fromGobreaker(to), At: time.Now()}, c.trips.Load()
	switch {
	case change.To != Open:
	case change.From == Closed: // by record, which holds mu
		change.Calls, change.Failures, change.Slow = t.by.calls, t.by.failed, t.by.slow
	default:
		change.Calls, change.Failures = 1, 1
	}
	c.phase.Store(uint64(c.current().next(change.To)))
	t.changes.post(change)
}

func fromGobreaker(s gobreaker.State) State {
	switch s {
	case gobreaker.StateOpen:
		return Open
	case gobreaker.StateHalfOpen:
		return HalfOpen
	}
	return Closed
}

// What gobreaker is told about a call. Success is nil.
var (
	errFailed  = errors.New("failed")
	errIgnored = errors.New("ignored")
)

// probe is a call that a half-open circuit has let through.
type probe struct {
	done    func(error) // of gobreaker
	expires time.Time
	ended   atomic.Bool
}

// end ends the probe, unless it has ended. It reports whether it did.
func (p *probe) end(outcome Outcome, slow bool) bool {
	if !p.ended.CompareAndSwap(false, true) {
		return false
	}
	switch {
	case outcome == Ignored:
		p.done(errIgnored) // its place is free again
	case outcome == Failure || slow:
		p.done(errFailed)
	default:
		p.done(nil)
	}
	return true
}

func (c *Circuit) newProbe(done func(error), now time.Time) *probe {
	c.reclaim(now) // keeps the list short
	p := &probe{done: done, expires: now.Add(c.cfg.ProbeTimeout)}
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.trips.Load()
	t.probes = append(t.probes, p)
	return p
}

// reclaim frees the places of expired probes. It reports whether there was one.
func (c *Circuit) reclaim(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	reclaimed, t := false, c.trips.Load()
	kept := t.probes[:0]
	for _, p := range t.probes {
		switch {
		case p.ended.Load():
		case now.Before(p.expires):
			kept = append(kept, p)
		case p.end(Ignored, false):
			reclaimed = true
		}
	}
	clear(t.probes[len(kept):])
	t.probes = kept
	return reclaimed
}
