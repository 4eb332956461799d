package limit_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/limit"
)

const (
	http1 = false
	http2 = true
)

func newPool(t *testing.T, config limit.PoolConfig) *limit.Pool {
	t.Helper()
	pool, err := limit.NewPool(config)
	if err != nil {
		t.Fatal(err)
	}
	return pool
}

func acquire(t *testing.T, pool *limit.Pool, multiplexed bool) limit.Slot {
	t.Helper()
	slot, err := pool.Acquire(t.Context(), multiplexed)
	if err != nil {
		t.Fatalf("Acquire = %v, want a slot", err)
	}
	return slot
}

func refused(t *testing.T, pool *limit.Pool, multiplexed bool) {
	t.Helper()
	if _, err := pool.Acquire(t.Context(), multiplexed); err != limit.ErrOverflow {
		t.Fatalf("Acquire = %v, want ErrOverflow", err)
	}
}

func stats(t *testing.T, pool *limit.Pool, active, pending int, overflows uint64) {
	t.Helper()
	want := limit.Stats{Active: active, Pending: pending, Overflows: overflows}
	if got := pool.Stats(); got != want {
		t.Errorf("Stats = %+v, want %+v", got, want)
	}
}

func TestNewPool_Errors(t *testing.T) {
	for name, config := range map[string]limit.PoolConfig{
		"MaxConnections":           {MaxConnections: -1},
		"MaxPendingRequests":       {MaxPendingRequests: -1},
		"MaxRequests":              {MaxRequests: -1},
		"MaxRequestsPerConnection": {MaxRequestsPerConnection: -1},
		"ConnectTimeout":           {ConnectTimeout: -1},
		"MaxConnectionDuration":    {MaxConnectionDuration: -1},
		"Keepalive.Probes":         {Keepalive: limit.Keepalive{Probes: -1}},
		"Keepalive.Time":           {Keepalive: limit.Keepalive{Time: -1}},
		"Keepalive.Interval":       {Keepalive: limit.Keepalive{Interval: -1}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := limit.NewPool(config)
			if err == nil {
				t.Fatalf("NewPool(%+v) succeeded", config)
			}
			field := reflect.ValueOf(config)
			for part := range strings.SplitSeq(name, ".") {
				field = field.FieldByName(part)
			}
			if want := fmt.Sprintf("limit: PoolConfig.%s is %v, want 0 or more", name, field); err.Error() != want {
				t.Errorf("NewPool(%+v) fails with %q, want %q", config, err, want)
			}
		})
	}
	newPool(t, limit.PoolConfig{IdleTimeout: -1}) // for ever
}

func TestErrors_AreRefusals(t *testing.T) {
	for _, err := range []error{limit.ErrOverflow, limit.ErrRateLimited} {
		if !refusal.Is(err) {
			t.Errorf("%v is not a refusal", err)
		}
	}
}

func TestPool_NoLimits(t *testing.T) {
	var none *limit.Pool
	for _, pool := range []*limit.Pool{none, {}, newPool(t, limit.PoolConfig{})} {
		var slots []limit.Slot
		for range 1000 {
			slots = append(slots, acquire(t, pool, http1), acquire(t, pool, http2))
		}
		if pool != nil {
			stats(t, pool, 2000, 0, 0)
		}
		for _, slot := range slots {
			slot.Release()
		}
		stats(t, pool, 0, 0, 0)
		if pool.Config() != (limit.PoolConfig{}) {
			t.Errorf("Config = %+v", pool.Config())
		}
	}
}

func TestPool_MaxRequests(t *testing.T) {
	pool := newPool(t, limit.PoolConfig{MaxRequests: 2})
	first, second := acquire(t, pool, http1), acquire(t, pool, http2)
	refused(t, pool, http1)
	refused(t, pool, http2)
	stats(t, pool, 2, 0, 2)
	first.Release()
	third := acquire(t, pool, http2)
	refused(t, pool, http1)
	second.Release()
	third.Release()
	stats(t, pool, 0, 0, 3)
}

func TestPool_MaxConnectionsIsNoLimitOverHTTP2(t *testing.T) {
	pool := newPool(t, limit.PoolConfig{MaxConnections: 1, MaxPendingRequests: 1})
	only := acquire(t, pool, http1)
	shared := []limit.Slot{acquire(t, pool, http2), acquire(t, pool, http2), acquire(t, pool, http2)}
	stats(t, pool, 4, 0, 0)
	for _, slot := range shared {
		slot.Release()
	}
	only.Release()
	stats(t, pool, 0, 0, 0)
}

func TestPool_MaxRequestsBelowMaxConnections(t *testing.T) {
	pool := newPool(t, limit.PoolConfig{MaxConnections: 2, MaxRequests: 2})
	a, b := acquire(t, pool, http1), acquire(t, pool, http2)
	refused(t, pool, http1) // a connection is free
	b.Release()
	b = acquire(t, pool, http1)
	refused(t, pool, http1) // none is, and waiting would not help
	a.Release()
	b.Release()
	stats(t, pool, 0, 0, 2)
}

func TestPool_WaitsInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := newPool(t, limit.PoolConfig{MaxConnections: 1, MaxPendingRequests: 3})
		slot := acquire(t, pool, http1)

		var mu sync.Mutex
		var served []int
		contexts := make([]context.CancelCauseFunc, 3)
		errs := make([]error, 3)
		for i := range 3 {
			ctx, cancel := context.WithCancelCause(t.Context())
			contexts[i] = cancel
			go func() {
				slot, err := pool.Acquire(ctx, http1)
				mu.Lock()
				defer mu.Unlock()
				if errs[i] = err; err == nil {
					served = append(served, i)
					time.AfterFunc(time.Second, slot.Release)
				}
			}()
			synctest.Wait() // in line before the next
		}
		stats(t, pool, 1, 3, 0)
		refused(t, pool, http1) // the line is full
		stats(t, pool, 1, 3, 1)

		gone := errors.New("gone")
		contexts[1](gone) // gives its place up
		synctest.Wait()
		stats(t, pool, 1, 2, 1)
		go func() {
			slot, err := pool.Acquire(t.Context(), http1)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				served = append(served, 3)
				time.AfterFunc(time.Second, slot.Release)
			}
		}()
		synctest.Wait()
		slot.Release()
		time.Sleep(4 * time.Second)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if want := []int{0, 2, 3}; !slices.Equal(served, want) {
			t.Errorf("served %v, want %v", served, want)
		}
		if errs[1] != gone {
			t.Errorf("Acquire = %v, want the context's cause", errs[1])
		}
		stats(t, pool, 0, 0, 1)
		contexts[0](nil)
		contexts[2](nil)
	})
}

// endingContext ends as soon as it is waited for, and calls f just before.
type endingContext struct {
	context.Context
	f func()
}

func (c endingContext) Done() <-chan struct{} {
	c.f()
	return c.Context.Done()
}

// A slot that is handed to a call at the moment its context ends is not lost, whichever the call notices first.
func TestPool_SlotSurvivesCancelRace(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	pool := newPool(t, limit.PoolConfig{MaxConnections: 1})
	var got, lost int
	for range 100 {
		slot := acquire(t, pool, http1)
		slot, err := pool.Acquire(endingContext{ended, slot.Release}, http1)
		if err == nil {
			got++
			slot.Release()
		} else {
			lost++
		}
		if stats(t, pool, 0, 0, 0); t.Failed() {
			return // the next would wait for ever
		}
	}
	if got == 0 || lost == 0 {
		t.Errorf("the slot came first %d times and the end %d times, want some of both", got, lost)
	}
}

// At no time are there more calls than allowed, and in the end there are none.
func TestSlotsComeBackUnderRace(t *testing.T) {
	pool := newPool(t, limit.PoolConfig{MaxConnections: 4, MaxPendingRequests: 8, MaxRequests: 6})
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for i := range 300 {
				ctx, cancel := context.WithCancel(t.Context())
				if i%7 == 0 {
					cancel()
				}
				slot, err := pool.Acquire(ctx, worker%4 == 0)
				if err == nil {
					if s := pool.Stats(); s.Active > 6 || s.Pending > 8 {
						t.Errorf("Stats = %+v, beyond the limits", s)
					}
					slot.Release()
				}
				cancel()
			}
		})
	}
	wg.Wait()
	if s := pool.Stats(); s.Active != 0 || s.Pending != 0 {
		t.Errorf("Stats = %+v after all calls ended", s)
	}
}
