package retrygrpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/retry"
)

// invoke makes a unary call with as many tries as the policy of l permits, each by invoker, and counts it in the budget.
// If l gave up after several tries, the error is a *retry.Error with the status of the last one.
//
// The options Header, Trailer, Peer and OnFinish do what they do without retries: once, for the call as a whole.
func invoke(ctx context.Context, l *retry.Loop, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) (retry.Summary, error) {
	if idle(l) {
		err := invoker(ctx, method, req, reply, cc, opts...)
		return once(ctx, err), err
	}
	u := &unary{method: method, req: req, reply: reply, cc: cc, invoker: invoker}
	common, results := grpcreplay.Split(u.room[:0], opts)
	common = append(common, grpc.Header(&u.left.Header), grpc.Trailer(&u.left.Trailer))
	if results.WantPeer() {
		common = append(common, grpc.Peer(&u.left.Peer))
	}
	if codec, encoded := grpcreplay.EncodingOf(opts).Codec(common); codec != nil {
		message := grpcreplay.Message{Value: req}
		codec.Sends(&message)
		defer message.Free()
		common = encoded
	}
	u.opts = common[:len(common):len(common)] // an interceptor may append to it

	n, reason, gone := grpcreplay.Do(ctx, l, u)
	err := result(ctx, n, reason, gone, u.out.err)
	u.left.Fill(results)
	results.End(err)
	return retry.Summary{Attempts: n, Stopped: reason}, err
}

// unary is a unary call.
type unary struct {
	method     string
	req, reply any
	cc         *grpc.ClientConn
	invoker    grpc.UnaryInvoker
	opts       []grpc.CallOption
	room       [6]grpc.CallOption // for opts
	left       grpcreplay.Left
	out        outcome
}

// Try implements grpcreplay.Tries. gRPC is done with the reply when it returns, so tries never share it.
func (u *unary) Try(ctx context.Context, limit time.Duration, n int) grpcreplay.Outcome {
	u.left = grpcreplay.Left{}
	if limit == 0 {
		u.end(u.invoker(mark(ctx, n), u.method, u.req, u.reply, u.cc, u.opts...))
		return u.out.decisive(ctx)
	}
	bounded := new(deadline.Context)
	bounded.Start(mark(ctx, n), deadline.PerTry, limit, true)
	defer bounded.Cancel()
	began := time.Now()
	u.end(u.invoker(bounded, u.method, u.req, u.reply, u.cc, u.opts...))
	// The server knows the limit and may notice a moment before us that it is over.
	if u.out.err != nil && (bounded.Exceeded() != nil ||
		status.Code(u.out.err) == codes.DeadlineExceeded && !failure.Over(ctx) && time.Since(began) >= limit-limit/10) {
		u.out.err, u.out.late = tooLate(bounded), true
	}
	return u.out.decisive(ctx)
}

// end notes how a try ended.
func (u *unary) end(err error) {
	u.out = outcome{err: err, begun: u.left.Trailer != nil, header: u.left.Header, trailer: u.left.Trailer}
}

// Drop implements grpcreplay.Tries.
func (u *unary) Drop() bool { return true }
