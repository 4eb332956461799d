package breaker

import (
	"io"
	"net/http"
	"sync/atomic"
)

// reader is the response body of a call through a closed circuit that does not time calls, of a Transport without IsFailure: what most
// calls need, in half of the memory of a call.
type reader struct {
	body    io.ReadCloser
	req     *http.Request
	circuit *Circuit
	phase   phase
	state   atomic.Uint32 // the bits below
	failed  bool          // says the status
}

const (
	closing = 1 << iota // Close was called
	ended               // the call has ended, or is about to
)

// watch ends a call with the body of its response.
func (t *Transport) watch(resp *http.Response, req *http.Request, lease *Lease) {
	b := resp.Body
	if _, upgraded := b.(io.Writer); upgraded || t.IsFailure != nil || lease.probe != nil || lease.circuit.cfg.SlowCall > 0 {
		c := &call{transport: t, req: req, resp: resp, lease: *lease}
		c.body.Attach(resp, c)
	} else {
		resp.Body = &reader{body: b, req: req, circuit: lease.circuit, phase: lease.phase, failed: resp.StatusCode >= 500}
	}
	lease.circuit = nil
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	switch {
	case err == nil:
	case err == io.EOF:
		r.end(nil)
	case r.state.Load()&closing == 0:
		r.end(err)
	default:
		// Close interrupted this Read, and reports the end.
	}
	return n, err
}

// Close implements io.Closer. It may be called during a Read, and more than once.
func (r *reader) Close() error {
	if r.state.Load()&ended != 0 { // the body was read to its end
		return r.body.Close()
	}
	r.state.Or(closing)
	defer r.end(nil) // even if the body panics
	return r.body.Close()
}

// end ends the call, if it has not ended.
func (r *reader) end(err error) {
	if state := r.state.Load(); state&ended != 0 || r.state.Swap(state|ended)&ended != 0 {
		return
	}
	if err == nil && !r.failed && r.circuit.unmoved() {
		return
	}
	l, outcome := Lease{circuit: r.circuit, phase: r.phase}, Success
	switch {
	case err != nil:
		outcome = says(r.req, err)
	case r.failed:
		outcome = Failure
	}
	l.Done(outcome)
}
