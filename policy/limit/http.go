package limit

import (
	"errors"
	"fmt"
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/reply"
	"github.com/nosidecar/mesh/internal/transports"
)

// Transport is an http.RoundTripper that keeps its calls within one connection pool. Calls beyond the limits get a 503 response with
// x-envoy-overloaded, as from Envoy. It must not be copied or changed after its first use.
type Transport struct {
	// Base makes the calls. If it is an *http.Transport, a clone with the settings of Config is used. Any other RoundTripper manages
	// its own connections: MaxConnections only bounds the HTTP/1 calls in flight then, and every call fails if Config has other
	// settings for connections. Nil means http.DefaultTransport.
	Base http.RoundTripper

	// Config has the limits. The zero value means no limits.
	Config PoolConfig

	// Multiplexed says that calls share connections, because the destination speaks HTTP/2. MaxConnections does not bound the calls
	// then.
	Multiplexed bool

	once  sync.Once
	base  http.RoundTripper
	pool  *Pool
	fault error // what is wrong with Config or Base
}

// RoundTrip implements http.RoundTripper. A call is in flight until its response body is read to the end or closed.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(t.start)
	if t.fault != nil {
		body.CloseRequest(req)
		return nil, t.fault
	}
	ctx := caller.Wait(req.Context(), req)
	slot, err := t.pool.Acquire(ctx, t.Multiplexed)
	caller.Stop(ctx, req)
	if err != nil {
		body.CloseRequest(req)
		if err == ErrOverflow {
			return reply.Overflow(req), nil
		}
		return nil, err
	}
	c := &call{slot: slot}
	defer func() {
		if !c.sent {
			c.slot.Release() // an error, a panic or a Goexit
		}
	}()
	resp, err := t.base.RoundTrip(req)
	if err != nil {
		if errors.Is(err, ErrOverflow) {
			return reply.Overflow(req), nil
		}
		return resp, err
	}
	c.sent = true
	c.body.Attach(resp, c)
	return resp, nil
}

func (t *Transport) start() {
	if t.pool, t.fault = NewPool(t.Config); t.fault != nil {
		return
	}
	t.base = transports.Or(t.Base)
	if template, ok := t.base.(*http.Transport); ok {
		conns, err := t.pool.Conns(template)
		if err != nil {
			t.fault = err
			return
		}
		t.base = conns
		return
	}
	calls := t.Config
	calls.MaxConnections, calls.MaxPendingRequests, calls.MaxRequests = 0, 0, 0
	if calls != (PoolConfig{}) {
		t.fault = fmt.Errorf("limit: Config has more than MaxConnections, MaxPendingRequests and MaxRequests: the connections of a %T have settings of their own", t.base)
	}
}

// Stats returns the counters of the pool.
func (t *Transport) Stats() Stats {
	t.once.Do(t.start)
	return t.pool.Stats()
}

// CloseIdleConnections closes the idle connections of the base.
func (t *Transport) CloseIdleConnections() {
	t.once.Do(t.start)
	transports.CloseIdle(t.base)
}

// call is one call that holds a slot.
type call struct {
	body body.Reader
	slot Slot
	sent bool
}

// End implements body.Ender.
func (c *call) End(error) {
	c.slot.Release()
}

// RateTransport is an http.RoundTripper that keeps its calls within a rate. Calls beyond the rate get a 429 response with
// x-envoy-ratelimited, as from Envoy. It must not be copied or changed after its first use.
type RateTransport struct {
	// Base makes the calls. Nil means http.DefaultTransport.
	Base http.RoundTripper

	// Config has the rate. The zero value means no limit.
	Config RateConfig

	once  sync.Once
	rate  *Rate
	fault error // what is wrong with Config
}

// RoundTrip implements http.RoundTripper.
func (t *RateTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(func() { t.rate, t.fault = NewRate(t.Config) })
	if t.fault != nil {
		body.CloseRequest(req)
		return nil, t.fault
	}
	if !t.rate.Allow() {
		body.CloseRequest(req)
		return reply.RateLimited(req), nil
	}
	return transports.Or(t.Base).RoundTrip(req)
}

// CloseIdleConnections closes the idle connections of the base.
func (t *RateTransport) CloseIdleConnections() {
	transports.CloseIdle(t.Base)
}
