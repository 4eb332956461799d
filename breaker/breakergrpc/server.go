package breakergrpc

import (
	"context"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/grpcstatus"
)

// Server stops serving for a while when its calls keep failing: a server whose database is gone does better to refuse at
// once than to keep all callers waiting. Refused calls get status Unavailable, with grpc-retry-pushback-ms and
// x-envoy-overloaded so that clients do not retry at once; the clients of gRPC and of this library comply.
//
// A call counts as failed by its status, or when the handler panics; a call that its client cancelled counts neither
// way. It must not be copied or changed after its first use.
type Server struct {
	// Config is the circuit. If it is invalid, every call is answered with Internal.
	Config breaker.Config

	// IsFailure reports whether a call that the handler ended with err failed. nil means the mapping in the package comment.
	IsFailure func(err error) bool

	// OnChange is called for every change of state, as described at breaker.New. nil: changes are not reported.
	OnChange func(breaker.Change)

	once    sync.Once
	circuit *breaker.Circuit
	invalid error
}

// ServerOptions returns the interceptors.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream)}
}

// State returns the state of the circuit.
func (s *Server) State() breaker.State {
	s.once.Do(s.setup)
	if s.invalid != nil {
		return breaker.Closed
	}
	return s.circuit.State()
}

// unary is a grpc.UnaryServerInterceptor.
func (s *Server) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	lease, err := s.allow(func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
	if err != nil {
		return nil, err
	}
	result := breaker.Failure // if the handler panics or exits
	defer func() { lease.Done(result) }()
	resp, err := handler(ctx, req)
	result = s.outcome(ctx, err)
	return resp, err
}

// stream is a grpc.StreamServerInterceptor.
func (s *Server) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	lease, err := s.allow(ss.SetTrailer)
	if err != nil {
		return err
	}
	result := breaker.Failure
	defer func() { lease.Done(result) }()
	err = handler(srv, ss)
	result = s.outcome(ss.Context(), err)
	return err
}

func (s *Server) setup() {
	s.circuit, s.invalid = breaker.New(s.Config, s.OnChange)
}

func (s *Server) allow(setTrailer func(metadata.MD)) (breaker.Lease, error) {
	s.once.Do(s.setup)
	if s.invalid != nil {
		return breaker.Lease{}, grpcstatus.Wrap(codes.Internal, s.invalid)
	}
	lease, err := s.circuit.Allow()
	if err != nil {
		setTrailer(metadata.Pairs("grpc-retry-pushback-ms", "-1", "x-envoy-overloaded", "true"))
		return lease, status.Error(codes.Unavailable, "circuit open")
	}
	return lease, nil
}

func (s *Server) outcome(ctx context.Context, err error) breaker.Outcome {
	switch {
	case cancelled(ctx):
		return breaker.Ignored
	case err == nil:
		return breaker.Success
	case s.IsFailure != nil && s.IsFailure(err), s.IsFailure == nil && failed(err):
		return breaker.Failure
	}
	return breaker.Success
}
