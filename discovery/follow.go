package discovery

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nosidecar/mesh/discovery/internal/source"
	"github.com/nosidecar/mesh/internal/pause"
)

// restartLimit bounds the wait before a watch that ended too early is restarted.
const restartLimit = 30 * time.Second

// watch is one watched service.
type watch struct {
	owner   *Watcher
	service Service

	// The rest is guarded by Watcher.mu. No subscriber is called while it is held.

	other     *watch // of a Service with the same Host
	subs      []*Subscription
	endpoints []Endpoint
	version   uint64        // counts the sets; 0 means none yet
	lastErr   error         // the last error since the last set
	news      chan struct{} // closed when something changes that a Wait may wait for; nil if none does

	cancel  context.CancelCauseFunc // of what is running; nil if nothing is
	refresh chan struct{}           // holds a request to look again, until there is a source
	source  source.Source[Endpoint] // nil for a Resolver without, whose watch has a goroutine of its own
	next    *appointment            // when the next step is due; nil means when the source is woken
	busy    bool                    // a step is being taken
	woken   bool                    // the source has something new
	asked   bool                    // a subscriber has asked for a look
	ended   bool
	unknown bool // the resolver has said so, and no set has come since; it matters to nobody who has a set from before
}

// appointment is when the next step of a source is due.
type appointment struct {
	source.Turn
	since time.Time   // when the latest step ended
	timer *time.Timer // nil until the step had to wait for it
}

// beginLocked begins the watch.
func (s *watch) beginLocked() {
	var ctx context.Context
	ctx, s.cancel = context.WithCancelCause(context.Background())
	s.refresh = make(chan struct{}, 1)
	taker := &source.Taker[Endpoint]{Resolver: s.owner.resolver, Wake: s.wake, Asked: s.refresh}
	s.busy = true
	s.owner.running.Go(func() { s.run(ctx, taker) })
}

// endLocked ends the watch.
func (s *watch) endLocked() {
	if s.ended {
		return
	}
	s.ended = true
	if s.cancel != nil {
		s.cancel(errClosed)
	}
	if s.next != nil && s.next.timer != nil {
		s.next.timer.Stop()
	}
	if s.source != nil {
		s.owner.running.Go(s.source.Stop) // without the lock: it may wait for somebody who wakes the watch
	}
	s.tellLocked()
}

// wake is told that the source has something new.
func (s *watch) wake() {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	s.woken = true
	s.proceedLocked()
}

// ask has the source look again soon.
func (s *watch) ask() {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	if s.source == nil {
		select {
		case s.refresh <- struct{}{}:
		default: // already requested
		}
		return
	}
	s.asked = true
	s.proceedLocked()
}

// proceedLocked takes the next step, on a goroutine, or sees to it that it is taken when it is due.
func (s *watch) proceedLocked() {
	if s.busy || s.ended || s.next == nil && !s.woken {
		return
	}
	if s.next != nil {
		if wait, ever := s.next.wait(s.woken, s.asked); !ever {
			return
		} else if wait > 0 {
			s.next.set(wait, s.proceed)
			return
		}
	}
	s.busy = true
	var ctx context.Context
	ctx, s.cancel = context.WithCancelCause(context.Background())
	s.owner.running.Go(func() { s.step(ctx) })
}

// wait returns how long the step has to wait. ever is false if it is not due before the source is woken.
func (a *appointment) wait(woken, asked bool) (wait time.Duration, ever bool) {
	wait = a.After
	switch {
	case woken:
		wait = max(0, a.Least)
	case a.After == 0:
		return 0, false
	case asked && a.Least >= 0:
		wait = min(wait, a.Least)
	}
	return wait - time.Since(a.since), true
}

// set has f called after a time.
func (a *appointment) set(after time.Duration, f func()) {
	if a.timer == nil {
		a.timer = time.AfterFunc(after, f)
	} else {
		a.timer.Reset(after)
	}
}

// proceed is called when a step is due, or was until just now.
func (s *watch) proceed() {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	s.proceedLocked()
}

// step takes a step of the source.
func (s *watch) step(ctx context.Context) {
	mu := &s.owner.mu
	mu.Lock()
	asked := s.asked && !s.woken && s.next.Least >= 0
	s.woken, s.asked = false, false
	mu.Unlock()
	var least time.Duration
	next := s.source.Step(ctx, asked, func(endpoints []Endpoint, err error) bool {
		if err != nil {
			return s.fail(err)
		}
		least = rest(len(endpoints))
		return s.set(endpoints)
	})
	mu.Lock()
	defer mu.Unlock()
	s.cancel(nil)
	s.busy, s.cancel = false, nil
	if least > 0 {
		next.Least = max(next.Least, least)
	}
	if s.next == nil && next != (source.Turn{}) {
		s.next = new(appointment)
	}
	if s.next != nil {
		s.next.Turn, s.next.since = next, time.Now()
	}
	s.proceedLocked()
}

// run begins to take the steps of a source, or follows a Resolver that has none.
func (s *watch) run(ctx context.Context, taker *source.Taker[Endpoint]) {
	sets, errs := pause.Pace{Burst: 100, Each: 10 * time.Millisecond}, pause.Errors() // the resolver may never wait
	for failures := 1; ; failures++ {
		for endpoints, err := range s.owner.resolver.Watch(taker.Context(ctx), s.service) {
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				s.fail(err)
				_ = errs.Wait(ctx)
				continue
			}
			failures = 0
			s.set(endpoints)
			_ = pause.For(ctx, rest(len(endpoints)))
			_ = sets.Wait(ctx)
		}
		if taker.Source != nil {
			s.follow(ctx, taker.Source)
			return
		}
		if ctx.Err() != nil {
			return
		}
		s.fail(errWatchEnded)
		if pause.For(ctx, backoff(max(failures, 1), restartLimit)) != nil {
			return
		}
	}
}

// follow takes the first step of a source.
func (s *watch) follow(ctx context.Context, from source.Source[Endpoint]) {
	s.owner.mu.Lock()
	ended := s.ended
	if !ended {
		s.source, s.refresh, s.woken = from, nil, true
	}
	s.owner.mu.Unlock()
	if ended {
		from.Stop()
		return
	}
	s.step(ctx)
}

// A set costs its subscribers time in proportion to its size. So after a large one the next is taken from the resolver only
// after a while, also in proportion to its size. What changes meanwhile is one set for the resolver to yield.
const (
	restFrom   = 500 // endpoints
	restEach   = 5 * time.Microsecond
	restAtMost = 50 * time.Millisecond
)

// rest returns how long after a set of n endpoints the next one is taken.
func rest(n int) time.Duration {
	if n < restFrom {
		return 0
	}
	return min(time.Duration(n)*restEach, restAtMost)
}

// set takes a set of endpoints. It reports false if the watch has ended.
func (s *watch) set(endpoints []Endpoint) bool {
	valid, err := validate(endpoints)
	s.owner.mu.Lock()
	if s.ended {
		s.owner.mu.Unlock()
		return false
	}
	s.endpoints = valid
	s.version++
	version := s.version
	s.lastErr, s.unknown = nil, false
	subs := slices.Clone(s.subs)
	s.owner.mu.Unlock()
	if err != nil {
		s.owner.onError(s.service, err)
	}
	for _, sub := range subs {
		sub.deliver(version, valid)
	}
	return true
}

// fail takes an error. It reports false if the watch has ended.
func (s *watch) fail(err error) bool {
	s.owner.mu.Lock()
	if s.ended {
		s.owner.mu.Unlock()
		return false
	}
	s.lastErr = err
	if errors.Is(err, ErrUnknownService) {
		s.unknown = true
		s.tellLocked()
	}
	s.owner.mu.Unlock()
	s.owner.onError(s.service, err)
	return true
}

// newsLocked returns a channel that is closed when there may be an answer.
func (s *watch) newsLocked() <-chan struct{} {
	if s.news == nil {
		s.news = make(chan struct{})
	}
	return s.news
}

// tell has every Wait look again.
func (s *watch) tell() {
	s.owner.mu.Lock()
	defer s.owner.mu.Unlock()
	s.tellLocked()
}

func (s *watch) tellLocked() {
	if s.news != nil {
		close(s.news)
		s.news = nil
	}
}
