package limit

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/body"
)

// firstLook is how soon a call that waits for a stream looks for one again. A stream ends shortly after its call.
const firstLook = time.Millisecond

// line is the queue of calls that wait for an HTTP/2 stream, first come, first served. Calls wait if each connection has as many
// streams as its peer permits, and no more connections may be opened.
type line struct {
	calls atomic.Int64
	turn  chan struct{} // a semaphore; held by the call that is first in line
}

// busy reports whether calls are waiting.
func (l *line) busy() bool {
	return l.calls.Load() > 0
}

// await sends a call as soon as there is a stream for it, or room for another connection. It gives up when the context of the call
// ends, or when there was no connection for the duration of the connect timeout.
func (m *multiplexed) await(req *http.Request) (*http.Response, error) {
	w := &waiting{m: m, in: true}
	w.trace.GotConn = func(httptrace.GotConnInfo) { w.leave() } // the next call in line may try
	w.req = req.WithContext(httptrace.WithClientTrace(req.Context(), &w.trace))
	if !w.join() {
		body.CloseRequest(req)
		return nil, ErrOverflow
	}
	defer w.leave()
	return w.run()
}

// waiting is a call in line. Only the goroutine of its RoundTrip uses it; net/http calls GotConn on that goroutine too.
type waiting struct {
	m     *multiplexed
	req   *http.Request
	trace httptrace.ClientTrace
	in    bool // in line
	first bool // it has got the turn, which leave gives back
}

// join takes the last place in line. It reports false if too many calls are waiting.
func (w *waiting) join() bool {
	p, l := w.m.conns.pool, &w.m.line
	l.calls.Add(1)
	n := p.streams.Add(1)
	if limit := int64(p.config.MaxPendingRequests); limit > 0 && n > limit {
		w.leave()
		p.overflows.Add(1)
		return false
	}
	select {
	case l.turn <- struct{}{}:
		w.first = true
	default:
	}
	return true
}

// leave gives up the place in line. Only the first call has an effect.
func (w *waiting) leave() {
	if !w.in {
		return
	}
	w.in = false
	w.m.conns.pool.streams.Add(-1)
	w.m.line.calls.Add(-1)
	if w.first {
		<-w.m.line.turn
	}
}

func (w *waiting) run() (*http.Response, error) {
	c, ctx := w.m.conns, w.req.Context()
	timeout := c.connectTimeout()
	since := time.Now() // when this call last saw a connection
	look := firstLook
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	for {
		var room <-chan struct{}
		turn := w.m.line.turn
		if w.first {
			resp, waiting, err := w.try()
			if waiting == nil {
				return resp, err
			}
			turn, room = nil, waiting
			timer.Reset(look)
		} else {
			timer.Reset(timeout)
		}
		if c.connected() {
			since = time.Now()
		} else if time.Since(since) >= timeout {
			body.CloseRequest(w.req)
			c.pool.overflows.Add(1)
			return nil, fmt.Errorf("%w: %w", ErrOverflow, context.DeadlineExceeded)
		}
		select {
		case turn <- struct{}{}:
			w.first = true
		case <-room:
			look = firstLook
		case <-timer.C:
			look = min(2*look, roomCheck)
		case <-ctx.Done():
			body.CloseRequest(w.req)
			return nil, context.Cause(ctx)
		}
	}
}

// try sends the call if possible. Otherwise it returns a channel that is closed when it should be called again.
func (w *waiting) try() (*http.Response, <-chan struct{}, error) {
	for {
		resp, next, err := w.m.roundTrip(w.req)
		if next == nil {
			return resp, nil, err
		}
		w.req = next
		c := w.m.conns
		if !w.m.known(w.req) { // the peer turned out to speak HTTP/1
			resp, err := c.through(w.req)
			return resp, nil, err
		}
		if _, ok := c.take(false, false); !ok {
			c.evict()
			if room, ok := c.take(true, false); !ok {
				return nil, room, nil
			}
		}
		if resp, next, err = w.m.dial(w.req); next == nil {
			return resp, nil, err
		}
		w.req = next
	}
}

// reservation is room for one connection, which was already counted.
type reservation struct {
	spent atomic.Bool
}

type reservationKey struct{}

// errSpent fails the second dial of a call. Other calls have taken all streams of the connection that the first dial made.
var errSpent = errors.New("limit: no room for a second connection")

// dial sends a call over a new connection, which was already counted. If other calls take all of its streams first, the call is not
// sent, and dial returns the request to send next.
func (m *multiplexed) dial(req *http.Request) (resp *http.Response, next *http.Request, err error) {
	r := new(reservation)
	out, b := hold(req.WithContext(context.WithValue(req.Context(), reservationKey{}, r)))
	resp, err = m.conns.transport.RoundTrip(out)
	if r.spent.CompareAndSwap(false, true) { // the call got another connection, and did not dial
		m.conns.unreserve()
	}
	if errors.Is(err, errSpent) {
		next, err = b.again(req)
		return nil, next, err
	}
	b.release(err)
	m.answered(req, resp)
	return resp, nil, err
}

// admit counts a connection, unless it was already counted.
func (c *Conns) admit(ctx context.Context, first bool) error {
	if r, ok := ctx.Value(reservationKey{}).(*reservation); ok {
		if !r.spent.CompareAndSwap(false, true) {
			return errSpent
		}
		return nil
	}
	return c.reserve(ctx, first)
}
