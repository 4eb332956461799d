package tracing

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/outgoing"
	"github.com/nosidecar/mesh/internal/transports"
	"github.com/nosidecar/mesh/tracing/internal/spans"
)

// Transport is an http.RoundTripper that starts a CLIENT span for each request, and sends the headers that propagate it. It is used
// as a literal:
//
//	client := &http.Client{Transport: &tracing.Transport{Config: tracing.Config{Provider: provider}}}
//
// A Transport is safe for concurrent use; its fields must not be changed after the first call, and it must not be copied. Below a
// retry.Transport it starts a span for each attempt.
type Transport struct {
	// Base sends the requests. nil: http.DefaultTransport.
	Base http.RoundTripper

	// Config says which spans are created and what is propagated. If it is invalid, every call fails.
	Config Config

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

var _ http.RoundTripper = (*Transport)(nil)

// RoundTrip sends a copy of req with the headers of its span, which ends with the body of the response.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(func() { t.tracer, t.err = spans.New(spans.Config(t.Config)) })
	r, err := begin(req, t.tracer, t.err)
	if err != nil {
		return nil, err
	}
	d, ctx, owner := r.describe(), req.Context(), spans.Shared(req.Context())
	if owner != nil { // a Calls has already started the call
		d.Owner = owner
	} else {
		ctx = r.tracer.StartCall(ctx, &d)
	}
	ctx = r.tracer.StartAttempt(ctx, &d, &spans.Attempt{Number: number(req), Header: req.Header, Set: &r.Request})
	return r.send(ctx, t.Base, &d, ending{whole: owner == nil, attempt: true})
}

// CloseIdleConnections closes the idle connections of Base, if it can.
func (t *Transport) CloseIdleConnections() { transports.CloseIdle(t.Base) }

// Calls is an http.RoundTripper for use around a retry.Transport whose Base is a [Transport]: it groups the attempts of a call, as
// the package documentation describes, and gives them the same x-request-id. Its Config should be that of the Transport, which sets
// the headers.
//
// A Calls is safe for concurrent use; its fields must not be changed after the first call, and it must not be copied.
type Calls struct {
	// Base makes the attempts. nil: http.DefaultTransport.
	Base http.RoundTripper

	// Config says which spans are created. If it is invalid, every call fails.
	Config Config

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

var _ http.RoundTripper = (*Calls)(nil)

// RoundTrip makes a call. Its span, if it has one, ends with the body of the response.
func (t *Calls) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(func() { t.tracer, t.err = spans.New(spans.Config(t.Config)) })
	r, err := begin(req, t.tracer, t.err)
	if err != nil {
		return nil, err
	}
	d := r.describe()
	d.Shared = true
	ctx := r.tracer.StartCall(req.Context(), &d)
	r.tracer.SetRequestID(&d, &r.Request)
	return r.send(ctx, t.Base, &d, ending{whole: true})
}

// CloseIdleConnections closes the idle connections of Base, if it can.
func (t *Calls) CloseIdleConnections() { transports.CloseIdle(t.Base) }

var errNoURL = errors.New("tracing: the request has no URL")

// request is a request in flight. It owns its spans.
type request struct {
	outgoing.Request
	tracer *spans.Tracer
	caller *http.Request
}

func begin(req *http.Request, tracer *spans.Tracer, err error) (*request, error) {
	if err == nil && req.URL == nil {
		err = errNoURL
	}
	if err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	r := &request{tracer: tracer, caller: req}
	r.Begin(req.Header, false, tracer.Sets())
	return r, nil
}

// describe returns the call in the tracer's terms.
func (r *request) describe() spans.Call {
	req := r.caller
	return spans.Call{
		Method: req.Method, URL: req.URL, RPC: field.CallsGRPC(req), Owner: r, Seed: rand.Uint64(), Header: req.Header, Caller: req.Context(),
	}
}

// number returns the number of the attempt of a call that req is, counted from 1.
func number(req *http.Request) int {
	if values := req.Header[attempt.Header]; len(values) > 0 && attempt.Within(req.Context()) {
		if n, err := strconv.Atoi(values[0]); err == nil && n > 1 {
			return n
		}
	}
	return 1
}

// ending says which spans end with the response.
type ending struct {
	whole   bool // that of the call
	attempt bool // that of the attempt
}

// send sends the request. Its spans, if it has any, end with the response.
func (r *request) send(ctx context.Context, rt http.RoundTripper, d *spans.Call, ends ending) (*http.Response, error) {
	if !r.tracer.Recorded(ctx, d.Owner) {
		resp, err := transports.Or(rt).RoundTrip(r.Of(r.caller, ctx))
		if err == nil {
			attempt.Restore(resp, r.caller, 1)
		}
		return resp, err
	}
	c := &call{tracer: r.tracer, desc: *d, ctx: ctx, ending: ends}
	over := false
	defer func() {
		if !over { // a panic or a Goexit
			c.End(errPanic)
		}
	}()
	resp, err := transports.Or(rt).RoundTrip(r.Of(r.caller, ctx))
	over = true
	if err != nil {
		c.End(err)
		return nil, err
	}
	c.resp = resp
	attempt.Restore(resp, r.caller, 1)
	c.body.Attach(resp, c)
	return resp, nil
}

var errPanic = errors.New("tracing: the transport panicked")

// call is a request whose spans are recorded.
type call struct {
	body   body.Reader
	tracer *spans.Tracer
	desc   spans.Call
	ctx    context.Context
	resp   *http.Response
	ending
}

// End implements body.Ender.
func (c *call) End(err error) {
	attempt := spans.AttemptEnd{Err: err, At: time.Now()}
	whole := spans.CallEnd{GRPCStatus: -1, Err: err}
	if c.resp != nil {
		attempt.Status, attempt.Version = c.resp.StatusCode, spans.Version(c.resp.ProtoMajor, c.resp.ProtoMinor)
		if whole.Status = c.resp.StatusCode; c.desc.RPC {
			whole.GRPCStatus = failure.GRPCAnswered(whole.Status, c.resp.Header, c.resp.Trailer)
		}
	}
	if c.attempt {
		c.tracer.EndAttempt(c.ctx, c.desc.Owner, &attempt)
	}
	if c.whole {
		c.tracer.EndCall(c.ctx, &c.desc, &whole)
	}
}
