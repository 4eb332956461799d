package retry

import (
	"context"
	"io"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"time"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
)

// try makes one try: with req itself if nothing about it has to change, otherwise with one copy. It returns the request that was
// sent. next has what the second and further tries need.
func (l *Loop) try(req *http.Request, a Attempter, n int, r *replay, next step) (
	*http.Response, *http.Request, error) {
	ctx := l.context(req)
	watch := caller.ToWatch(req)
	t := roomOf(a, n)
	if limit := l.Policy.config.PerTryTimeout; limit > 0 || l.Policy.trace {
		atOnce := t != nil
		if t == nil {
			t = new(try)
		}
		t.Traced = l.Policy.trace
		if watch {
			t.Context.Start(ctx, deadline.PerTry, deadline.Within(ctx, limit), false)
		} else {
			t.Context.StartTry(ctx, limit, atOnce)
		}
		if t.Traced || t.Context.Limited() {
			return t.do(req, a, n, r, next)
		}
	}
	if n == 1 && r == nil && (l.Context == nil || caller.SameContext(l.Context, req.Context())) && !watch {
		resp, err := a.Attempt(req, 1)
		return resp, req, err
	}
	var out *http.Request
	if t != nil {
		out = &t.Sent
	} else {
		out = new(http.Request)
	}
	*out = *req.WithContext(numbered(ctx, n, next.tried))
	if err := prepare(out, req, n, r, next.body); err != nil {
		return nil, req, err
	}
	resp, err := a.Attempt(out, n)
	return resp, out, err
}

// try is a try with a limit, or with a trace.
type try attempt.Timed

// roomy is an Attempter that allocates memory for the first try together with its own. It returns nil unless the limits of the call have
// just begun.
type roomy interface {
	Room() *attempt.Timed
}

// roomOf returns the memory that a has for the n-th try, which then begins together with its call. It returns nil if there is none.
func roomOf(a Attempter, n int) *try {
	if first, ok := a.(roomy); ok && n == 1 {
		return (*try)(first.Room())
	}
	return nil
}

// End implements body.Ender.
func (t *try) End(error) { t.Context.Cancel() }

// do makes the try, once its context has started.
func (t *try) do(req *http.Request, a Attempter, n int, r *replay, next step) (
	*http.Response, *http.Request, error) {
	attached := false
	defer func() {
		if !attached {
			t.Context.Cancel()
		}
	}()
	out := &t.Sent
	*out = *req.WithContext(numbered(t.context(), n, next.tried))
	if err := prepare(out, req, n, r, next.body); err != nil {
		return nil, req, err
	}
	resp, err := a.Attempt(out, n)
	inTime := t.Context.Stop()
	switch {
	case err == nil && inTime:
		if attached = true; (*attempt.Timed)(t).NeedsBody() {
			t.Body.Attach(resp, t)
		}
		return resp, out, nil
	case err == nil:
		// The headers arrived as the timer fired. The body would be cut off.
		if resp.Body != nil {
			resp.Body.Close()
		}
		return nil, out, t.Context.Limit()
	case t.Context.Exceeded() != nil:
		return nil, out, attempt.FailedAt(attempt.Endpoint(nil, err), t.Context.Exceeded())
	case t.Traced && !t.Begun.Load():
		return nil, out, failure.Mark(failure.Unsent, err)
	}
	return nil, out, err
}

func (t *try) context() context.Context {
	if !t.Traced {
		return &t.Context
	}
	// The first header is written to a buffer before anything can be sent, in HTTP/1 and HTTP/2 alike.
	return httptrace.WithClientTrace(&t.Context, &httptrace.ClientTrace{
		WroteHeaderField: func(string, []string) { t.Begun.Store(true) },
	})
}

// prepare completes out, the copy of req for the n-th try. again is its body, unless it is the first try.
func prepare(out, req *http.Request, n int, r *replay, again io.ReadCloser) error {
	if r != nil {
		if n == 1 {
			var err error
			if again, err = r.next(); err != nil {
				return err
			}
		}
		// With GetBody a transport can replay the body by itself when it must: on a stale connection or GOAWAY.
		out.GetBody = r.next
	}
	if again != nil {
		out.Body = again
	}
	if n > 1 {
		out.Header = req.Header.Clone()
		if out.Header == nil {
			out.Header = make(http.Header)
		}
		out.Header[attempt.Header] = []string{strconv.Itoa(n)}
	}
	if caller.ToWatch(req) {
		caller.Watch(out, deadline.UploadOf(out.Context()))
	}
	return nil
}

// numbered returns the context of the n-th try, by which retries are recognized, and avoid endpoints.
func numbered(ctx context.Context, n int, tried []string) context.Context {
	if n > 1 {
		return attempt.WithTried(attempt.Mark(ctx, n), tried)
	}
	return ctx
}

// sleep waits, and returns the cause if the caller gives up first.
func (l *Loop) sleep(req *http.Request, d time.Duration) error {
	ctx := l.context(req)
	if d <= 0 {
		if caller.Canceled(req) {
			return caller.ErrCanceled
		}
		return context.Cause(ctx)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-req.Cancel: //lint:ignore SA1019 net/http still honours it
		return caller.ErrCanceled
	}
}

// How much of a discarded response is read so that its connection can be reused.
const (
	drainBytes = 64 << 10
	drainTime  = 100 * time.Millisecond
)

// discard drains and closes the body of resp. A body that is too long or too slow costs the connection.
func discard(resp *http.Response) {
	b := resp.Body
	if b == nil || b == http.NoBody {
		return
	}
	defer b.Close()
	// A body that the transport decompresses cannot be closed while a read waits for its first bytes.
	if resp.ContentLength > drainBytes || resp.Uncompressed || resp.StatusCode == http.StatusSwitchingProtocols {
		return
	}
	timer := time.AfterFunc(drainTime, func() { b.Close() })
	defer timer.Stop()
	_, _ = io.CopyN(io.Discard, b, drainBytes)
}
