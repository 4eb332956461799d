package deadline

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"
)

// Signals has what contexts need to tell net/http of their end, for later calls to use again. See [Context.Lend]. The zero value is ready for
// use. It must not be copied after that, and is safe for concurrent use.
type Signals struct {
	mu   sync.Mutex
	free []*signal // the last one was used last
}

const (
	mostFree  = 256 // how many signals are kept for a burst of calls
	keepAfter = 4   // how many calls in a row end with the same channel before a signal watches that between calls, too
)

// signal is a context without a parent, and a timer. The context has its channel and its list of children already. The timer runs on
// when a call ends in time, and the next one notices that it is early. So most calls set no timer, and stop none. Nor do they
// begin and end to watch a parent that many calls have in turn, such as the context of a whole program. Contexts with the same channel are as one,
// whatever their values. The channel counts, not the context: a program may use the memory of one again. So a watch outlasts a call only if
// its parent was made by context.WithCancel: ending the watch of another one may lead to code of the program.
type signal struct {
	from   *Signals
	ctx    context.Context
	cancel context.CancelCauseFunc
	gone   func() // parentGone

	mu      sync.Mutex      // may be locked while that of a Context is held
	owner   *Context        // nil if it is free
	parent  context.Context // whose end is the owner's, too
	timer   *time.Timer
	running bool // the timer will fire
	fires   time.Time

	watched <-chan struct{} // that of the parent whose end calls gone; while the signal is free, that of the last calls, or nil
	unwatch func() bool     // ends that; nil if watched is
	lasting bool            // the watch may outlast the call
	last    uintptr         // the address of that of the last call; 0 if it had none
	inARow  int             // calls with that channel, up to keepAfter
}

// take returns a signal for owner, a child of parent. If it is timed, the owner is to end at a time.
func (f *Signals) take(owner *Context, parent context.Context, at time.Time, timed bool) *signal {
	var s *signal
	f.mu.Lock()
	if n := len(f.free) - 1; n >= 0 {
		s = f.free[n]
		f.free[n] = nil
		f.free = f.free[:n]
	}
	f.mu.Unlock()
	if s == nil {
		s = &signal{from: f}
		s.ctx, s.cancel = context.WithCancelCause(context.Background())
		s.gone = s.parentGone
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.owner, s.parent = owner, parent
	if done := parent.Done(); done != s.watched {
		s.unwatchLocked()
		if done != nil {
			s.watched, s.unwatch, s.lasting = done, context.AfterFunc(parent, s.gone), reflect.TypeOf(parent) == cancelable
		}
	}
	if timed {
		s.setLocked(at)
	}
	return s
}

// cancelable is the type of the contexts that context.WithCancel returns.
var cancelable = func() reflect.Type {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return reflect.TypeOf(ctx)
}()

// unwatchLocked ends the watch of a parent. If the parent has just ended, gone may still be about to run.
func (s *signal) unwatchLocked() {
	if s.unwatch != nil {
		s.unwatch()
	}
	s.watched, s.unwatch = nil, nil
}

// countLocked counts the calls in a row that have had the same channel. It compares addresses, which keep nothing alive: if a new channel has
// that of an earlier one, it is only kept too early.
func (s *signal) countLocked() {
	at := reflect.ValueOf(s.watched).Pointer()
	if at == 0 || at != s.last {
		s.last, s.inARow = at, 0
	}
	s.inARow = min(s.inARow+1, keepAfter)
}

// giveBack ends the use of a signal that was not cancelled.
func (s *signal) giveBack() {
	s.mu.Lock()
	if s.countLocked(); s.inARow < keepAfter || !s.lasting || !s.running { // the timer ends what is kept: see expire
		s.unwatchLocked()
	}
	s.owner, s.parent = nil, nil
	s.mu.Unlock()
	f := s.from
	f.mu.Lock()
	kept := len(f.free) < mostFree
	if kept {
		f.free = append(f.free, s)
	}
	f.mu.Unlock()
	if !kept {
		s.close()
	}
}

// close ends the use of a signal that is not kept.
func (s *signal) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.running = false
	if s.timer != nil {
		s.timer.Stop()
	}
	s.unwatchLocked()
}

// forget lets go of a free signal.
func (f *Signals) forget(s *signal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if i := slices.Index(f.free, s); i >= 0 {
		f.free = slices.Delete(f.free, i, i+1)
	}
}

// set has the owner end at a time.
func (s *signal) set(at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setLocked(at)
}

func (s *signal) setLocked(at time.Time) {
	if s.running && !at.Before(s.fires) {
		return
	}
	if left := time.Until(at); s.timer == nil {
		s.timer = time.AfterFunc(left, s.expire)
	} else {
		s.timer.Reset(left)
	}
	s.running, s.fires = true, at
}

// expire runs when the timer fires, which may have been set for an earlier call.
func (s *signal) expire() {
	s.mu.Lock()
	owner := s.owner
	s.running = false
	if owner == nil {
		s.unwatchLocked()
	}
	s.mu.Unlock()
	if owner == nil { // for as long as a call may take
		s.from.forget(s)
		return
	}
	owner.expire()
}

// parentGone runs when a parent has ended: that of the owner, or one that was watched for an earlier call.
func (s *signal) parentGone() {
	s.mu.Lock()
	owner, parent := s.owner, s.parent
	if closed(s.watched) {
		s.watched, s.unwatch = nil, nil
	}
	s.mu.Unlock()
	if owner == nil || !closed(parent.Done()) {
		return
	}
	mu := owner.lock()
	owner.orphan = owner.orphan || !owner.spent
	mu.Unlock()
	owner.End(context.Cause(parent))
}

// closed reports whether a channel, which may be nil, is closed.
func closed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// parentErr returns the error of the parent if that has ended c, which the context of the signal does not know, and nil otherwise.
func (c *Context) parentErr() error {
	mu := c.lock()
	orphan := c.orphan
	mu.Unlock()
	if !orphan {
		return nil
	}
	c.signal.mu.Lock()
	defer c.signal.mu.Unlock()
	return c.signal.parent.Err()
}

// Lend lets c use a signal, which a later call uses again after Finish. It is for a context that only net/http waits for, and is called before
// that begins to: what waits for c after Finish, or is derived from it, may miss its end, or see that of the later call.
func (c *Context) Lend(from *Signals) { c.lender = from }

// Finish is Cancel at a time at which net/http has done everything for a call that there was to do.
func (c *Context) Finish() {
	mu := c.mutex()
	mu.Lock()
	waits := c
	if c.try != nil {
		waits = c.try
	}
	s := waits.signal
	if s == nil || waits.spent || waits.has(canceled) || waits.phase() > stopped || waits != c && c.has(live) {
		mu.Unlock()
		c.Cancel()
		return
	}
	c.enterLocked(stopped, canceled)
	waits.enterLocked(stopped, canceled|released)
	mu.Unlock()
	s.giveBack()
}
