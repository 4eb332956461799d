// Package faultgrpc delays and aborts gRPC calls on purpose, to test how their callers cope.
package faultgrpc

import (
	"context"
	"errors"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/policy/fault"
)

// Client injects faults into some of the calls of a grpc.ClientConn. An abort with an HTTP status fails a call with the gRPC
// code that stands for that status. Faults are injected once per call, so give these options before those of retries. The zero
// Client injects no faults. A Client is safe for concurrent use. Its fields must not be changed after its first use.
type Client struct {
	// Config describes the faults. Every call fails if it is invalid.
	Config fault.Config

	// Rand returns an integer in [0, n). Nil means math/rand/v2.
	Rand func(n uint32) uint32

	once    sync.Once
	invalid error
}

// DialOptions returns the interceptors.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream)}
}

// unary is a grpc.UnaryClientInterceptor.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := c.inject(ctx); err != nil {
		return err
	}
	return invoker(ctx, method, req, reply, cc, opts...)
}

// stream is a grpc.StreamClientInterceptor.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := c.inject(ctx); err != nil {
		return nil, err
	}
	return streamer(ctx, desc, cc, method, opts...)
}

// inject delays the call, and returns the error if it is aborted or its context ends during the delay.
func (c *Client) inject(ctx context.Context) error {
	c.once.Do(func() { c.invalid = c.Config.Validate() })
	if c.invalid != nil {
		return grpcstatus.Wrap(codes.Internal, c.invalid)
	}
	d := c.Config.Decide(c.Rand)
	if err := d.Wait(ctx); err != nil {
		code := codes.Canceled
		if errors.Is(err, context.DeadlineExceeded) || ctx.Err() == context.DeadlineExceeded {
			code = codes.DeadlineExceeded
		}
		return grpcstatus.Wrap(code, err)
	}
	switch {
	case !d.Abort:
		return nil
	case d.IsGRPC && d.GRPCStatus == 0:
		return status.Error(codes.Internal, refusal.FaultAborted+": status OK without a reply") // to gRPC, that is a protocol error
	case d.IsGRPC:
		return status.Error(codes.Code(d.GRPCStatus), refusal.FaultAborted)
	}
	return status.Error(grpcstatus.FromHTTP(d.HTTPStatus), refusal.FaultAborted)
}
