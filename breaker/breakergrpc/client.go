// Package breakergrpc puts circuits in front of gRPC calls: [Client] on the calling side, with one circuit per destination,
// and [Server] on the serving side.
//
// The status of a call decides whether it failed. It is mapped to an HTTP status as Envoy does: Unknown, DeadlineExceeded,
// Unimplemented, Internal, Unavailable and DataLoss are failures.
package breakergrpc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/refusal"
)

// Client has a circuit for each destination. A call that it refuses fails with status Unavailable and an error that
// wraps breaker.ErrOpen and names the destination. The zero Client is ready to use, as a literal:
//
//	circuits := &breakergrpc.Client{}
//	conn, err := grpc.NewClient(target, append(circuits.DialOptions(), credentials)...)
//
// A call ends, and its outcome counts, when its stream ends. It is safe for concurrent use; its fields must not be changed
// once it is used, and it must not be copied. With retries, put its options after theirs.
type Client struct {
	// Config is the configuration of every circuit. If it is invalid, every call fails. For SlowCall, a call has responded
	// when its response headers arrive or, without SlowCallFraction, when it ends. A stream then takes a goroutine until it is answered.
	Config breaker.Config

	// Key names the destination of a call: calls with the same key share a circuit. nil means the target of the
	// ClientConn.
	Key func(ctx context.Context, method string, cc *grpc.ClientConn) string

	// IsFailure reports whether a call that ended with err failed. nil means the mapping in the package comment. It is not
	// called for calls that do not count: the caller cancelled them, a layer below refused them before anything was sent, or a message
	// cannot be encoded.
	IsFailure func(err error) bool

	// OnChange, if not nil, is called for every change of a circuit's state, as described at breaker.New.
	OnChange func(key string, change breaker.Change)

	once  sync.Once
	group breaker.Group
}

// DialOptions returns the interceptors.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithChainUnaryInterceptor(c.unary), grpc.WithChainStreamInterceptor(c.stream)}
}

// States returns the state of every circuit by key.
func (c *Client) States() map[string]breaker.State {
	c.once.Do(c.setup)
	return c.group.States()
}

// unary is a grpc.UnaryClientInterceptor.
func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	lease, err := c.allow(ctx, method, cc)
	if err != nil {
		return err
	}
	result := breaker.Failure // if the invoker panics or exits
	defer func() { lease.Done(result) }()
	err = invoker(ctx, method, req, reply, cc, opts...)
	if unsendable(req, opts, err) {
		result = breaker.Ignored
		return err
	}
	result = c.outcome(ctx, err)
	return err
}

// unsendable reports whether a unary call failed with err because its message cannot be encoded or is too large to be sent, which says nothing
// about the server. The text of gRPC does not suffice: a server with such a reply sends the same.
func unsendable(message any, opts []grpc.CallOption, err error) bool {
	if err == nil {
		return false
	}
	text := status.Convert(err).Message()
	var size, most int
	_, tooLarge := fmt.Sscanf(text, "trying to send message larger than max (%d vs. %d)", &size, &most)
	if tooLarge != nil && !strings.HasPrefix(text, "grpc: error while marshaling") {
		return false
	}
	again := grpcreplay.Message{Value: message}
	defer again.Free()
	data, err := again.Encode(grpcreplay.EncodingOf(opts))
	if err != nil {
		return true
	}
	defer data.Free()
	return tooLarge == nil && data.Len() == size
}

func (c *Client) setup() {
	c.group.Config, c.group.OnChange = c.Config, c.OnChange
}

func (c *Client) allow(ctx context.Context, method string, cc *grpc.ClientConn) (breaker.Lease, error) {
	c.once.Do(c.setup)
	key := ""
	if c.Key != nil {
		key = c.Key(ctx, method, cc)
	} else {
		key = cc.Target()
	}
	lease, err := c.group.Allow(key)
	switch {
	case err == nil:
		return lease, nil
	case errors.Is(err, breaker.ErrOpen):
		return lease, grpcstatus.Wrap(codes.Unavailable, err)
	}
	return lease, grpcstatus.Wrap(codes.Internal, err)
}

func (c *Client) outcome(ctx context.Context, err error) breaker.Outcome {
	switch {
	case err == nil:
		return breaker.Success
	case refusal.Is(err) || cancelled(ctx):
		return breaker.Ignored
	case c.IsFailure != nil && c.IsFailure(err), c.IsFailure == nil && failed(err):
		return breaker.Failure
	}
	return breaker.Success
}

// cancelled reports whether the caller gave up. An expired deadline does not count as giving up, nor does a timer that
// cancels the context and says so in the cause.
func cancelled(ctx context.Context) bool {
	return ctx.Err() == context.Canceled && !errors.Is(context.Cause(ctx), context.DeadlineExceeded)
}

func failed(err error) bool {
	return grpcstatus.HTTP(grpcstatus.Code(err)) >= http.StatusInternalServerError
}
