package tracing

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/attempt"
	"github.com/nosidecar/mesh/internal/base"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/spans"
)

// Transport is an http.RoundTripper that makes a CLIENT span for each request, and sends the headers that carry it. It is used as
// a literal:
//
//	client := &http.Client{Transport: &tracing.Transport{Config: tracing.Config{Provider: provider}}}
//
// A Transport is safe for concurrent use; its fields must not be changed after the first call, and it must not be copied. Below a
// retry.Transport it makes a span for each attempt.
type Transport struct {
	// Base sends the requests. nil: http.DefaultTransport.
	Base http.RoundTripper

	// Config says what is made and sent. If it is invalid, every call fails.
	Config Config

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

var _ http.RoundTripper = (*Transport)(nil)

func (t *Transport) setup() { t.tracer, t.err = spans.New(spans.Config(t.Config)) }

// RoundTrip sends a copy of req with the headers of its span, which ends with the body of the response.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(t.setup)
	c, err := begin(req, t.tracer, t.err)
	if err != nil {
		return nil, err
	}
	ctx := req.Context()
	if owner := spans.Shared(ctx); owner != nil { // that of a Calls
		c.desc.Owner, c.attempt = owner, true
	} else {
		ctx, c.attempt, c.whole = c.tracer.StartCall(ctx, &c.desc), true, true
	}
	c.ctx = c.tracer.StartAttempt(ctx, &c.desc, &spans.Attempt{
		Number: number(req), Start: c.desc.Start, Header: req.Header, Set: c,
	})
	return c.send(t.Base)
}

// CloseIdleConnections closes the idle connections of Base, if it can.
func (t *Transport) CloseIdleConnections() { base.CloseIdle(t.Base) }

// Calls is an http.RoundTripper to be used around a retry.Transport whose Base is a [Transport]: it makes of the attempts one
// call, as the package says, with one x-request-id. Its Config should be that of the Transport, which sets the headers.
//
// A Calls is safe for concurrent use; its fields must not be changed after the first call, and it must not be copied.
type Calls struct {
	// Base makes the attempts. nil: http.DefaultTransport.
	Base http.RoundTripper

	// Config says what is made. If it is invalid, every call fails.
	Config Config

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

var _ http.RoundTripper = (*Calls)(nil)

// RoundTrip makes a call. Its span, if it has one, ends with the body of the response.
func (t *Calls) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(func() { t.tracer, t.err = spans.New(spans.Config(t.Config)) })
	c, err := begin(req, t.tracer, t.err)
	if err != nil {
		return nil, err
	}
	c.desc.Shared, c.whole = true, true
	c.ctx = c.tracer.StartCall(req.Context(), &c.desc)
	c.tracer.SetRequestID(&c.desc, c)
	return c.send(t.Base)
}

// CloseIdleConnections closes the idle connections of Base, if it can.
func (t *Calls) CloseIdleConnections() { base.CloseIdle(t.Base) }

var errNoURL = errors.New("tracing: the request has no URL")

// call is a request on its way.
type call struct {
	body   body.Reader
	tracer *spans.Tracer
	desc   spans.Call
	ctx    context.Context // to send it with
	caller *http.Request
	out    http.Request
	header http.Header  // of what is sent, nil while it is the caller's
	values field.Values // that are set in it
	resp   *http.Response

	whole, attempt bool // what ends with it
}

func begin(req *http.Request, tracer *spans.Tracer, err error) (*call, error) {
	if err == nil && req.URL == nil {
		err = errNoURL
	}
	if err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	c := &call{tracer: tracer, caller: req}
	c.desc = spans.Call{
		Method: req.Method, URL: req.URL, RPC: isGRPC(req.Header), Start: time.Now(), Owner: c, Seed: rand.Uint64(),
		Header: req.Header, Caller: req.Context(),
	}
	return c, nil
}

func isGRPC(h http.Header) bool {
	values := h["Content-Type"]
	return len(values) > 0 && field.IsGRPC(values[0])
}

// number returns which try of a call req is.
func number(req *http.Request) int {
	if values := req.Header[attempt.Header]; len(values) > 0 && attempt.Within(req.Context()) {
		if n, err := strconv.Atoi(values[0]); err == nil && n > 1 {
			return n
		}
	}
	return 1
}

// SetHeader implements spans.Setter.
func (c *call) SetHeader(name, value string) {
	if c.header == nil { // values are only ever replaced as a whole, so the caller's can be shared
		c.header = make(http.Header, len(c.caller.Header)+c.tracer.Sets())
		maps.Copy(c.header, c.caller.Header)
	}
	if value == "" {
		delete(c.header, name)
	} else {
		c.header[name] = c.values.Of(value)
	}
}

// send sends the request and has the spans end with the response.
func (c *call) send(rt http.RoundTripper) (*http.Response, error) {
	out := c.caller
	if c.ctx != c.caller.Context() {
		out = c.caller.WithContext(c.ctx)
	} else if c.header != nil {
		c.out = *c.caller
		out = &c.out
	}
	if c.header != nil {
		out.Header = c.header
	}
	over := false
	defer func() {
		if !over { // a panic or a Goexit
			c.End(errPanic)
		}
	}()
	resp, err := base.Or(rt).RoundTrip(out)
	over = true
	if err != nil {
		c.End(err)
		return nil, err
	}
	c.resp = resp
	attempt.Restore(resp, c.caller, 1)
	c.body.Attach(resp, c)
	return resp, nil
}

var errPanic = errors.New("tracing: the transport has panicked")

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
		spans.EndAttempt(c.ctx, c.desc.Owner, &attempt)
	}
	if c.whole {
		c.tracer.EndCall(c.ctx, &c.desc, &whole)
	}
}
