package fault

import (
	"context"
	"net/http"
	"strconv"
	"sync"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/pause"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/internal/reply"
	"github.com/nosidecar/mesh/internal/transports"
)

// Transport is an http.RoundTripper that injects faults into some of the calls. It is safe for concurrent use. Its fields must
// not be changed after its first use.
type Transport struct {
	// Base makes the calls. Nil means http.DefaultTransport.
	Base http.RoundTripper

	// Config describes the faults. The zero value injects none. Every call fails if it is invalid.
	Config Config

	// Rand returns an integer in [0, n). It must be safe for concurrent use. Nil means math/rand/v2.
	Rand func(n uint32) uint32

	once    sync.Once
	invalid error
}

// RoundTrip implements http.RoundTripper. If the request's context ends during a delay, it returns the cause of the context.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(func() { t.invalid = t.Config.Validate() })
	if t.invalid != nil {
		body.CloseRequest(req)
		return nil, t.invalid
	}
	d := t.Config.Decide(t.Rand)
	ctx := caller.Wait(req.Context(), req)
	defer caller.Stop(ctx, req)
	if err := d.Wait(ctx); err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	if d.Abort {
		body.CloseRequest(req)
		return d.Response(req), nil
	}
	return transports.Or(t.Base).RoundTrip(req)
}

// CloseIdleConnections closes the idle connections of the base.
func (t *Transport) CloseIdleConnections() {
	transports.CloseIdle(t.Base)
}

// Wait waits for the delay. If ctx ends first, it returns the cause of ctx.
func (d *Decision) Wait(ctx context.Context) error {
	if d.Delay <= 0 {
		return nil
	}
	return pause.For(ctx, d.Delay)
}

// Response returns the response to an aborted call. A gRPC call, recognised by its content type, gets a trailers-only response;
// an HTTPStatus becomes the gRPC code that stands for it. Any other call gets HTTPStatus, or 200 if the abort has a gRPC status,
// with a short text as its body if such a response has one. The body of req stays open.
func (d *Decision) Response(req *http.Request) *http.Response {
	if !field.IsGRPC(req.Header) {
		status := http.StatusOK
		if !d.IsGRPC {
			status = d.HTTPStatus
		}
		return reply.New(req, status, []byte(refusal.FaultAborted))
	}
	code := d.GRPCStatus
	if !d.IsGRPC {
		code = failure.GRPCCode(d.HTTPStatus)
	}
	resp := reply.New(req, http.StatusOK, nil)
	resp.Proto, resp.ProtoMajor, resp.ProtoMinor = "HTTP/2.0", 2, 0
	resp.Header = http.Header{
		"Content-Type": {"application/grpc"},
		"Grpc-Status":  {strconv.FormatUint(uint64(code), 10)},
		"Grpc-Message": {refusal.FaultAborted},
	}
	return resp
}
