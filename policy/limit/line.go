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

// firstLook is how soon a call that waits for a stream looks again: a stream ends a little after its call.
const firstLook = time.Millisecond

// line is where calls wait, first come, first served, when each HTTP/2 connection has as many streams as its peer permits
// and no more connections may be opened.
type line struct {
	calls atomic.Int64
	turn  chan struct{} // has an element while a call is first in line
}

// busy reports whether calls are in line.
func (l *line) busy() bool {
	return l.calls.Load() > 0
}

// await sends a call as soon as there is a stream for it, or room for another connection. The wait ends with the context of
// the call, or when there has been no connection for the connect timeout.
func (m *multiplexed) await(req *http.Request) (*http.Response, error) {
	w := &waiting{m: m, in: true}
	w.trace.GotConn = func(httptrace.GotConnInfo) { w.leave() } // the next in line may look
	w.req = req.WithContext(httptrace.WithClientTrace(req.Context(), &w.trace))
	if !w.join() {
		body.CloseRequest(req)
		return nil, ErrOverflow
	}
	defer w.leave()
	return w.run()
}

// waiting is a call in line. It belongs to the goroutine of its RoundTrip, on which net/http reports its connection.
type waiting struct {
	m     *multiplexed
	req   *http.Request
	trace httptrace.ClientTrace
	in    bool // in line
	first bool // holds the turn, or has held it
}

// join takes the last place in line, and reports false if that is too far behind.
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

// leave gives up the place in line, once.
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
	since := time.Now() // when there last was a connection, as far as this call knows
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

// try sends the call if it can be sent. Otherwise it returns a channel that is closed when that may have changed.
func (w *waiting) try() (*http.Response, <-chan struct{}, error) {
	for {
		resp, next, err := w.m.roundTrip(w.req)
		if next == nil {
			return resp, nil, err
		}
		w.req = next
		c := w.m.conns
		if !w.m.known(w.req) { // it turned out to speak HTTP/1
			resp, err := c.transport.RoundTrip(w.req)
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

// reservation is room for a connection that was already counted.
type reservation struct {
	spent atomic.Bool
}

type reservationKey struct{}

// errSpent ends a dial for a call that has already made a connection, whose streams were all taken by other calls.
var errSpent = errors.New("limit: no room for a second connection")

// dial sends a call over a new connection that was already counted. If other calls took the connection first, the call was
// not sent, and next is to be sent.
func (m *multiplexed) dial(req *http.Request) (resp *http.Response, next *http.Request, err error) {
	r := new(reservation)
	out, b := hold(req.WithContext(context.WithValue(req.Context(), reservationKey{}, r)))
	resp, err = m.conns.transport.RoundTrip(out)
	if r.spent.CompareAndSwap(false, true) { // there was another connection meanwhile
		m.conns.unreserve()
	}
	if errors.Is(err, errSpent) {
		next, err = b.again(req)
		return nil, next, err
	}
	b.release()
	m.answered(req, resp)
	return resp, nil, err
}

// admit counts a connection, unless that was already done.
func (c *Conns) admit(ctx context.Context, first bool) error {
	if r, ok := ctx.Value(reservationKey{}).(*reservation); ok {
		if !r.spent.CompareAndSwap(false, true) {
			return errSpent
		}
		return nil
	}
	return c.reserve(ctx, first)
}
