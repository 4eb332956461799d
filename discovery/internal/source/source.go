// Package source lets a [discovery.Watcher] follow a service without a goroutine that waits for changes. It also makes the Watch of such a
// resolver, for everybody else.
package source

import (
	"context"
	"iter"
	"time"

	"github.com/nosidecar/mesh/internal/pause"
)

// Source is the watch of a service by a resolver that waits for nothing between changes, and so needs no goroutine then. E is
// discovery.Endpoint, which this package cannot import.
type Source[E any] interface {
	// Step yields what is new, until yield returns false, and returns when the next step is due. asked says that somebody has asked for
	// it. Steps are taken one at a time.
	Step(ctx context.Context, asked bool, yield func([]E, error) bool) Turn

	// Stop ends the watch. It is called once. A step may be under way.
	Stop()
}

// Turn says when the next step of a source is due: when the source has something new, or after a time.
type Turn struct {
	After time.Duration // 0 means only when there is something new
	Least time.Duration // not before, whatever happens; less than 0 means that asking changes nothing
}

// Taker takes the source of a watch instead of what the watch yields.
type Taker[E any] struct {
	// Resolver is what is watched. The source of another resolver is not taken: the one around it may yield something else.
	Resolver any

	// Wake is called when the source has something new, also while a step is taken. The source may hold its locks.
	Wake func()

	// Asked has an item when somebody has asked for a step of a source that was not taken.
	Asked <-chan struct{}

	// Source is nil until the watch has ended because its source was taken.
	Source Source[E]
}

type takerKey struct{}

// Context returns a context for the watch.
func (t *Taker[E]) Context(ctx context.Context) context.Context {
	return context.WithValue(ctx, takerKey{}, t)
}

// takes reports whether a source of a resolver of type R, or *R, is taken.
func takes[R, E any](t *Taker[E]) bool {
	switch t.Resolver.(type) { // and nothing that embeds them: its Watch may differ
	case R, *R:
		return true
	}
	return false
}

// Watch is the Watch of a resolver of type R whose watches are sources. begin is given a function that the source calls when it has something
// new.
func Watch[R, E any](ctx context.Context, begin func(wake func()) Source[E]) iter.Seq2[[]E, error] {
	return func(yield func([]E, error) bool) {
		if ctx.Err() != nil {
			return
		}
		taker, _ := ctx.Value(takerKey{}).(*Taker[E])
		if taker == nil {
			taker = new(Taker[E]) // nothing asks
		}
		if takes[R](taker) {
			taker.Source = begin(taker.Wake)
			return
		}
		woken := make(chan struct{}, 1)
		s := begin(func() {
			select {
			case woken <- struct{}{}:
			default: // the next step will find the latest
			}
		})
		defer s.Stop()
		follow(ctx, s, woken, taker.Asked, yield)
	}
}

// follow takes the steps of a source until ctx ends or yield returns false.
func follow[E any](ctx context.Context, s Source[E], woken, asked <-chan struct{}, yield func([]E, error) bool) {
	for byRequest := false; ctx.Err() == nil; {
		select {
		case <-asked: // which comes in time for this step
		default:
		}
		told := true
		next := s.Step(ctx, byRequest, func(endpoints []E, err error) bool {
			told = ctx.Err() == nil && yield(endpoints, err)
			return told
		})
		if !told {
			return
		}
		byRequest = next.await(ctx, woken, asked)
	}
}

// await waits until it is time for the next step, and reports whether somebody has asked for that.
func (t Turn) await(ctx context.Context, woken, asked <-chan struct{}) (byRequest bool) {
	var due <-chan time.Time
	if t.After > 0 {
		timer := time.NewTimer(t.After)
		defer timer.Stop()
		due = timer.C
	}
	if t.After == 0 || t.Least < 0 {
		asked = nil // asking changes nothing
	}
	began := time.Now()
	select {
	case <-due:
	case <-woken:
	case <-asked:
		byRequest = true
		_ = pause.For(ctx, min(t.After, t.Least)-time.Since(began))
	case <-ctx.Done():
	}
	return byRequest
}

// Fixed is the source of a set, or of an error, that never changes.
type Fixed[E any] struct {
	Endpoints []E
	Err       error
}

// Step implements Source.
func (f Fixed[E]) Step(_ context.Context, _ bool, yield func([]E, error) bool) Turn {
	yield(f.Endpoints, f.Err)
	return Turn{}
}

// Stop implements Source.
func (f Fixed[E]) Stop() {}
