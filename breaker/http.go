package breaker

import (
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/transports"
)

// Transport is an http.RoundTripper with a [Circuit] in front of each destination. The zero Transport is ready to use.
// It is safe for concurrent use; its fields must not be changed once it is used.
//
// A call ends, and its outcome counts, when the response body reaches EOF, fails or is closed. A call that the circuit
// refuses fails with an error that wraps [ErrOpen] and names the destination.
//
// At most 1000 circuits are kept for http and as many for https. A circuit that has not been used for a while (at least five
// minutes, and longer than its window and open duration) is forgotten. At the limit, so is one of the least recently used.
type Transport struct {
	// Base makes the calls. nil means http.DefaultTransport.
	Base http.RoundTripper

	// Config is the configuration of every circuit. If it is invalid, every call fails with an error that says why.
	Config Config

	// Key names the destination of a request: requests with the same key share a circuit. nil means the scheme and host
	// of the URL.
	Key func(*http.Request) string

	// IsFailure reports whether a call failed. It gets the response, with a nil error or the error from reading its body;
	// or, without a response, the error of Base. It must not read the body. nil means that errors and 5xx responses are
	// failures. It is not called for calls that do not count: the caller cancelled them or made a request that cannot be
	// sent, the request body failed, or a layer below refused them before anything was sent.
	IsFailure func(*http.Response, error) bool

	// OnChange, if not nil, is called for every change of a circuit's state, as described at [New].
	OnChange func(key string, change Change)

	plain, secure registry // for http and everything else, and for https
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	d := t.known(req)
	if d == nil {
		var err error
		if d, err = t.add(req); err != nil {
			body.CloseRequest(req)
			return nil, err
		}
	}
	lease, err := d.circuit.Allow()
	if err != nil {
		body.CloseRequest(req)
		return nil, d.refused
	}
	sent := req
	if caller.ToWatch(req) && !caller.Watched(req) {
		sent = req.WithContext(req.Context())
		caller.Watch(sent, nil)
	}
	defer lease.Done(Failure) // if Base panics or exits the goroutine
	resp, err := transports.Or(t.Base).RoundTrip(sent)
	lease.Answered()
	if err == nil && resp != nil && resp.Body != nil && resp.Body != http.NoBody {
		t.watch(resp, sent, &lease)
	} else {
		t.done(&lease, sent, resp, err)
	}
	if sent != req && resp != nil {
		attempt.Restore(resp, req, 1)
	}
	return resp, err
}

// CloseIdleConnections closes the idle connections of Base.
func (t *Transport) CloseIdleConnections() {
	transports.CloseIdle(t.Base)
}

// States returns the state of every circuit by key.
func (t *Transport) States() map[string]State {
	return statesOf(&t.plain, &t.secure)
}

// known returns the destination of a request, if it is known under this name.
func (t *Transport) known(req *http.Request) *destination {
	if t.Key != nil {
		return t.plain.get(t.Key(req))
	}
	// Two registries instead of names with a scheme: joining the two would allocate.
	switch u := req.URL; {
	case u == nil:
		return t.plain.get("")
	case u.Scheme == "http":
		return t.plain.get(u.Host)
	case u.Scheme == "https":
		return t.secure.get(u.Host)
	default:
		return t.plain.get(u.Scheme + "://" + u.Host)
	}
}

// add returns the destination of a request that was not known.
func (t *Transport) add(req *http.Request) (*destination, error) {
	r, prefix, name := &t.plain, "", ""
	switch {
	case t.Key != nil:
		name = t.Key(req)
		return r.add(name, name, t.Config, t.OnChange, time.Now())
	case req.URL == nil:
		// Base reports the error.
	case req.URL.Scheme == "https":
		r, prefix, name = &t.secure, "https://", req.URL.Host
	case req.URL.Scheme == "http":
		prefix, name = "http://", req.URL.Host
	default:
		name = req.URL.Scheme + "://" + req.URL.Host
	}
	name = strings.ToLower(name)
	if d := r.get(name); d != nil {
		return d, nil
	}
	return r.add(name, prefix+name, t.Config, t.OnChange, time.Now())
}

// call is a call whose response body is being read, if a reader does not do.
type call struct {
	body      body.Reader
	transport *Transport
	req       *http.Request
	resp      *http.Response
	lease     Lease
}

// End implements body.Ender.
func (c *call) End(err error) {
	c.transport.done(&c.lease, c.req, c.resp, err)
}

// done reports that a call has ended.
func (t *Transport) done(lease *Lease, req *http.Request, resp *http.Response, err error) {
	if err == nil && t.IsFailure == nil { // the usual case, in which nothing can panic
		lease.Done(t.outcome(req, resp, nil))
		return
	}
	outcome := Failure // if IsFailure panics
	defer func() { lease.Done(outcome) }()
	outcome = t.outcome(req, resp, err)
}

func (t *Transport) outcome(req *http.Request, resp *http.Response, err error) Outcome {
	switch {
	case err != nil && says(req, err) == Ignored:
		return Ignored
	case t.IsFailure != nil && t.IsFailure(resp, err),
		t.IsFailure == nil && (err != nil || resp == nil || resp.StatusCode >= 500):
		return Failure
	}
	return Success
}

// says returns what an error says about the destination.
func says(req *http.Request, err error) Outcome {
	switch failure.Of(req.Context(), req, err) {
	case failure.Refused, failure.BadRequest:
		return Ignored
	case failure.Canceled:
		if req.Context().Err() != nil || caller.Canceled(req) { // and not a layer below
			return Ignored
		}
	}
	return Failure
}

// registry holds circuits by name. The zero registry is empty.
type registry struct {
	known atomic.Pointer[known] // copied on write

	mu    sync.Mutex // guards writing known
	swept time.Time
}

// known are the destinations of a registry.
type known struct {
	byName map[string]*destination
	only   *destination // nil if there are several: most transports call one, for which no map is needed
}

type destination struct {
	name    string // in its registry
	key     string // what users see
	circuit *Circuit
	refused error       // wraps ErrOpen
	used    atomic.Bool // since the last sweep
}

const (
	maxCircuits = 1000
	minIdle     = 5 * time.Minute
)

func statesOf(registries ...*registry) map[string]State {
	states := make(map[string]State)
	for _, r := range registries {
		for _, d := range r.all() {
			states[d.key] = d.circuit.State()
		}
	}
	return states
}

func (r *registry) all() map[string]*destination {
	if k := r.known.Load(); k != nil {
		return k.byName
	}
	return nil
}

func (r *registry) get(name string) *destination {
	k := r.known.Load()
	if k == nil {
		return nil
	}
	d := k.only
	if d == nil || d.name != name {
		d = k.byName[name]
	}
	if d != nil && !d.used.Load() {
		d.used.Store(true)
	}
	return d
}

func (r *registry) add(
	name, key string, cfg Config, onChange func(string, Change), now time.Time,
) (*destination, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.get(name); d != nil {
		return d, nil
	}
	d := &destination{name: name, key: key}
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
		kept = make(map[string]*destination)
	}
	r.forget(kept, d.circuit.cfg, now)
	kept[name] = d
	k := &known{byName: kept}
	if len(kept) == 1 {
		k.only = d
	}
	r.known.Store(k)
	return d, nil
}

// forget removes from m the circuits that have not been used since the sweep before the last one and, if there is no room
// for one more, a tenth of the rest: first those that are closed and have not been used since the last sweep.
func (r *registry) forget(m map[string]*destination, cfg Config, now time.Time) {
	if now.Sub(r.swept) >= max(minIdle, 2*cfg.OpenDuration, 2*cfg.Window) {
		r.swept = now
		maps.DeleteFunc(m, func(_ string, d *destination) bool { return !d.used.Swap(false) })
	}
	for rank := 0; len(m) >= maxCircuits; rank++ {
		for name, d := range m {
			if len(m) <= maxCircuits*9/10 {
				break
			}
			closed := d.circuit.current().state() == Closed
			if rank == 0 && closed && !d.used.Load() || rank == 1 && closed || rank == 2 {
				delete(m, name)
			}
		}
	}
}
