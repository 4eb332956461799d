package discovery_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
)

// restless is a resolver that never waits. It counts what it yields, and stops after far too much.
type restless struct {
	next   func(i int64) ([]discovery.Endpoint, error)
	yields atomic.Int64
}

func (r *restless) Watch(ctx context.Context, _ discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return func(yield func([]discovery.Endpoint, error) bool) {
		for yield(r.next(r.yields.Load())) {
			if r.yields.Add(1) > 100_000 {
				<-ctx.Done()
				return
			}
		}
	}
}

// TestWatcher_ResolverThatNeverWaits: such a resolver is slowed down, and its latest set still arrives.
func TestWatcher_ResolverThatNeverWaits(t *testing.T) {
	set := func(i int64) ([]discovery.Endpoint, error) {
		return []discovery.Endpoint{at("10.0.0.1", int(i%60_000)+1)}, nil
	}
	fail := func(int64) ([]discovery.Endpoint, error) { return nil, errors.New("away") }
	for name, test := range map[string]struct {
		next func(i int64) ([]discovery.Endpoint, error)
		most int64 // in a minute
	}{
		"sets":   {set, 100 + 60*100 + 1},
		"errors": {fail, 10 + 60 + 1},
		"both": {func(i int64) ([]discovery.Endpoint, error) {
			if i%2 == 0 {
				return set(i)
			}
			return fail(i)
		}, 2 * (10 + 60 + 1)},
		"nothing": {func(int64) ([]discovery.Endpoint, error) { return nil, nil }, 100 + 60*100 + 1},
		"invalid": {func(int64) ([]discovery.Endpoint, error) { return make([]discovery.Endpoint, 2), nil }, 100 + 60*100 + 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &restless{next: test.next}
				w := discovery.NewWatcher(r, nil)
				defer w.Close()
				var l log
				w.Subscribe(orders, l.update)
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := r.yields.Load(); n > test.most || n < test.most/2 {
					t.Errorf("it yielded %d times in a minute, want up to %d", n, test.most)
				}
			})
		})
	}
}

// TestWatcher_ResolverThatReturnsAtOnce: its watch is begun again after a while, whether or not it yields something.
func TestWatcher_ResolverThatReturnsAtOnce(t *testing.T) {
	for name, yields := range map[string]bool{"nothing": false, "a set": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var begun atomic.Int64
				w := discovery.NewWatcher(resolverFunc(func(yield func([]discovery.Endpoint, error) bool) {
					if begun.Add(1); yields {
						yield([]discovery.Endpoint{at("10.0.0.1", 80)}, nil)
					}
				}), nil)
				defer w.Close()
				var l log
				w.Subscribe(orders, l.update)
				time.Sleep(time.Minute)
				if n := begun.Load(); n < 3 || n > 4*60 {
					t.Errorf("it was begun %d times in a minute", n)
				}
			})
		})
	}
}

type resolverFunc func(yield func([]discovery.Endpoint, error) bool)

func (f resolverFunc) Watch(context.Context, discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return iter.Seq2[[]discovery.Endpoint, error](f)
}
