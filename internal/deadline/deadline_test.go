package deadline_test

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
)

func TestContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var expiring, stopped, canceled deadline.Context
		for _, c := range []*deadline.Context{&expiring, &stopped, &canceled} {
			c.Start(t.Context(), deadline.PerTry, time.Second, false)
			if _, ok := c.Deadline(); ok {
				t.Error("a deadline was announced")
			}
			defer c.Cancel()
		}
		if !stopped.Stop() {
			t.Error("Stop in time = false")
		}
		canceled.Cancel()
		canceled.Cancel()
		time.Sleep(time.Minute)

		var limit *deadline.Error
		if !errors.As(context.Cause(&expiring), &limit) || limit.Kind != deadline.PerTry || limit.Limit != time.Second {
			t.Errorf("cause = %v", context.Cause(&expiring))
		}
		if expiring.Err() != context.DeadlineExceeded || expiring.Exceeded() == nil || expiring.Stop() {
			t.Errorf("expired: Err = %v, Exceeded = %v", expiring.Err(), expiring.Exceeded())
		}
		expiring.Cancel()
		if expiring.Exceeded() == nil {
			t.Error("Cancel made the limit forgotten")
		}
		if stopped.Err() != nil || stopped.Exceeded() != nil {
			t.Errorf("stopped: Err = %v", stopped.Err())
		}
		if canceled.Err() != context.Canceled || canceled.Exceeded() != nil {
			t.Errorf("canceled: Err = %v, Exceeded = %v", canceled.Err(), canceled.Exceeded())
		}
	})
}

func TestContext_ParentEndsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		parent, cancel := context.WithCancelCause(t.Context())
		var c deadline.Context
		c.Start(parent, deadline.Request, time.Second, true)
		defer c.Cancel()
		if at, ok := c.Deadline(); !ok || time.Until(at) != time.Second {
			t.Errorf("Deadline = %v, %v", at, ok)
		}
		cancel(boom)
		time.Sleep(time.Minute)
		if context.Cause(&c) != boom || c.Err() != context.Canceled || c.Exceeded() != nil {
			t.Errorf("cause %v, Err %v, Exceeded %v, want the parent's", context.Cause(&c), c.Err(), c.Exceeded())
		}
	})
}

// TestContext_NoGoroutine holds the promise that makes a limit cheap: contexts derived from it, as net/http does, need
// no goroutine to follow it.
func TestContext_NoGoroutine(t *testing.T) {
	var c deadline.Context
	c.Start(t.Context(), deadline.PerTry, time.Hour, true)
	before := runtime.NumGoroutine()
	children := make([]context.Context, 100)
	for i := range children {
		ctx, cancel := context.WithCancel(&c)
		defer cancel()
		children[i] = ctx
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines for 100 derived contexts", n-before)
	}
	c.Cancel()
	for _, child := range children {
		if child.Err() == nil {
			t.Fatal("a derived context did not end")
		}
	}
}

func TestContext_Allocations(t *testing.T) {
	// The Context itself; a context and its cancel function; a timer and its callback.
	if n := testing.AllocsPerRun(100, func() {
		c := new(deadline.Context)
		c.Start(context.Background(), deadline.PerTry, time.Hour, false)
		c.Cancel()
	}); n > 5 {
		t.Errorf("%v allocations, want at most 5", n)
	}
}

func TestCall_NoLimits(t *testing.T) {
	soon, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, test := range []struct {
		name   string
		parent context.Context
		limits deadline.Limits
	}{
		{"none", t.Context(), deadline.Limits{}},
		{"beyond the caller's", soon, deadline.Limits{Request: time.Hour}},
	} {
		var c deadline.Call
		if ctx := c.Begin(test.parent, test.limits); ctx != test.parent {
			t.Errorf("%s: Begin = %v, want the parent", test.name, ctx)
		}
		boom := errors.New("boom")
		if err := c.Failed(boom); err != boom {
			t.Errorf("%s: Failed = %v", test.name, err)
		}
		resp := &http.Response{StatusCode: 200, Body: http.NoBody}
		if c.Watch(resp); resp.Body != http.NoBody {
			t.Errorf("%s: body was wrapped", test.name)
		}
	}
}

// While a request is sent, what counts is whether the peer takes it.
func TestUpload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var call, try deadline.Context
		call.Start(t.Context(), deadline.Request, 10*time.Second, true)
		defer call.Cancel()
		try.Start(&call, deadline.PerTry, 5*time.Second, false)
		defer try.Cancel()
		upload := deadline.UploadOf(&try)
		time.Sleep(time.Second)
		for range 10 {
			upload.Pause() // for what the caller has to send
			time.Sleep(time.Hour)
			upload.Sending()
			if _, ok := call.Deadline(); ok {
				t.Error("a deadline is announced while it stands still")
			}
			time.Sleep(299 * time.Second)
		}
		upload.Resume()
		if at, ok := call.Deadline(); !ok || time.Until(at) != 9*time.Second {
			t.Errorf("Deadline = %v, %v; want what was left", at, ok)
		}
		time.Sleep(time.Second)
		if call.Err() != nil || try.Err() != nil {
			t.Fatalf("ended: %v, %v", context.Cause(&call), context.Cause(&try))
		}
		upload.Pause()
		upload.Sending()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		stalled, ok := errors.AsType[*deadline.Error](try.Exceeded())
		if !ok || stalled.Kind != deadline.SendIdle || stalled.Limit != 5*time.Minute || try.Err() != context.DeadlineExceeded || try.Stop() {
			t.Errorf("Exceeded = %v, Err = %v", try.Exceeded(), try.Err())
		}
		if call.Err() != nil {
			t.Errorf("the call has ended with its try: %v", context.Cause(&call))
		}
		upload.Sending() // the try has ended, so it is up to the call
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if stalled, ok := errors.AsType[*deadline.Error](call.Exceeded()); !ok || stalled.Kind != deadline.SendIdle {
			t.Errorf("Exceeded = %v", call.Exceeded())
		}
	})
}

// What ends a wait just when it would have been too long comes before it or after, and nothing gets stuck.
func TestUpload_AtTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			var c deadline.Context
			c.Start(t.Context(), deadline.Request, time.Second, true)
			upload := deadline.UploadOf(&c)
			upload.Pause()
			upload.Sending()
			time.Sleep(5 * time.Minute)
			upload.Pause() // while the timer fires
			ended := c.Stop()
			time.Sleep(time.Hour)
			synctest.Wait()
			if ended != (c.Err() == nil) {
				t.Errorf("Stop = %v, and then the context ended with %v", ended, c.Err())
			}
			c.Cancel()
		}
	})
}

// A caller that sends no time, or one that could mean anything, has not said for how long it waits.
func TestFromHeader(t *testing.T) {
	for _, test := range []struct {
		values []string
		want   time.Duration
	}{
		{nil, 0},
		{[]string{"1500"}, 1500 * time.Millisecond},
		{[]string{"9223372036854"}, 9223372036854 * time.Millisecond},
		{[]string{"9223372036855"}, 0},       // which overflows
		{[]string{"18446744073710"}, 0},      // which overflows to less than a millisecond
		{[]string{"9223372036854775808"}, 0}, // as text
		{[]string{"0"}, 0},
		{[]string{"-1"}, 0},
		{[]string{"1.5"}, 0},
		{[]string{""}, 0},
		{[]string{"1500", "1500"}, 0},
	} {
		if got := deadline.FromHeader(http.Header{deadline.Header: test.values}); got != test.want {
			t.Errorf("FromHeader(%q) = %v, want %v", test.values, got, test.want)
		}
	}
}
