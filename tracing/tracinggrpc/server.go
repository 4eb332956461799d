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
	"github.com/nosidecar/mesh/internal/spans"
	"github.com/nosidecar/mesh/tracing"
)

// Server begins a SERVER span for each call, as a child of what its metadata tells of. The context that the handler gets carries
// from there what calls made for it pass on; see [tracing.Handler]. It is safe for concurrent use; its fields must not be changed
// after the first call, and it must not be copied. Its options come before those of other interceptors. Calls of methods that do
// not exist reach no interceptor, and have no span.
type Server struct {
	// Config says what is made and carried. If it is invalid, every call is answered with Internal.
	Config tracing.Config

	// Untrusted, if set, reports which calls come from outside: their trace metadata, their baggage and their x-request-id are
	// not believed, and removed before the handler sees them. nil believes all.
	Untrusted func(context.Context) bool

	once   sync.Once
	tracer *spans.Tracer
	err    error
}

// ServerOptions returns the interceptors.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream)}
}

// begin begins the span. It returns the context for the handler.
func (s *Server) begin(ctx context.Context, method string) (context.Context, error) {
	s.once.Do(func() { s.tracer, s.err = spans.New(spans.Config(s.Config)) })
	if s.err != nil {
		return nil, grpcstatus.Wrap(codes.Internal, s.err)
	}
	md, _ := metadata.FromIncomingContext(ctx) // a copy
	untrusted := s.Untrusted != nil && s.Untrusted(ctx)
	req := &http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: method}, Header: header(md, s.tracer.Names()), ProtoMajor: 2,
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
	if s.Config.EchoRequestID {
		_ = grpc.SetHeader(ctx, metadata.Pairs("x-request-id", spans.RequestID(ctx))) // fails when there is no answer any more
	}
	return ctx, nil
}

func end(ctx context.Context, err error) {
	spans.EndInbound(ctx, &spans.Response{RPC: true, Code: uint32(grpcstatus.Code(err))}, http.MethodPost)
}

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (_ any, err error) {
	if ctx, err = s.begin(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	result := errPanic
	defer func() { end(ctx, result) }()
	reply, err := handler(ctx, req)
	result = err
	return reply, err
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	ctx, err := s.begin(ss.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	result := errPanic
	defer func() { end(ctx, result) }()
	result = handler(srv, &serverStream{ss, ctx})
	return result
}

// serverStream is a stream with the context of its span.
type serverStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context implements grpc.ServerStream.
func (s *serverStream) Context() context.Context { return s.ctx }
