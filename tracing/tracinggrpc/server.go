package tracinggrpc

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/internal/spans"
)

// Server starts a SERVER span for each call, as a child of the span in its metadata. The context of the handler has what must be
// propagated to calls made on its behalf; see [tracing.Handler]. A Server is safe for concurrent use; its fields must not be changed
// after the first call, and it must not be copied. Give its options before those of other interceptors. Calls to unknown methods do not
// reach interceptors, so they have no span.
type Server struct {
	// Config says which spans are created and what is propagated. If it is invalid, every call fails with Internal.
	Config tracing.Config

	// Untrusted, if set, reports whether a call comes from outside. Its trace metadata, baggage and x-request-id are then not trusted,
	// and are removed before the handler sees the call. nil trusts all calls.
	Untrusted func(context.Context) bool

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

// ServerOptions returns the interceptors.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream)}
}

// begin starts the span. It returns the context for the handler, and the header of the response.
func (s *Server) begin(ctx context.Context, method string) (context.Context, *grpcwire.ReplyHeader, error) {
	s.once.Do(func() { s.tracer, s.err = spans.New(spans.Config(s.Config)) })
	if s.err != nil {
		return nil, nil, grpcstatus.Wrap(codes.Internal, s.err)
	}
	md, _ := metadata.FromIncomingContext(ctx) // a copy
	untrusted := s.Untrusted != nil && s.Untrusted(ctx)
	req := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: method}, Header: header(md, s.tracer.Names()),
	}
	if hosts := md[":authority"]; len(hosts) > 0 {
		req.Host = hosts[0]
	}
	if from, ok := peer.FromContext(ctx); ok && from.Addr != nil {
		req.RemoteAddr = from.Addr.String()
	}
	if untrusted {
		for _, name := range s.tracer.Trusted() {
			delete(md, strings.ToLower(name))
		}
		ctx = metadata.NewIncomingContext(ctx, md)
	}
	ctx = s.tracer.StartInbound(ctx, &spans.Request{
		Request: req, RPC: true, Restart: untrusted, NewID: untrusted,
	})
	if id := spans.RequestID(ctx); s.Config.EchoRequestID && id != "" {
		return ctx, grpcwire.NewReplyHeader(metadata.Pairs("x-request-id", id)), nil
	}
	return ctx, nil, nil
}

func end(ctx context.Context, err error) {
	spans.EndInbound(ctx, &spans.Response{RPC: true, Code: uint32(grpcstatus.Code(err))})
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	ctx, header, err := s.begin(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	result := errPanic
	defer func() { end(ctx, result) }()
	reply, err := handler(ctx, req)
	header.End(ctx, err)
	result = err
	return reply, err
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, header, err := s.begin(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	result := errPanic
	defer func() { end(ctx, result) }()
	result = handler(srv, header.Stream(&serverStream{ss, ctx}))
	header.End(ctx, result)
	return result
}

// serverStream is a stream with the context of its span.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }
