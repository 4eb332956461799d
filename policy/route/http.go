package route

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/internal/mirror"
	"github.com/nosidecar/mesh/internal/reply"
	"github.com/nosidecar/mesh/internal/transports"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/timeout"
)

// Transport is an http.RoundTripper that applies the first matching route to each request: rewrites, header edits, redirects,
// direct responses and mirrors, and around the destination, from the outside in, faults, the timeout and retries. A request that
// matches no route gets a 404 response.
//
// A Transport does not choose endpoints, so RetryTried is up to the RoundTrippers that [Transport.Destination] returns.
//
// Each destination of a route with retries has its own retry budget, with the defaults of [retry.Transport].
//
// A Transport is safe for concurrent use. It must not be copied, and its fields must not be changed after its first use. The
// caller closes it if the table has mirrors.
type Transport struct {
	// Table has the routes. A nil Table matches nothing.
	Table *Table

	// Destination returns the RoundTripper that sends the requests for a target of the table. It is called for every request.
	// If Destination is nil or returns nil, http.DefaultTransport sends the request, unless the target names a subset: then
	// the request fails.
	//
	// The URL of a request that is sent has the host and port of the target, where the target sets them. Its Host is that of
	// the original request unless a route rewrites it.
	Destination func(Target) http.RoundTripper

	// MirrorLimit is the maximum number of copies of requests in flight; further copies are dropped. 0 means 64.
	MirrorLimit int

	// MirrorTimeout is the timeout of a copy, including its response, if its route has no timeout. 0 means 15 s.
	MirrorTimeout time.Duration

	// MirrorDone, if not nil, is called once per copy: with nil after a response, otherwise with the reason why there was none.
	// It may be called on the goroutine of the original request, so it must not block.
	MirrorDone func(target Target, err error)

	// Rand returns an integer in [0, n). It decides which destination gets a request, whether it is mirrored, and whether it
	// gets a fault. It must be safe for concurrent use. Nil means math/rand/v2.
	Rand func(n uint32) uint32

	mirroring sync.Once
	mirrors   mirror.Mirrorer[Mirror]

	layers sync.Map // *Backend to http.RoundTripper, for routes with a timeout, faults or retries
}

var _ http.RoundTripper = (*Transport)(nil)

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL == nil {
		body.CloseRequest(req)
		return nil, errors.New("route: request without URL")
	}
	view := NewRequest(req)
	e, match, ok := t.Table.Match(&view)
	if !ok {
		body.CloseRequest(req)
		return reply.New(req, http.StatusNotFound, nil), nil
	}
	if resp := e.Respond(req, match); resp != nil {
		body.CloseRequest(req)
		return resp, nil
	}

	b := e.Pick(t.Rand)
	next, err := t.layered(b)
	if err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	out := req.WithContext(req.Context()) // a shallow copy
	u := *req.URL
	out.URL, out.Host = &u, view.Authority
	if b.Request != nil {
		out.Header = req.Header.Clone()
	}
	if err := b.Rewrite(out, match); err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	if mirrors := e.Route.Mirrors; len(mirrors) > 0 {
		t.mirroring.Do(t.startMirroring)
		t.mirrors.Fork(out, mirrors, e.Route.Timeout)
	}
	b.Target.address(out.URL)

	resp, err := next.RoundTrip(out)
	if err != nil {
		return nil, err
	}
	if b.Response != nil {
		if resp.Header == nil {
			resp.Header = make(http.Header)
		}
		sent := NewRequest(out)
		b.Response.Apply(resp.Header, &sent)
	}
	attempt.Restore(resp, req, 1)
	return resp, nil
}

// layered returns the RoundTripper of b, with the layers that its route needs.
func (t *Transport) layered(b *Backend) (http.RoundTripper, error) {
	r := b.rule.Route
	retries := r.Retry.Retries > 0 || r.Retry.PerTryTimeout > 0
	if r.Timeout == 0 && r.Fault == (fault.Config{}) && !retries {
		return t.base(b.Target)
	}
	if rt, ok := t.layers.Load(b); ok {
		return rt.(http.RoundTripper), nil
	}
	var rt http.RoundTripper = &destination{t, b.Target}
	if retries {
		rt = &retry.Transport{Base: rt, Config: r.Retry}
	}
	if r.Timeout > 0 { // bounds all tries and the waits between them
		rt = &timeout.Transport{Base: rt, Config: timeout.Config{Request: r.Timeout}}
	}
	if r.Fault != (fault.Config{}) { // outside both: once per request, never retried, and not part of the timeout
		rt = &fault.Transport{Base: rt, Config: r.Fault, Rand: t.Rand}
	}
	kept, _ := t.layers.LoadOrStore(b, rt) // all requests share the budget of the first one
	return kept.(http.RoundTripper), nil
}

// destination sends rewritten requests to a target.
type destination struct {
	t      *Transport
	target Target
}

func (d *destination) RoundTrip(req *http.Request) (*http.Response, error) {
	base, err := d.t.base(d.target)
	if err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	return base.RoundTrip(req)
}

// Close cancels the copies in flight and waits for them. The Transport can still be used afterwards, but no longer mirrors
// requests. Close always returns nil, and may be called more than once.
func (t *Transport) Close() error {
	return t.mirrors.Close()
}

// CloseIdleConnections closes the idle connections to all targets of the table.
func (t *Transport) CloseIdleConnections() {
	for i := range t.Table.Len() {
		r := t.Table.Rule(i).Route
		for j := range r.Destinations {
			t.closeIdle(r.Destinations[j].Target)
		}
		for j := range r.Mirrors {
			t.closeIdle(r.Mirrors[j].Target)
		}
	}
}

func (t *Transport) closeIdle(target Target) {
	if rt, err := t.base(target); err == nil {
		transports.CloseIdle(rt)
	}
}

func (t *Transport) base(target Target) (http.RoundTripper, error) {
	if t.Destination != nil {
		if base := t.Destination(target); base != nil {
			return base, nil
		}
	}
	if target.Subset != "" {
		return nil, fmt.Errorf("route: nothing sends requests to subset %q of %q", target.Subset, target.Host)
	}
	return http.DefaultTransport, nil
}

func (t *Transport) startMirroring() {
	m := &t.mirrors
	m.Limit, m.Timeout, m.Rand = t.MirrorLimit, t.MirrorTimeout, t.Rand
	m.Share = func(to *Mirror) uint32 { return fraction.PerMillion(to.Fraction) }
	m.Send = func(to *Mirror, req *http.Request) (*http.Response, error) {
		to.Target.address(req.URL)
		return (&destination{t, to.Target}).RoundTrip(req)
	}
	if t.MirrorDone != nil {
		m.Done = func(to *Mirror, err error) { t.MirrorDone(to.Target, err) }
	}
}

// address sets the host and port of u to those of the target. A part that the target does not set is left alone.
func (t *Target) address(u *url.URL) {
	host, port := u.Hostname(), u.Port()
	switch {
	case t.Host != "":
		host = t.Host
	case t.Port == 0:
		return
	}
	if t.Port != 0 {
		port = strconv.Itoa(t.Port)
	}
	switch {
	case port != "":
		u.Host = net.JoinHostPort(host, port)
	case strings.Contains(host, ":"): // IPv6
		u.Host = "[" + host + "]"
	default:
		u.Host = host
	}
}
