// Package tracinggrpc creates spans for gRPC calls, at both ends, and propagates traces from one to the other, as package tracing does for
// HTTP. For a mesh, package tracingmesh does that for gRPC too.
//
// A call has one CLIENT span and one SERVER span, with the name package.Service/Method and the attributes of the semantic conventions
// 1.43. The spans of a stream end with the stream. Client spans treat every status except OK as an error, server spans only those that
// blame the server. A call that its caller canceled is not an error.
package tracinggrpc

import (
	"context"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/internal/spans"
)

// Client starts a CLIENT span for each call of a grpc.ClientConn, and sends the metadata that propagates it. It is safe for concurrent
// use; its fields must not be changed after the first call, and it must not be copied. Give its options before those of retries, so
// that all attempts belong to one call.
type Client struct {
	// Config says which spans are created and what is propagated. CallSpans has no effect. If it is invalid, every call fails.
	Config tracing.Config

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

// DialOptions returns the interceptors.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream)}
}

// call is a call in flight.
type call struct {
	tracer *spans.Tracer
	desc   spans.Call
	ctx    context.Context // the context to make the call with
	once   sync.Once
}

func (c *Client) begin(ctx context.Context, method string, cc *grpc.ClientConn) (*call, error) {
	c.once.Do(func() { c.tracer, c.err = spans.New(spans.Config(c.Config)) })
	if c.err != nil {
		return nil, grpcstatus.Wrap(codes.Internal, c.err)
	}
	md, _ := metadata.FromOutgoingContext(ctx) // a copy
	if md == nil {
		md = metadata.MD{}
	}
	made := &call{tracer: c.tracer}
	made.desc = spans.Call{
		Method: http.MethodPost, URL: &url.URL{Scheme: "http", Host: host(cc.CanonicalTarget()), Path: method}, RPC: true,
		Owner: made, Seed: rand.Uint64(), Header: header(md, c.tracer.Names()), Caller: ctx,
	}
	ctx = c.tracer.StartCall(ctx, &made.desc)
	ctx = c.tracer.StartAttempt(ctx, &made.desc, &spans.Attempt{
		Number: 1, Header: made.desc.Header, Set: setter(md),
	})
	made.ctx = metadata.NewOutgoingContext(ctx, md)
	return made, nil
}

// host returns the host of a target, with its port. The target is in its canonical form: scheme://[authority]/host.
func host(target string) string {
	_, rest, _ := strings.Cut(target, "://")
	_, name, _ := strings.Cut(rest, "/")
	return name
}

// header returns the metadata with the given names as an HTTP header.
func header(md metadata.MD, names []string) http.Header {
	var h http.Header
	for _, name := range names {
		if values := md[strings.ToLower(name)]; values != nil {
			if h == nil {
				h = http.Header{}
			}
			h[name] = values
		}
	}
	return h
}

// setter sets metadata.
type setter metadata.MD

// SetHeader implements spans.Setter.
func (s setter) SetHeader(name, value string) {
	if name = strings.ToLower(name); value == "" {
		delete(s, name)
	} else {
		s[name] = []string{value}
	}
}

// end ends the span, once.
func (c *call) end(err error) {
	c.once.Do(func() {
		c.tracer.EndCall(c.ctx, &c.desc, &spans.CallEnd{GRPCStatus: int(grpcstatus.Code(err)), Err: cause(c.desc.Caller, err)})
	})
}

// cause returns context.Canceled if the caller canceled the call, and err otherwise.
func cause(caller context.Context, err error) error {
	if grpcstatus.Code(err) == codes.Canceled && caller.Err() != nil {
		return context.Canceled
	}
	return err
}

func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker,
	opts ...grpc.CallOption) error {
	call, err := c.begin(ctx, method, cc)
	if err != nil {
		return err
	}
	defer call.end(errPanic) // if it panics
	err = invoker(call.ctx, method, req, reply, cc, opts...)
	call.end(err)
	return err
}

func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer,
	opts ...grpc.CallOption) (grpc.ClientStream, error) {
	call, err := c.begin(ctx, method, cc)
	if err != nil {
		return nil, err
	}
	return grpcend.Open(call.ctx, desc, cc, method, streamer, opts, call.end)
}

var errPanic = status.Error(codes.Unknown, "tracinggrpc: a panic")
