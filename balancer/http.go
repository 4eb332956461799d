package balancer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/orca"
	"github.com/nosidecar/mesh/internal/refusal"
)

// ErrClosed means that the [Transport] is closed.
var ErrClosed = refusal.New("balancer: transport closed")

// Transport is an http.RoundTripper that sends each request to one of the endpoints of the service that its URL names. It
// has its own connections to each endpoint; Host header and TLS server name stay the service's. Set the fields before the
// first use, and [Transport.Close] it at the end. It is safe for concurrent use.
//
// The first request to a service starts a watch and waits for the endpoints as long as its context lasts. A service is then
// watched until Close, unless the resolver does not know it.
//
// A call is over, and no longer in flight, when its response body is read to the end, fails or is closed.
type Transport struct {
	// Base is the template of the connections' transports; it is copied for each endpoint. nil means
	// http.DefaultTransport, if that is an *http.Transport. Endpoints are dialled directly, whatever Proxy says.
	//
	// HTTP/2 is tried whenever TLS is used, unless Base rules it out: with Protocols, with TLSNextProto, or with
	// MaxConnsPerHost, which HTTP/2 connections do not obey. MaxIdleConnsPerHost 0 means 100. DialTLS and DialTLSContext are
	// refused: they would not know which name to verify.
	Base *http.Transport

	// Resolver finds the endpoints of the services. It must be set.
	Resolver discovery.Resolver

	// Config says how to pick. If it is invalid, every call fails.
	Config Config

	// Outlier ejects endpoints. nil means that none is ejected.
	Outlier Outlier

	setup    sync.Once
	setupErr error
	template *http.Transport
	watcher  *discovery.Watcher

	mu       sync.RWMutex
	closed   bool
	services map[string]*service // by host name in lower case
}

// service is a service that calls go to.
type service struct {
	balancer     *Balancer
	subscription *discovery.Subscription
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	s, err := t.service(req)
	if err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	key, setCookie, hasKey := "", "", false
	if t.Config.HashKey.Source != NoKey {
		if key, hasKey = t.Config.HashKey.Of(req); !hasKey {
			key, setCookie, hasKey = t.Config.HashKey.NewCookie()
		}
	}
	attempts := triedOf(req.Context())
	info := PickInfo{HasHash: hasKey, Tried: attempts.all()}
	if attempts == nil {
		info.Tried = attempt.Tried(req.Context())
	}
	if hasKey {
		info.Hash = Hash(key)
	}
	if t.Config.Algorithm == PeakEWMA {
		info.Now = time.Now()
	}
	host, err := s.balancer.Pick(info)
	if err != nil {
		body.CloseRequest(req)
		if why := s.subscription.Err(); why != nil {
			return nil, fmt.Errorf("%w of %q: %w", err, req.URL.Hostname(), why)
		}
		return nil, fmt.Errorf("%w of %q", err, req.URL.Hostname())
	}
	attempts.add(host.ID())

	c := &call{service: s, outlier: t.Outlier, host: host, req: req, began: info.Now}
	if caller.ToWatch(req) && !caller.Watched(req) {
		c.req = req.WithContext(req.Context())
		caller.Watch(c.req, nil)
	}
	defer c.unwind()
	resp, err := host.Value().(*connections).transport().RoundTrip(c.req)
	c.answered(resp)
	if t.Config.Algorithm == WeightedRoundRobin && resp != nil {
		if load, ok := orca.Take(resp.Header); ok {
			host.Report(load.Utilization, load.Requests, load.Errors)
		}
	}
	if err != nil {
		c.End(err)
		return nil, attempt.FailedAt(host.ID(), err)
	}
	if c.req != req {
		attempt.Restore(resp, req, 1)
	}
	if resp.StatusCode >= 400 {
		attempt.SentTo(resp, host.ID())
	}
	if setCookie != "" {
		resp.Header.Add("Set-Cookie", setCookie)
	}
	c.body.Attach(resp, c)
	return resp, nil
}

// CloseIdleConnections closes the connections that carry no call.
func (t *Transport) CloseIdleConnections() {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, s := range t.services {
		for _, h := range s.balancer.Hosts() {
			h.Value().(*connections).closeIdle()
		}
	}
}

// Close stops watching and closes idle connections. Calls in flight go on, and their connections close when they are
// over. Later calls fail with [ErrClosed]. It is idempotent.
func (t *Transport) Close() error {
	t.mu.Lock()
	services := t.services
	t.services, t.closed = nil, true
	watcher := t.watcher
	t.mu.Unlock()
	if watcher != nil {
		watcher.Close()
	}
	for _, s := range services {
		s.balancer.Update(nil)
	}
	return nil
}

// service returns the service of req, once its endpoints are known.
func (t *Transport) service(req *http.Request) (*service, error) {
	if req.URL == nil || req.URL.Host == "" {
		return nil, errors.New("balancer: request without host")
	}
	name := strings.ToLower(strings.TrimSuffix(req.URL.Hostname(), "."))
	t.mu.RLock()
	s, closed := t.services[name], t.closed
	t.mu.RUnlock()
	if closed {
		return nil, ErrClosed
	}
	if s == nil {
		var err error
		if s, err = t.open(name); err != nil {
			return nil, err
		}
	}
	ctx := caller.Wait(req.Context(), req)
	defer caller.Stop(ctx, req)
	if err := s.subscription.Wait(ctx); err != nil {
		if errors.Is(err, discovery.ErrUnknownService) {
			t.forget(name, s)
			return nil, fmt.Errorf("%w of %q: %w", ErrNoEndpoints, name, err)
		}
		return nil, &waitError{name, err}
	}
	return s, nil
}

// waitError is the error of a call that ended before the endpoints were known.
type waitError struct {
	service string
	err     error
}

func (e *waitError) Error() string {
	return fmt.Sprintf("balancer: waiting for the endpoints of %q: %v", e.service, e.err)
}

func (e *waitError) Unwrap() error { return e.err }

// Timeout reports whether the time of the call was up: *url.Error asks for it by assertion.
func (e *waitError) Timeout() bool { return errors.Is(e.err, context.DeadlineExceeded) }

// open starts watching a service.
func (t *Transport) open(name string) (*service, error) {
	t.setup.Do(func() { t.setupErr = t.prepare() })
	if t.setupErr != nil {
		return nil, t.setupErr
	}
	b, err := New(t.Config, Hooks{Attach: t.connect, Drained: func(h *Host) { h.Value().(*connections).close() }, Outlier: t.Outlier})
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if s := t.services[name]; s != nil {
		return s, nil
	}
	s := &service{balancer: b}
	s.subscription = t.watcher.Subscribe(discovery.Service{Host: name}, b.Update)
	if t.services == nil {
		t.services = map[string]*service{}
	}
	t.services[name] = s
	return s, nil
}

// forget stops watching a service that the resolver does not know, so that made-up names cost nothing.
func (t *Transport) forget(name string, s *service) {
	t.mu.Lock()
	if t.services[name] == s {
		delete(t.services, name)
	}
	t.mu.Unlock()
	s.subscription.Close()
}

func (t *Transport) prepare() error {
	if t.Resolver == nil {
		return errors.New("balancer: Transport has no Resolver")
	}
	template, err := newTemplate(t.Base)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.template, t.watcher = template, discovery.NewWatcher(t.Resolver, nil)
	return nil
}

func (t *Transport) connect(h *Host) any {
	return &connections{template: t.template, host: h}
}

// call is one call in flight.
type call struct {
	body     body.Reader
	service  *service
	outlier  Outlier // nil without one
	host     *Host
	req      *http.Request
	resp     *http.Response
	began    time.Time     // if latency is used
	latency  time.Duration // until the answer
	returned bool
}

func (c *call) answered(resp *http.Response) {
	c.resp, c.returned = resp, true
	if !c.began.IsZero() {
		c.latency = time.Since(c.began)
	}
}

// End implements body.Ender.
func (c *call) End(err error) {
	failed := err != nil || c.resp.StatusCode >= 500
	kind := failure.Of(c.req.Context(), c.req, err)
	if kind == failure.Canceled || kind == failure.BadRequest {
		c.latency, failed = 0, false // the caller gave up; the endpoint may be healthy
	}
	if kind == failure.Connect {
		c.service.subscription.Refresh() // the endpoint may be gone
	}
	if failed && c.latency == 0 && !c.began.IsZero() {
		c.latency = time.Since(c.began) // until it failed
	}
	c.host.Release(c.latency, failed)
	if c.outlier != nil && kind != failure.BadRequest && c.host.TakesCalls() {
		c.outlier.Report(c.host.ID(), c.resp, err)
	}
}

// unwind ends the call if the transport panicked or exited the goroutine.
func (c *call) unwind() {
	if !c.returned {
		c.host.Release(0, true)
	}
}
