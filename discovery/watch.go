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
func (w *watch) beginLocked() {
	var ctx context.Context
	ctx, w.cancel = context.WithCancelCause(context.Background())
	w.refresh = make(chan struct{}, 1)
	taker := &source.Taker[Endpoint]{Resolver: w.owner.resolver, Wake: w.wake, Asked: w.refresh}
	w.busy = true
	w.owner.running.Go(func() { w.run(ctx, taker) })
}

// endLocked ends the watch.
func (w *watch) endLocked() {
	if w.ended {
		return
	}
	w.ended = true
	if w.cancel != nil {
		w.cancel(errClosed)
	}
	if w.next != nil && w.next.timer != nil {
		w.next.timer.Stop()
	}
	if w.source != nil {
		w.owner.running.Go(w.source.Stop) // without the lock: it may wait for somebody who wakes the watch
	}
	w.tellLocked()
}

// wake is told that the source has something new.
func (w *watch) wake() {
	w.owner.mu.Lock()
	defer w.owner.mu.Unlock()
	w.woken = true
	w.proceedLocked()
}

// ask has the source look again soon.
func (w *watch) ask() {
	w.owner.mu.Lock()
	defer w.owner.mu.Unlock()
	if w.source == nil {
		select {
		case w.refresh <- struct{}{}:
		default: // already requested
		}
		return
	}
	w.asked = true
	w.proceedLocked()
}

// proceedLocked takes the next step, on a goroutine, or sees to it that it is taken when it is due.
func (w *watch) proceedLocked() {
	if w.busy || w.ended || w.next == nil && !w.woken {
		return
	}
	if w.next != nil {
		if wait, ever := w.next.wait(w.woken, w.asked); !ever {
			return
		} else if wait > 0 {
			w.next.set(wait, w.proceed)
			return
		}
	}
	w.busy = true
	var ctx context.Context
	ctx, w.cancel = context.WithCancelCause(context.Background())
	w.owner.running.Go(func() { w.step(ctx) })
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
func (w *watch) proceed() {
	w.owner.mu.Lock()
	defer w.owner.mu.Unlock()
	w.proceedLocked()
}

// step takes a step of the source.
func (w *watch) step(ctx context.Context) {
	mu := &w.owner.mu
	mu.Lock()
	asked := w.asked && !w.woken && w.next.Least >= 0
	w.woken, w.asked = false, false
	mu.Unlock()
	var least time.Duration
	next := w.source.Step(ctx, asked, func(endpoints []Endpoint, err error) bool {
		if err != nil {
			return w.fail(err)
		}
		least = rest(len(endpoints))
		return w.set(endpoints)
	})
	mu.Lock()
	defer mu.Unlock()
	w.cancel(nil)
	w.busy, w.cancel = false, nil
	if least > 0 {
		next.Least = max(next.Least, least)
	}
	if w.next == nil && next != (source.Turn{}) {
		w.next = new(appointment)
	}
	if w.next != nil {
		w.next.Turn, w.next.since = next, time.Now()
	}
	w.proceedLocked()
}

// run begins to take the steps of a source, or follows a Resolver that has none.
func (w *watch) run(ctx context.Context, taker *source.Taker[Endpoint]) {
	sets, errs := pause.Pace{Burst: 100, Each: 10 * time.Millisecond}, pause.Errors() // the resolver may never wait
	for failures := 1; ; failures++ {
		for endpoints, err := range w.owner.resolver.Watch(taker.Context(ctx), w.service) {
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				w.fail(err)
				_ = errs.Wait(ctx)
				continue
			}
			failures = 0
			w.set(endpoints)
			_ = pause.For(ctx, rest(len(endpoints)))
			_ = sets.Wait(ctx)
		}
		if taker.Source != nil {
			w.follow(ctx, taker.Source)
			return
		}
		if ctx.Err() != nil {
			return
		}
		w.fail(errWatchEnded)
		if pause.For(ctx, backoff(max(failures, 1), restartLimit)) != nil {
			return
		}
	}
}

// follow takes the first step of a source.
func (w *watch) follow(ctx context.Context, from source.Source[Endpoint]) {
	w.owner.mu.Lock()
	ended := w.ended
	if !ended {
		w.source, w.refresh, w.woken = from, nil, true
	}
	w.owner.mu.Unlock()
	if ended {
		from.Stop()
		return
	}
	w.step(ctx)
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
func (w *watch) set(endpoints []Endpoint) bool {
	valid, errs := validate(endpoints)
	w.owner.mu.Lock()
	if w.ended {
		w.owner.mu.Unlock()
		return false
	}
	w.endpoints = valid
	w.version++
	version := w.version
	w.lastErr, w.unknown = nil, false
	if errs != nil {
		w.lastErr = errs[0]
	}
	subs := slices.Clone(w.subs)
	w.owner.mu.Unlock()
	if errs != nil {
		w.owner.onError(w.service, errors.Join(errs...))
	}
	for _, sub := range subs {
		sub.deliver(version, valid)
	}
	return true
}

// fail takes an error. It reports false if the watch has ended.
func (w *watch) fail(err error) bool {
	w.owner.mu.Lock()
	if w.ended {
		w.owner.mu.Unlock()
		return false
	}
	w.lastErr = err
	if errors.Is(err, ErrUnknownService) {
		w.unknown = true
		w.tellLocked()
	}
	w.owner.mu.Unlock()
	w.owner.onError(w.service, err)
	return true
}

// newsLocked returns a channel that is closed when there may be an answer.
func (w *watch) newsLocked() <-chan struct{} {
	if w.news == nil {
		w.news = make(chan struct{})
	}
	return w.news
}

// tell has every Wait look again.
func (w *watch) tell() {
	w.owner.mu.Lock()
	defer w.owner.mu.Unlock()
	w.tellLocked()
}

func (w *watch) tellLocked() {
	if w.news != nil {
		close(w.news)
		w.news = nil
	}
}
