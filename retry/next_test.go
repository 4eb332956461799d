package retry_test

import (
	"context"
	"testing"
	"time"

	"github.com/nosidecar/mesh/retry"
)

// TestLoop_NextAfter pins what sets it apart from Next: the wait is the server's.
func TestLoop_NextAfter(t *testing.T) {
	within := func(d time.Duration) func() (context.Context, context.CancelFunc) {
		return func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), d) }
	}
	for _, test := range []struct {
		name    string
		config  retry.Config
		n       int
		asked   time.Duration
		context func() (context.Context, context.CancelFunc)
		ok      bool
		stopped retry.Reason
	}{
		{name: "at once", config: retry.Config{Retries: 1, Backoff: time.Hour, MaxBackoff: time.Hour}, n: 1, ok: true},
		{name: "as asked", config: retry.Config{Retries: 1, Backoff: time.Hour, MaxBackoff: time.Hour}, n: 1,
			asked: time.Second, ok: true},
		{name: "too long", config: retry.Config{Retries: 1, MaxRetryAfter: time.Second}, n: 1, asked: 2 * time.Second,
			stopped: retry.OutOfTime},
		{name: "no limit", config: retry.Config{Retries: 1, MaxRetryAfter: -1}, n: 1, asked: time.Hour, ok: true},
		{name: "no retry left", config: retry.Config{Retries: 1}, n: 2, stopped: retry.LimitReached},
		{name: "does not fit", config: retry.Config{Retries: 1}, n: 1, asked: 5 * time.Second,
			context: within(time.Second), stopped: retry.OutOfTime},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			if test.context != nil {
				var cancel context.CancelFunc
				ctx, cancel = test.context()
				defer cancel()
			}
			loop := retry.Loop{Policy: policy(t, test.config), Rand: func() float64 { return 0.9 }}
			wait, stopped, ok := loop.NextAfter(ctx, test.n, test.asked)
			if ok != test.ok || !ok && stopped != test.stopped || ok && wait != test.asked {
				t.Errorf("NextAfter(%d, %v) = %v, %v, %v", test.n, test.asked, wait, stopped, ok)
			}
		})
	}
}

func TestOn_HTTP(t *testing.T) {
	on, err := retry.ParseOn("gateway-error,retriable-4xx,418")
	if err != nil {
		t.Fatal(err)
	}
	for code, want := range map[int]bool{200: false, 409: true, 418: true, 500: false, 502: true, 504: true, 505: false} {
		if got := on.HTTP(code); got != want {
			t.Errorf("HTTP(%d) = %v, want %v", code, got, want)
		}
	}
}
