package limit

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptrace"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
)

// opening is a connection that one call opens and others wait for, because they will share it if it speaks HTTP/2. Without it, as in net/http,
// each of a hundred calls that find no connection would dial, and ninety-nine handshakes would be in vain.
type opening struct {
	done chan struct{} // closed when there is a connection, or none came about
	err  error         // why none came about, if that concerns all calls; set before done is closed
}

// mostWaits is how many openings a call waits for. If others have taken all of these connections, each takes only few calls, and calls should
// not wait for one handshake after another.
const mostWaits = 4

// fewCalls is below which MaxRequestsPerConnection calls open their own connections: they would wait for one handshake after another, too.
const fewCalls = 100

// share sends a call over a connection that calls share: an open one, one that another call is opening, or one that it opens itself.
// Calls to a peer that speaks HTTP/1 have their own.
func (m *multiplexed) share(req *http.Request) (*http.Response, error) {
	for w, waits := m.way(req), 0; w.shares(); waits++ {
		resp, next, err := m.roundTrip(req)
		if next == nil {
			return resp, err
		}
		req = next
		if waits == mostWaits || m.apart {
			break
		}
		o, first := w.join(req.URL.Host)
		if first {
			return m.lead(req, o)
		}
		if err := o.wait(req); err != nil {
			body.CloseRequest(req)
			return nil, err
		}
	}
	resp, err := m.conns.through(req)
	m.answered(req, resp)
	return resp, err
}

// shares reports whether calls share connections, as far as is known.
func (w *way) shares() bool {
	return w.over.Load() != nil || w.expected.Load() || w.offered && !w.met.Load()
}

// join returns the opening of a connection to authority. It is that of the caller if there was none.
func (w *way) join(authority string) (o *opening, first bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if o = w.openings[authority]; o != nil {
		return o, false
	}
	o = &opening{done: make(chan struct{})}
	if w.openings == nil {
		w.openings = make(map[string]*opening)
	}
	w.openings[authority] = o
	return o, true
}

// end ends the opening o, if it has not ended yet.
func (w *way) end(authority string, o *opening, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.openings[authority] == o {
		delete(w.openings, authority)
		o.err = err
		close(o.done)
	}
}

// wait waits until o has ended. It returns an error if the call cannot go on.
func (o *opening) wait(req *http.Request) error {
	ctx := caller.Wait(req.Context(), req)
	defer caller.Stop(ctx, req)
	select {
	case <-o.done:
		return o.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lead sends the call that opens a connection. The others go on as soon as there is one, long before the response.
func (m *multiplexed) lead(req *http.Request, o *opening) (*http.Response, error) {
	w, authority, asked, got := m.way(req), req.URL.Host, false, false
	defer w.end(authority, o, nil)
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{ // net/http calls both on this goroutine
		GetConn: func(string) { asked = true },
		GotConn: func(info httptrace.GotConnInfo) {
			got = true
			w.meet(info)
			w.end(authority, o, nil)
		},
	})
	req = req.WithContext(ctx)
	resp, next, err := m.roundTrip(req) // since another call may have opened one just before this one joined
	if next != nil {
		resp, err = m.conns.through(next)
	}
	if err != nil && asked && !got && ctx.Err() == nil && !caller.Canceled(req) {
		w.end(authority, o, err)
	}
	return resp, err
}

// meet notes what the peer speaks.
func (w *way) meet(info httptrace.GotConnInfo) {
	w.met.Store(true)
	if secure, ok := info.Conn.(*tls.Conn); ok && secure.ConnectionState().NegotiatedProtocol != protoSecure {
		w.over.Store(nil)
		w.expected.Store(false)
	}
}
