package deadline_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
)

// use makes a call with a try that ends well, and for which something waits as net/http does. It returns the context of the try.
func use(parent context.Context, signals *deadline.Signals, limit time.Duration) *deadline.Context {
	call, try := begin(parent, signals, limit)
	transport, done := context.WithCancelCause(try)
	try.Stop()
	call.Finish()
	done(errors.New("the request is done")) // which is when net/http does so
	<-transport.Done()
	return try
}

// begin begins a call that has a try.
func begin(parent context.Context, signals *deadline.Signals, limit time.Duration) (*deadline.Call, *deadline.Context) {
	call, try := new(deadline.Call), new(deadline.Context)
	try.StartTry(call.Begin(parent, deadline.Limits{Request: 2 * limit}), limit, false)
	try.Lend(signals)
	return call, try
}

// A call that ends well costs the next one less.
func TestSignals_Allocations(t *testing.T) {
	var signals deadline.Signals
	for _, test := range []struct {
		name   string
		parent context.Context
		want   float64 // the call and the try; what net/http would allocate; what watches the parent, and a function that stops it
	}{{"endless", context.Background(), 2 + 2}, {"with an end", t.Context(), 2 + 2 + 2}} {
		if n := testing.AllocsPerRun(100, func() {
			call, try := begin(test.parent, &signals, time.Minute)
			_, done := context.WithCancelCause(try)
			try.Stop()
			call.Finish()
			done(nil)
		}); n > test.want {
			t.Errorf("parent %s: %v allocations, want at most %v", test.name, n, test.want)
		}
	}
}

// The limits of a call are its own, whatever those of the calls before it were.
func TestSignals_Limits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		for _, limit := range []time.Duration{time.Minute, time.Second, time.Hour, 2 * time.Second, 2 * time.Second} {
			before := use(t.Context(), &signals, limit)
			time.Sleep(limit / 3)
			for _, stopped := range []bool{false, true} {
				call, try := begin(t.Context(), &signals, limit)
				began, want := time.Now(), limit
				transport, done := context.WithCancelCause(try)
				if stopped { // then the call goes on to its own limit
					time.Sleep(limit / 2)
					try.Stop()
					want = 2 * limit
				}
				<-transport.Done()
				if took := time.Since(began); took != want {
					t.Errorf("limit %v: ended after %v, want %v", limit, took, want)
				}
				cause, _ := errors.AsType[*deadline.Error](context.Cause(transport))
				if cause == nil || cause.Limit != want || try.Err() != context.DeadlineExceeded || (try.Exceeded() == nil) != stopped {
					t.Errorf("limit %v: ended with %v, %v", limit, context.Cause(transport), try.Err())
				}
				call.Finish() // too late
				done(nil)
			}
			if before.Err() != context.Canceled || before.Exceeded() != nil {
				t.Errorf("limit %v: the call before has ended with %v", limit, before.Err())
			}
		}
	})
}

// The end of a caller's context reaches the call that is under way, and no later one.
func TestSignals_Parent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		gone := errors.New("gone")
		first, cancel := context.WithCancelCause(t.Context())
		use(first, &signals, time.Minute)
		second, cancelSecond := context.WithCancelCause(t.Context())
		_, try := begin(second, &signals, time.Minute)
		transport, done := context.WithCancelCause(try)
		defer done(nil)
		cancel(gone)
		synctest.Wait()
		if transport.Err() != nil {
			t.Errorf("a call has ended with the parent of the one before: %v", context.Cause(transport))
		}
		cancelSecond(gone)
		<-transport.Done()
		if context.Cause(transport) != gone || context.Cause(try) != gone || try.Err() != context.Canceled {
			t.Errorf("ended with %v, %v", context.Cause(try), try.Err())
		}

		soon, cancelSoon := context.WithTimeout(t.Context(), time.Second)
		defer cancelSoon()
		call, try := begin(soon, &signals, time.Minute)
		defer call.Failed(nil)
		<-try.Done()
		if try.Err() != context.DeadlineExceeded || context.Cause(try) != context.DeadlineExceeded {
			t.Errorf("with the caller's deadline: %v, %v", context.Cause(try), try.Err())
		}
	})
}

// Calls that end in all ways at the same time do not end one another.
func TestSignals_AtOnce(t *testing.T) {
	var signals deadline.Signals
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for n := range 500 {
				parent, cancel := context.WithCancel(t.Context())
				limit := time.Hour
				if (n+i)%4 == 0 {
					limit = 50 * time.Microsecond
				}
				call, try := begin(parent, &signals, limit)
				transport, done := context.WithCancelCause(try)
				if (n+i)%3 == 0 {
					go cancel()
				} else if limit == time.Hour && transport.Err() != nil {
					t.Errorf("ended by another call: %v", context.Cause(transport))
				}
				try.Stop()
				if n%5 == 0 {
					call.Failed(errors.New("no answer"))
				} else {
					call.Finish()
				}
				done(nil)
				cancel()
			}
		})
	}
	callers.Wait()
}

// What was lent once is not kept for longer than a call could have taken.
func TestSignals_Idle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		for range 3 {
			use(t.Context(), &signals, time.Minute)
		}
		if n := signals.Free(); n != 1 {
			t.Errorf("%d signals after 3 calls in turn, want 1", n)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := signals.Free(); n != 0 {
			t.Errorf("%d signals after a while without calls", n)
		}
	})
}
