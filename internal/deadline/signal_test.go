package deadline_test

import (
	"context"
	"errors"
	"reflect"
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
		want   float64 // the call and the try; what net/http would allocate
	}{{"endless", context.Background(), 2 + 2}, {"with an end", t.Context(), 2 + 2}} {
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

// A caller's context that ends just as its call ends does not reach the next call, which may have begun by the time that is noticed.
func TestSignals_ParentOfACallThatHasJustEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		for range 100 {
			parent, cancel := context.WithCancel(t.Context())
			call, try := begin(parent, &signals, time.Minute)
			_, done := context.WithCancelCause(try)
			cancel()
			try.Stop()
			call.Finish()
			done(nil)
			next, try := begin(t.Context(), &signals, time.Minute)
			transport, done := context.WithCancelCause(try)
			synctest.Wait()
			if transport.Err() != nil {
				t.Fatalf("ended by the caller of another call: %v", context.Cause(transport))
			}
			next.Finish()
			done(nil)
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

// watched returns how many watch the end of a context of package context.
func watched(ctx context.Context) int {
	return reflect.ValueOf(ctx).Elem().FieldByName("children").Len()
}

// A parent that many calls in turn have in common is watched from one to the next, but not for longer than a call could have taken.
func TestSignals_SameParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		parent, cancel := context.WithCancel(context.Background())
		defer cancel()
		other, cancel := context.WithCancel(context.Background())
		defer cancel()
		for range 5 {
			use(parent, &signals, time.Minute)
			use(other, &signals, time.Minute)
			if watched(parent) != 0 || watched(other) != 0 {
				t.Error("a parent is watched after a call that is the only one in a row")
			}
		}
		for n := range 10 {
			use(parent, &signals, time.Minute)
			if kept := watched(parent) == 1; kept != (n >= 3) {
				t.Errorf("after %d calls with the same parent: watched: %v", n+1, kept)
			}
		}
		use(other, &signals, time.Minute)
		if watched(parent) != 0 {
			t.Error("a parent is watched although a call with another one has come since")
		}
		for range 10 {
			use(parent, &signals, time.Minute)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if watched(parent) != 0 {
			t.Error("a parent is watched after a while without calls")
		}
	})
}

// request is a context of a program, which uses its memory again once the request is over. The end of others is the same.
type request struct {
	context.Context
	t    *testing.T
	over bool
}

func (r *request) used() {
	if r.over {
		r.t.Error("used after the request")
	}
}

func (r *request) Done() <-chan struct{} {
	r.used()
	return r.Context.Done()
}

func (r *request) Value(key any) any {
	r.used()
	return r.Context.Value(key)
}

// Nothing of a parent is used after the call, even if what ends it is watched for longer, nor does that stay watched for ever.
func TestSignals_ParentOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		program, cancel := context.WithCancel(context.Background())
		defer cancel()
		serve := func() {
			parent := &request{Context: program, t: t}
			use(context.WithValue(parent, parent, 1), &signals, time.Minute)
			parent.over = true
		}
		for range 3 {
			for range 10 {
				serve()
			}
			use(t.Context(), &signals, time.Minute)
			if n := watched(program); n != 0 {
				t.Errorf("the context of the program is watched by %d", n)
			}
		}
		for range 10 {
			serve()
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if n := watched(program); n != 0 {
			t.Errorf("the context of the program is watched by %d after a while without calls", n)
		}
	})
}

// watchable is a context that package context does not know, and counts who waits for its end.
type watchable struct {
	context.Context
	watched int
}

func (w *watchable) Value(any) any { return nil }

// AfterFunc is what package context calls.
func (w *watchable) AfterFunc(f func()) func() bool {
	stop := context.AfterFunc(w.Context, f)
	w.watched++
	return func() bool {
		w.watched--
		return stop()
	}
}

// A parent that only the program can tell about is watched during calls only.
func TestSignals_OwnParent(t *testing.T) {
	var signals deadline.Signals
	parent := &watchable{Context: t.Context()}
	for range 10 {
		if use(parent, &signals, time.Minute); parent.watched != 0 {
			t.Fatal("watched after a call")
		}
	}
}

// reused is a context whose memory a program uses for one request after another.
type reused struct{ context.Context }

// A parent is known by its end, not by its address.
func TestSignals_ReusedParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		parent := new(reused)
		for range 10 {
			var cancel context.CancelFunc
			parent.Context, cancel = context.WithCancel(t.Context())
			for range 10 {
				use(context.WithValue(parent, parent, 1), &signals, time.Minute)
			}
			cancel()
			synctest.Wait()
		}
		gone := errors.New("gone")
		for range 10 { // with what was kept, but for another request
			var cancel context.CancelCauseFunc
			parent.Context, cancel = context.WithCancelCause(t.Context())
			defer cancel(nil)
			for range 10 {
				use(parent, &signals, time.Minute)
			}
			parent.Context, cancel = context.WithCancelCause(t.Context())
			_, try := begin(parent, &signals, time.Minute)
			over := try.Done()
			cancel(gone)
			<-over
			if context.Cause(try) != gone {
				t.Errorf("ended with %v, want %v", context.Cause(try), gone)
			}
		}
	})
}

// The end of a parent that many calls have in common reaches the call that is under way, and no call with another parent.
func TestSignals_EndOfSameParent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signals deadline.Signals
		gone := errors.New("gone")
		for _, between := range []bool{false, true} {
			parent, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			ctx, forget := context.WithTimeout(parent, time.Hour)
			defer forget()
			for range 10 {
				use(ctx, &signals, time.Minute)
			}
			if between { // calls
				cancel(gone)
				ctx, forget = context.WithTimeout(t.Context(), time.Second)
				defer forget()
			}
			call, try := begin(ctx, &signals, time.Minute)
			transport, done := context.WithCancelCause(try)
			synctest.Wait()
			if transport.Err() != nil {
				t.Errorf("ended by the parent of the calls before: %v", context.Cause(transport))
			}
			cause, err := gone, context.Canceled
			if between {
				cause, err = context.DeadlineExceeded, context.DeadlineExceeded
			} else {
				cancel(gone)
			}
			<-transport.Done()
			if context.Cause(transport) != cause || context.Cause(try) != cause || try.Err() != err {
				t.Errorf("ended with %v, %v, want %v", context.Cause(try), try.Err(), cause)
			}
			call.Finish() // too late
			done(nil)
		}
		if n := signals.Free(); n != 0 {
			t.Errorf("%d signals are kept although their contexts have ended", n)
		}
	})
}

// Parents that end while others use what was lent for their calls end only their own.
func TestSignals_SameParentAtOnce(t *testing.T) {
	var signals deadline.Signals
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			for range 100 {
				parent, cancel := context.WithCancel(t.Context())
				defer cancel()
				for range 6 + i {
					call, try := begin(parent, &signals, time.Hour)
					transport, done := context.WithCancelCause(try)
					if try.Stop(); transport.Err() != nil {
						t.Errorf("ended by another call: %v", context.Cause(transport))
					}
					call.Finish()
					done(nil)
				}
				if i%2 == 0 {
					cancel() // between calls
					continue
				}
				call, try := begin(parent, &signals, time.Hour)
				transport, done := context.WithCancelCause(try)
				go cancel()
				<-transport.Done()
				call.Failed(transport.Err())
				done(nil)
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
