// Package retrygrpc retries gRPC calls.
//
// [Client] is a pair of interceptors for an ordinary grpc.ClientConn.
//
// retry.On says what is retried, with Envoy's meaning: a status counts only in a trailers-only reply; once response headers
// have come, the caller gets the reply. If the server sets grpc-retry-pushback-ms, that has the last word. A retry carries
// grpc-previous-rpc-attempts.
//
// With the other layers, the options of a grpc.ClientConn are given in the order in which a call meets the layers. Those after the
// retries meet each try:
//
//	options := slices.Concat(traces.DialOptions(), balancing.DialOptions(), timeouts.DialOptions(), faults.DialOptions(),
//		retries.DialOptions(), limits.DialOptions(), circuits.DialOptions())
package retrygrpc

import (
	"context"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/retry"
)

// Client retries the calls of a grpc.ClientConn. It is used as a literal:
//
//	retries := &retrygrpc.Client{Config: retry.Config{Retries: 2}}
//	conn, err := grpc.NewClient(target, append(retries.DialOptions(), credentials)...)
//
// The zero Client retries nothing. A Client is safe for concurrent use; its fields must not be changed after the first
// call, and it must not be copied. One Client has one budget: give each destination its own.
type Client struct {
	// Config says what is retried, how often and how fast. If it is invalid, every call fails. Three fields have a
	// meaning of their own here:
	//
	// On: the zero value means GatewayError|ConnectFailure|RefusedStream|Unavailable.
	//
	// PerTryTimeout bounds, for a stream, the wait for response headers: a stream that has begun is never cut. For a unary
	// call, which is done when it is answered, it bounds the whole try, and the server is told of it. A try that is cut off ends without
	// a reply: see AnyMethod for whether there is another one.
	//
	// AnyMethod: without it, a try that ended without a reply from the server, such as on a broken connection, is retried
	// only if the server provably did not process it, or if the call's metadata has an idempotency-key. A status that On
	// names needs no such proof: it is the server's reply.
	Config retry.Config

	// Budget limits the retries to a share of the calls: by default 20%, and 10 per second on top.
	Budget retry.BudgetConfig

	// Limiter bounds the number of retries in flight. Off by default.
	Limiter retry.LimiterConfig

	// Rand returns random numbers in [0, 1) for the backoff. It must be safe for concurrent use. nil: the global source.
	Rand func() float64

	// Observe, if set, is called with a summary of each call: before a unary call returns, and when a stream is answered or
	// given up. For a stream it usually runs on a goroutine of its own.
	Observe func(ctx context.Context, method string, s retry.Summary)

	once   sync.Once
	loop   retry.Loop
	err    error
	active atomic.Int64 // calls without an answer so far, if the limiter needs it
}

// DialOptions returns the interceptors, and grpc.WithDisableRetry: retry policies in a service config are ignored. gRPC's
// transparent retries, of calls that were never sent, stay on.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDisableRetry(),
		grpc.WithChainUnaryInterceptor(c.unary),
		grpc.WithChainStreamInterceptor(c.stream),
	}
}

// unary is a grpc.UnaryClientInterceptor. If the tries are used up, the error is a *retry.Error with the status of the
// last one.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	c.once.Do(c.compile)
	if c.err != nil {
		return c.err
	}
	if c.Limiter.Fraction > 0 {
		c.active.Add(1)
		defer c.active.Add(-1)
	}
	summary, err := invoke(ctx, &c.loop, method, req, reply, cc, invoker, opts...)
	if c.Observe != nil {
		c.Observe(ctx, method, summary)
	}
	return err
}

// stream is a grpc.StreamClientInterceptor. The caller makes the tries of a stream, and decides about a further one once it sends or receives.
// A goroutine does if it matters when the stream is answered: for a PerTryTimeout, for Observe, and while a retry counts for the Limiter. It ends
// when the stream is answered or given up, or with ctx or the connection. There is no further try after one that sent more than 256 KiB (or what
// grpc.MaxRetryRPCBufferSize says), or whose Context or Trailer the caller has asked for. While a retry is under way,
// SendMsg and RecvMsg wait. The options Header, Trailer, Peer and OnFinish do what they do without retries: once, for the
// call as a whole.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	c.once.Do(c.compile)
	if c.err != nil {
		return nil, c.err
	}
	counted := c.Limiter.Fraction > 0
	if counted {
		c.active.Add(1)
	}
	var settled func(retry.Summary)
	if counted || c.Observe != nil {
		settled = func(summary retry.Summary) {
			if counted {
				c.active.Add(-1)
			}
			if c.Observe != nil {
				c.Observe(ctx, method, summary)
			}
		}
	}
	return newStream(ctx, &c.loop, desc, cc, method, streamer, settled, opts...)
}

func (c *Client) compile() {
	config := c.Config
	if config.On == (retry.On{}) {
		config.On.Conditions = retry.GatewayError | retry.ConnectFailure | retry.RefusedStream | retry.Unavailable
	}
	c.loop.Rand = c.Rand
	var err error
	defer func() {
		if err != nil {
			c.err = grpcstatus.Wrap(codes.Internal, err)
		}
	}()
	if c.loop.Policy, err = retry.NewPolicy(config); err != nil {
		return
	}
	if c.loop.Budget, err = retry.NewBudget(c.Budget); err != nil {
		return
	}
	c.loop.Limiter, err = retry.NewLimiter(c.Limiter, c.active.Load)
}
