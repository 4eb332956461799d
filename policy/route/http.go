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
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/timeout"
)

// Transport is an http.RoundTripper that does with a request what the first route that applies to it says: rewrites,
// header edits, redirects, direct responses and mirrors, and, in this order around the destination, faults, timeout and
// retries. A request that no route applies to is answered with 404.
//
// It knows nothing of endpoints: RetryTried is up to what sends the requests.
//
// Each destination of a route that retries has a retry budget of its own, with the defaults of [retry.Transport].
//
// A Transport is safe for concurrent use. It must not be copied, nor changed after its first use. Close it if the table
// has mirrors.
type Transport struct {
	// Table says where requests go. A nil Table matches nothing.
	Table *Table

	// Destination returns what sends the requests of a target, which is one of the table's. It may be called often. If
	// Destination or what it returns is nil, http.DefaultTransport sends them, unless the target is a subset: then the
	// request fails.
	//
	// The URL of a request that is sent has the target's host and port, as far as the target says them; its Host is the
	// one of the original, unless rewritten.
	Destination func(Target) http.RoundTripper

	// MirrorLimit is how many copies of requests may be under way at once; further ones are not sent. 0 means 64.
	MirrorLimit int

	// MirrorTimeout bounds a copy, its response included, if its route has no timeout. 0 means 15 s.
	MirrorTimeout time.Duration

	// MirrorDone, if not nil, is called once for each copy that was due: with nil after a response, and else with the
	// reason why there is none. It may be called on the goroutine of the original, and must not block.
	MirrorDone func(target Target, err error)

	// Rand chooses among destinations and what is copied: it returns an integer in [0, n). Nil means math/rand/v2.
	Rand func(n uint32) uint32

	mirroring sync.Once
	mirrors   mirror.Mirrorer[Mirror]

	layers sync.Map // *Backend to http.RoundTripper, where a route has timeout, faults or retries
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

// layered returns what sends the requests of b, with the layers that its route asks for.
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
	if r.Timeout > 0 { // bounds all tries and waits
		rt = &timeout.Transport{Base: rt, Config: timeout.Config{Request: r.Timeout}}
	}
	if r.Fault != (fault.Config{}) { // outside both: once a request, never retried, and no part of the timeout
		rt = &fault.Transport{Base: rt, Config: r.Fault, Rand: t.Rand}
	}
	kept, _ := t.layers.LoadOrStore(b, rt) // the first one, since it has a budget
	return kept.(http.RoundTripper), nil
}

// destination sends requests, already rewritten, to a target.
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

// Close cancels the copies under way and waits for them. The Transport can still be used, without mirrors. Close always
// returns nil, and may be called more than once.
func (t *Transport) Close() error {
	return t.mirrors.Close()
}

// CloseIdleConnections closes the idle connections of the table's targets.
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
	base, _ := t.base(target)
	if closer, ok := base.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
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

// address makes u point to the target. What the target does not say stays.
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
