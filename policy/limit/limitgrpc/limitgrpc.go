// Package limitgrpc bounds the number of gRPC calls in flight and the rate at which they begin: [Client] for outbound calls, [Server] for
// inbound calls.
//
// A call beyond the first limit fails with Unavailable, as with Envoy, and a call beyond the second one with ResourceExhausted. The errors
// of a Client wrap limit.ErrOverflow and limit.ErrRateLimited; such calls were not sent.
package limitgrpc

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/policy/limit"
)

// limits has what both sides share.
type limits struct {
	once  sync.Once
	pool  *limit.Pool
	rate  *limit.Rate
	fault error // what is wrong with the configuration
}

func (l *limits) start(pool limit.PoolConfig, rate limit.RateConfig) {
	if pool != (limit.PoolConfig{MaxRequests: pool.MaxRequests}) {
		l.fault = errors.New("limitgrpc: only MaxRequests of a pool can be honoured: gRPC keeps the connections")
		return
	}
	if l.pool, l.fault = limit.NewPool(pool); l.fault == nil {
		l.rate, l.fault = limit.NewRate(rate)
	}
}

// acquire takes a slot for a call. The slot is released when the call ends.
func (l *limits) acquire(ctx context.Context) (limit.Slot, error) {
	if l.fault != nil {
		return limit.Slot{}, l.fault
	}
	slot, err := l.pool.Acquire(ctx, true)
	if err == nil && !l.rate.Allow() { // only a call that finds a slot takes a token
		slot.Release()
		return limit.Slot{}, limit.ErrRateLimited
	}
	return slot, err
}

func codeOf(err error) codes.Code {
	switch err {
	case limit.ErrOverflow:
		return codes.Unavailable
	case limit.ErrRateLimited:
		return codes.ResourceExhausted
	}
	return codes.Internal
}

// Client bounds the calls of the grpc.ClientConns that are created with its DialOptions. It is used as a literal:
//
//	limits := &limitgrpc.Client{Pool: limit.PoolConfig{MaxRequests: 100}}
//	conn, err := grpc.NewClient(target, append(limits.DialOptions(), credentials)...)
//
// If its options come after those of retries, each try counts as a call, as in Envoy. The zero Client has no limits. A Client is safe for
// concurrent use; its fields must not be changed after the first call, and it must not be copied.
type Client struct {
	// Pool bounds the calls in flight by MaxRequests. If any other field is set, or Rate is invalid, every call fails. A stream is in
	// flight until it ends.
	Pool limit.PoolConfig

	// Rate bounds the rate at which calls begin.
	Rate limit.RateConfig

	limits limits
}

// DialOptions returns the interceptors.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream)}
}

// Stats returns the counters of the pool.
func (c *Client) Stats() limit.Stats {
	c.limits.once.Do(c.start)
	return c.limits.pool.Stats()
}

func (c *Client) start() { c.limits.start(c.Pool, c.Rate) }

// unary is a grpc.UnaryClientInterceptor.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	c.limits.once.Do(c.start)
	slot, err := c.limits.acquire(ctx)
	if err != nil {
		return grpcstatus.Wrap(codeOf(err), err)
	}
	defer slot.Release()
	return invoker(ctx, method, req, reply, cc, opts...)
}

// stream is a grpc.StreamClientInterceptor.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c.limits.once.Do(c.start)
	slot, err := c.limits.acquire(ctx)
	if err != nil {
		return nil, grpcstatus.Wrap(codeOf(err), err)
	}
	return grpcend.Open(ctx, desc, cc, method, streamer, opts, func(error) { slot.Release() })
}

// Server bounds the calls to a grpc.Server. The response to a call that exceeds Pool tells the client not to retry it. The zero Server has
// no limits. A Server is safe for concurrent use; its fields must not be changed after the first call, and it must not be copied.
type Server struct {
	// Pool bounds the calls in flight by MaxRequests. If any other field is set, or Rate is invalid, every call fails.
	Pool limit.PoolConfig

	// Rate bounds the rate at which calls begin.
	Rate limit.RateConfig

	limits limits
}

// ServerOptions returns the interceptors.
func (s *Server) ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream)}
}

// Stats returns the counters of the pool.
func (s *Server) Stats() limit.Stats {
	s.limits.once.Do(s.start)
	return s.limits.pool.Stats()
}

func (s *Server) start() { s.limits.start(s.Pool, s.Rate) }

// unary is a grpc.UnaryServerInterceptor.
func (s *Server) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	slot, err := s.acquire(ctx, func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) })
	if err != nil {
		return nil, err
	}
	defer slot.Release()
	return handler(ctx, req)
}

// stream is a grpc.StreamServerInterceptor.
func (s *Server) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	slot, err := s.acquire(ss.Context(), ss.SetTrailer)
	if err != nil {
		return err
	}
	defer slot.Release()
	return handler(srv, ss)
}

func (s *Server) acquire(ctx context.Context, setTrailer func(metadata.MD)) (limit.Slot, error) {
	s.limits.once.Do(s.start)
	slot, err := s.limits.acquire(ctx)
	switch err {
	case nil:
		return slot, nil
	case limit.ErrOverflow:
		setTrailer(metadata.Pairs("grpc-retry-pushback-ms", "-1", "x-envoy-overloaded", "true"))
		return slot, status.Error(codes.Unavailable, "overloaded")
	case limit.ErrRateLimited:
		setTrailer(metadata.Pairs("x-envoy-ratelimited", "true"))
		return slot, status.Error(codes.ResourceExhausted, "too many calls")
	}
	return slot, grpcstatus.Wrap(codes.Internal, err)
}
