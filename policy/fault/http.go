package fault

import (
	"context"
	"net/http"
	"strconv"
	"sync"

	"github.com/nosidecar/mesh/internal/base"
	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/pause"
	"github.com/nosidecar/mesh/internal/reply"
)

const abortText = "fault filter abort" // Envoy's

// Transport is an http.RoundTripper that makes some of the calls through it meet faults. It must not be changed after
// its first use.
type Transport struct {
	// Base makes the calls. Nil means http.DefaultTransport.
	Base http.RoundTripper

	// Config is the faults. The zero value has none. Every call fails if it is not valid.
	Config Config

	// Rand returns an integer in [0, n). Nil means math/rand/v2.
	Rand func(n uint32) uint32

	once    sync.Once
	invalid error
}

// RoundTrip implements http.RoundTripper. If the request's context ends during a delay, it returns the cause.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(func() { t.invalid = t.Config.Validate() })
	if t.invalid != nil {
		body.CloseRequest(req)
		return nil, t.invalid
	}
	d := t.Config.Decide(t.Rand)
	ctx, stop := caller.Wait(req.Context(), req)
	defer stop()
	if err := d.Wait(ctx); err != nil {
		body.CloseRequest(req)
		return nil, err
	}
	if d.Abort {
		body.CloseRequest(req)
		return d.Response(req), nil
	}
	return base.Or(t.Base).RoundTrip(req)
}

// CloseIdleConnections closes the idle connections of the base.
func (t *Transport) CloseIdleConnections() {
	base.CloseIdle(t.Base)
}

// Wait holds the call back for the delay, and returns the cause if ctx ends first.
func (d *Decision) Wait(ctx context.Context) error {
	if d.Delay <= 0 {
		return nil
	}
	return pause.For(ctx, d.Delay)
}

// Response returns the answer to an aborted call. A gRPC call (by its content type) gets a response without body whose
// header is also its trailer, as gRPC has it; for an HTTPStatus, with the code that gRPC gives that status. Any other
// call gets HTTPStatus, or 200 where the abort is a gRPC status, and a text.
func (d *Decision) Response(req *http.Request) *http.Response {
	if !field.IsGRPC(req.Header.Get("Content-Type")) {
		status := http.StatusOK
		if !d.IsGRPC {
			status = d.HTTPStatus
		}
		return reply.New(req, status, []byte(abortText))
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
		"Grpc-Message": {abortText},
	}
	return resp
}
