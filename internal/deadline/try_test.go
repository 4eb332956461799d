package deadline_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
)

// script makes a call with a try, and does at random what callers, transports and uploads do, with seed. wait says who waits for the end of
// the contexts from the beginning. It returns what can be seen of them meanwhile.
func script(t *testing.T, seed uint64, wait func(call, try context.Context)) string {
	var seen strings.Builder
	synctest.Test(t, func(t *testing.T) {
		r := rand.New(rand.NewPCG(seed, 0))
		parent, gone := context.WithCancelCause(t.Context())
		defer gone(nil)
		var call deadline.Call
		var try deadline.Context
		limit := time.Duration(5+r.IntN(30)) * time.Second
		// So much longer that somebody looks between the two ends: who does not sees either.
		ctx := call.Begin(parent, deadline.Limits{Request: limit + time.Duration(12+r.IntN(20))*time.Second + 1})
		try.StartTry(ctx, limit, false)
		wait(ctx, &try)
		upload := deadline.UploadOf(&try)
		look := func() {
			for _, c := range []context.Context{ctx, &try} {
				at, ok := c.Deadline()
				fmt.Fprintf(&seen, " %v %v", at, ok)
				select {
				case <-c.Done():
					fmt.Fprintf(&seen, " %v (%v)", c.Err(), context.Cause(c))
				default:
					fmt.Fprint(&seen, " goes on")
				}
			}
			fmt.Fprintln(&seen, try.Exceeded())
		}
		for range 2 + r.IntN(9) {
			time.Sleep(time.Duration(1+r.IntN(11))*time.Second + time.Duration(3+r.IntN(1000))*time.Microsecond)
			synctest.Wait()
			what := r.IntN(11)
			fmt.Fprint(&seen, what, ctx.Err(), try.Err())
			switch what {
			case 0, 1:
				fmt.Fprint(&seen, try.Stop())
			case 2:
				upload.Pause()
			case 3:
				upload.Sending()
			case 4:
				upload.Sent()
			case 5, 6:
				upload.Resume()
			case 7:
				if r.IntN(3) == 0 {
					gone(errors.New("the caller is gone"))
				}
			case 8:
				if r.IntN(3) == 0 {
					call.Failed(nil)
				}
			}
		}
		synctest.Wait()
		look()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		look()
		call.Failed(nil)
		try.Cancel()
		look()
	})
	return seen.String()
}

// What a call and its try do does not depend on who waits for their ends, and on whether one timer does for both.
func TestTry_WhoeverWaits(t *testing.T) {
	for seed := range uint64(500) {
		want := script(t, seed, func(call, try context.Context) { call.Done(); try.Done() }) // each has a timer and a child
		for name, wait := range map[string]func(call, try context.Context){
			"nobody":           func(context.Context, context.Context) {},
			"the try":          func(_, try context.Context) { try.Done() },
			"the try, then it": func(call, try context.Context) { try.Done(); call.Done() },
			"the try, with a signal that an earlier call has used": func(_, try context.Context) {
				var signals deadline.Signals
				use(context.Background(), &signals, time.Duration(1+seed%40)*time.Second)
				try.(*deadline.Context).Lend(&signals)
				try.Done()
			},
		} {
			if got := script(t, seed, wait); got != want {
				t.Fatalf("seed %d, %s waits:\n%s\nif both wait:\n%s", seed, name, got, want)
			}
		}
	}
}

// A try that ends with its call needs no goroutine, and half of what it would need alone.
func TestTry_Allocations(t *testing.T) {
	// The call and the try; a context and its cancel function; the channel of that; a timer and its callback.
	if n := testing.AllocsPerRun(100, func() {
		call, try := new(deadline.Call), new(deadline.Context)
		try.StartTry(call.Begin(context.Background(), deadline.Limits{Request: time.Hour}), time.Minute, false)
		try.Done()
		try.Stop()
		call.Failed(nil)
	}); n > 7 {
		t.Errorf("%v allocations, want at most 7", n)
	}
}

// Several tries of one call may be under way at once. Each ends with it.
func TestTry_OfManyAtOnce(t *testing.T) {
	var call deadline.Call
	ctx := call.Begin(context.Background(), deadline.Limits{Request: time.Hour})
	var tries [3]deadline.Context
	for i := range tries {
		tries[i].StartTry(ctx, time.Minute, false)
		tries[i].Done()
	}
	call.Failed(nil)
	for i := range tries {
		if <-tries[i].Done(); tries[i].Err() != context.Canceled {
			t.Errorf("try %d: %v", i, tries[i].Err())
		}
	}
}

// What a call has waited for before counts against its own limit, and not against that of its first try.
func TestTry_OfACallThatHasWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var call deadline.Call
		var try deadline.Context
		began := time.Now()
		ctx := call.BeginAt(t.Context(), deadline.Limits{Request: 10 * time.Second}, began.Add(-time.Minute), time.Minute, 3*time.Second)
		try.StartTry(ctx, 5*time.Second, true)
		<-try.Done()
		if took := time.Since(began); took != 5*time.Second {
			t.Errorf("the try has ended after %v, want 5s", took)
		}
		<-ctx.Done()
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("the call has ended after %v, want 7s", took)
		}
		call.Failed(nil)
		var last deadline.Context
		if last.StartTry(call.BeginAt(t.Context(), deadline.Limits{Request: 10 * time.Second}, time.Now(), 0, 6*time.Second), 5*time.Second, true); last.Limited() {
			t.Error("a try is limited that could not outlast its call")
		}
		call.Failed(nil)
	})
}

// The longest limit there can be is not exceeded at once.
func TestCall_LongestLimit(t *testing.T) {
	var call deadline.Call
	ctx := call.BeginAt(t.Context(), deadline.Limits{Request: math.MaxInt64}, time.Now().Add(-time.Minute), time.Minute, 0)
	if err := ctx.Err(); err != nil {
		t.Error(err)
	}
	if at, ok := ctx.Deadline(); !ok || time.Until(at) < time.Hour {
		t.Errorf("the deadline is %v, %t", at, ok)
	}
	call.Failed(nil)
}

// A body that stands still ends the try that it came with.
func TestTry_EndsWithAStalledBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var call deadline.Call
		var try deadline.Context
		try.StartTry(call.Begin(t.Context(), deadline.Limits{Request: time.Hour, BodyIdle: time.Second}), time.Minute, false)
		waits := try.Done()
		try.Stop()
		resp := &http.Response{StatusCode: http.StatusOK, Body: silent{&try}}
		call.Watch(resp)
		_, err := resp.Body.Read(make([]byte, 1))
		<-waits
		limit, ok := errors.AsType[*deadline.Error](err)
		if !ok || limit.Kind != deadline.BodyIdle || context.Cause(&try) != err {
			t.Errorf("read: %v; cause of the try: %v", err, context.Cause(&try))
		}
		resp.Body.Close()
		call.End(nil)
	})
}

// silent is a body that never comes.
type silent struct{ ctx context.Context }

func (s silent) Read([]byte) (int, error) {
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

func (silent) Close() error { return nil }

// The value of a header is one that was used before, if the time left is the same, and nobody's slice is another's.
func TestTexts(t *testing.T) {
	var texts deadline.Texts
	var room [1]string
	a, b := make(http.Header, 1), make(http.Header, 1)
	texts.SetHeader(a, 5*time.Second, &room)
	texts.SetHeader(b, 5*time.Second, nil)
	b[deadline.Header][0] = "changed"
	if got := a.Get(deadline.Header); got != "5000" {
		t.Errorf("%s: %q, want 5000", deadline.Header, got)
	}
	for _, test := range []struct {
		left time.Duration
		want string
	}{{-time.Second, "1"}, {0, "1"}, {1500 * time.Microsecond, "1"}, {13 * time.Millisecond, "13"}, {5 * time.Second, "5000"}} {
		if texts.SetHeader(a, test.left, &room); a.Get(deadline.Header) != test.want {
			t.Errorf("%v: %q, want %s", test.left, a.Get(deadline.Header), test.want)
		}
		if h := texts.Alone(test.left); len(h) != 1 || h.Get(deadline.Header) != test.want {
			t.Errorf("%v: %v alone, want %s", test.left, h, test.want)
		}
	}
	usual := []time.Duration{time.Second, 2 * time.Second, 5 * time.Second}
	if n := testing.AllocsPerRun(100, func() {
		for _, limit := range usual {
			texts.SetHeader(a, limit, &room)
			texts.Alone(limit)
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// What a caller's context carries is seen through a call and its try, and what net/http derives from the try needs no goroutine, whoever waits.
func TestTry_Values(t *testing.T) {
	type key struct{}
	var signals deadline.Signals
	for name, wait := range map[string]func(call context.Context, try *deadline.Context){
		"nobody":                 func(context.Context, *deadline.Context) {},
		"the try":                func(_ context.Context, try *deadline.Context) { try.Done() },
		"the try, with a signal": func(_ context.Context, try *deadline.Context) { try.Lend(&signals); try.Done() },
		"the call":               func(call context.Context, _ *deadline.Context) { call.Done() },
	} {
		gone := errors.New("gone")
		parent, cancel := context.WithCancelCause(t.Context())
		var call deadline.Call
		var try deadline.Context
		ctx := call.Begin(context.WithValue(parent, key{}, name), deadline.Limits{Request: time.Hour})
		try.StartTry(ctx, time.Minute, false)
		wait(ctx, &try)
		before := runtime.NumGoroutine()
		derived, done := context.WithCancelCause(&try)
		if n := runtime.NumGoroutine(); n > before {
			t.Errorf("%s waits: a derived context has a goroutine", name)
		}
		for _, c := range []context.Context{ctx, &try, derived} {
			if got := c.Value(key{}); got != name {
				t.Errorf("%s waits: Value = %v, want %q", name, got, name)
			}
		}
		cancel(gone)
		if <-derived.Done(); context.Cause(derived) != gone || context.Cause(&try) != gone || context.Cause(ctx) != gone {
			t.Errorf("%s waits: ended with %v, %v, %v", name, context.Cause(derived), context.Cause(&try), context.Cause(ctx))
		}
		done(nil)
		call.Failed(nil)
	}
}
