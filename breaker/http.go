package breaker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/refusal"
)

// Transport is an http.RoundTripper with a [Circuit] in front of each destination. The zero Transport is ready to use.
// It is safe for concurrent use; its fields must not be changed once it is used.
//
// A call ends, and its outcome counts, when the response body reaches EOF, fails or is closed. A call that the circuit
// refuses fails with an error that wraps [ErrOpen] and names the destination.
//
// At most 1000 circuits are kept. One that has not been used for a while (at least five minutes, and longer than its
// window and open duration) is forgotten, as is, at the limit, one of those used least recently.
type Transport struct {
	// Base makes the calls. nil means http.DefaultTransport.
	Base http.RoundTripper

	// Config is the configuration of every circuit. If it is invalid, every call fails with an error that says why.
	Config Config

	// Key names the destination of a request: requests with the same key share a circuit. nil means the scheme and host
	// of the URL.
	Key func(*http.Request) string

	// IsFailure says whether a call failed. It gets the response, with a nil error or the error that reading its body
	// ended with; or, without a response, the error of Base. It must not read the body. nil means that errors and 5xx
	// responses are failures. It is not asked about calls that count for nothing: the caller cancelled them, or a layer
	// below refused them before anything was sent.
	IsFailure func(*http.Response, error) bool

	// OnChange, if not nil, is told of every change of a circuit's state, as described at [New].
	OnChange func(key string, change Change)

	circuits registry
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	d, err := t.destination(req)
	if err != nil {
		closeBody(req)
		return nil, err
	}
	lease, err := d.circuit.Allow()
	if err != nil {
		closeBody(req)
		return nil, d.refused
	}
	c := &call{transport: t, req: req, lease: lease}
	defer c.unwind()
	resp, err := t.base().RoundTrip(req)
	c.returned = true
	c.lease.Answered()
	if err != nil || resp == nil {
		c.End(err)
		return resp, err
	}
	c.resp = resp
	c.body.Attach(resp, c)
	return resp, nil
}

// CloseIdleConnections closes the idle connections of Base.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

// States returns the state of every circuit by key.
func (t *Transport) States() map[string]State {
	states := make(map[string]State)
	for _, d := range t.circuits.all() {
		states[d.key] = d.circuit.State()
	}
	return states
}

func (t *Transport) base() http.RoundTripper {
	if t.Base == nil {
		return http.DefaultTransport
	}
	return t.Base
}

func (t *Transport) destination(req *http.Request) (*destination, error) {
	var id destinationID
	switch {
	case t.Key != nil:
		id.name = t.Key(req)
	case req.URL != nil:
		// Kept in two parts: to join them would allocate.
		id.scheme, id.name = req.URL.Scheme, strings.ToLower(req.URL.Host)
	}
	if d := t.circuits.get(id); d != nil {
		return d, nil
	}
	return t.circuits.add(id, t.Config, t.OnChange, time.Now())
}

// call is one call under way: the only allocation of ours on its path.
type call struct {
	body      body.Reader
	transport *Transport
	req       *http.Request
	resp      *http.Response
	lease     Lease
	returned  bool
}

// End implements body.Ender.
func (c *call) End(err error) {
	c.lease.Done(c.transport.outcome(c.req, c.resp, err))
}

// unwind ends the call if Base panicked or exited the goroutine.
func (c *call) unwind() {
	if !c.returned {
		c.lease.Done(Failure)
	}
}

func (t *Transport) outcome(req *http.Request, resp *http.Response, err error) Outcome {
	switch {
	case err != nil && (refusal.Is(err) || cancelled(req.Context())):
		return Ignored
	case t.IsFailure != nil && t.IsFailure(resp, err),
		t.IsFailure == nil && (err != nil || resp == nil || resp.StatusCode >= 500):
		return Failure
	}
	return Success
}

// cancelled reports whether the caller gave up. A deadline that has passed is not giving up: the destination took too
// long. That holds, too, for a timer that cancels the context and says so in its cause.
func cancelled(ctx context.Context) bool {
	return ctx.Err() == context.Canceled && !errors.Is(context.Cause(ctx), context.DeadlineExceeded)
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

// registry holds the circuits of a Transport. The zero registry is empty.
type registry struct {
	byID atomic.Pointer[map[destinationID]*destination] // copied on write

	mu    sync.Mutex // guards writing byID
	swept time.Time
}

type destinationID struct {
	scheme, name string // scheme is empty if the name comes from Transport.Key
}

type destination struct {
	key     string
	circuit *Circuit
	refused error       // wraps ErrOpen
	used    atomic.Bool // since the last sweep
}

const (
	maxCircuits = 1000
	minIdle     = 5 * time.Minute
)

func (r *registry) all() map[destinationID]*destination {
	if m := r.byID.Load(); m != nil {
		return *m
	}
	return nil
}

func (r *registry) get(id destinationID) *destination {
	d := r.all()[id]
	if d != nil && !d.used.Load() {
		d.used.Store(true)
	}
	return d
}

func (r *registry) add(id destinationID, cfg Config, onChange func(string, Change), now time.Time) (*destination, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.get(id); d != nil {
		return d, nil
	}
	d := &destination{key: id.name}
	if id.scheme != "" {
		d.key = id.scheme + "://" + id.name
	}
	var tell func(Change)
	if onChange != nil {
		tell = func(c Change) { onChange(d.key, c) }
	}
	var err error
	if d.circuit, err = New(cfg, tell); err != nil {
		return nil, err
	}
	d.refused = fmt.Errorf("%w for %s", ErrOpen, d.key)
	d.used.Store(true)

	kept := maps.Clone(r.all())
	if kept == nil {
		kept = make(map[destinationID]*destination)
	}
	r.forget(kept, d.circuit.Config(), now)
	kept[id] = d
	r.byID.Store(&kept)
	return d, nil
}

// forget removes from m what has not been used since the sweep before the last one and, if there is no room for one
// more, a tenth of the rest: first what is closed and has not been used since the last sweep.
func (r *registry) forget(m map[destinationID]*destination, cfg Config, now time.Time) {
	if now.Sub(r.swept) >= max(minIdle, 2*cfg.OpenDuration, 2*cfg.Window) {
		r.swept = now
		maps.DeleteFunc(m, func(_ destinationID, d *destination) bool { return !d.used.Swap(false) })
	}
	for rank := 0; len(m) >= maxCircuits; rank++ {
		for id, d := range m {
			if len(m) <= maxCircuits*9/10 {
				break
			}
			closed := State(d.circuit.state.Load()) == Closed
			if rank == 0 && closed && !d.used.Load() || rank == 1 && closed || rank == 2 {
				delete(m, id)
			}
		}
	}
}
