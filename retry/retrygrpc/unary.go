package retrygrpc

import (
	"context"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/retry"
)

// invoke makes a unary call with as many tries as the policy of l permits, each by invoker, and counts it in the budget.
// If l gave up after several tries, the error is a *retry.Error with the status of the last one.
//
// The options Header, Trailer, Peer and OnFinish do what they do without retries: once, for the call as a whole.
func invoke(ctx context.Context, l *retry.Loop, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) (retry.Summary, error) {
	l.Budget.Deposit()
	if idle(l) {
		err := invoker(ctx, method, req, reply, cc, opts...)
		return once(ctx, err), err
	}
	u := &unary{loop: l, method: method, req: req, reply: reply, cc: cc, invoker: invoker}
	common, results := grpcreplay.Split(u.room[:0], opts)
	common = append(common, grpc.Header(&u.left.header), grpc.Trailer(&u.left.trailer))
	if results.WantPeer() {
		common = append(common, grpc.Peer(&u.left.peer))
	}
	if codec, encoded := grpcreplay.EncodingOf(opts).Codec(common); codec != nil {
		message := grpcreplay.Message{Value: req}
		codec.Sends(&message)
		defer message.Free()
		common = encoded
	}
	u.opts = common[:len(common):len(common)] // an interceptor may append

	summary, err := u.do(ctx)
	u.left.fill(results)
	results.End(err)
	return summary, err
}

// unary is a unary call.
type unary struct {
	loop       *retry.Loop
	method     string
	req, reply any
	cc         *grpc.ClientConn
	invoker    grpc.UnaryInvoker
	opts       []grpc.CallOption
	room       [6]grpc.CallOption // for opts
	left       reply
}

func (u *unary) do(ctx context.Context) (retry.Summary, error) {
	o := u.try(ctx, 1)
	wait, reason, again := next(ctx, u.loop, 1, &o)
	if again {
		return u.again(ctx, wait)
	}
	return retry.Summary{Attempts: 1, Stopped: reason}, o.err
}

// again makes the second and further tries. A slot of the limiter is held on entry, and for each retry from the decision
// to the answer.
func (u *unary) again(ctx context.Context, wait time.Duration) (retry.Summary, error) {
	held := true
	defer func() {
		if held {
			u.loop.Limiter.Release()
		}
	}()
	for n := 2; ; n++ {
		if !grpcreplay.Sleep(ctx, wait) {
			reason := grpcreplay.Ended(ctx)
			return retry.Summary{Attempts: n - 1, Stopped: reason}, wrap(n-1, reason, gone(ctx))
		}
		o := u.try(ctx, n)
		u.loop.Limiter.Release()
		held = false
		var reason retry.Reason
		wait, reason, held = next(ctx, u.loop, n, &o)
		if !held {
			return retry.Summary{Attempts: n, Stopped: reason}, wrap(n, reason, o.err)
		}
	}
}

// try makes one try. gRPC is done with the reply when it returns, so that tries never share it.
func (u *unary) try(ctx context.Context, n int) outcome {
	u.left = reply{}
	limit := grpcreplay.PerTry(ctx, u.loop.Policy)
	if limit == 0 {
		err := u.invoker(mark(ctx, n), u.method, u.req, u.reply, u.cc, u.opts...)
		return u.outcome(err)
	}
	bounded := new(deadline.Context)
	bounded.Start(mark(ctx, n), deadline.PerTry, limit, true)
	defer bounded.Cancel()
	began := time.Now()
	o := u.outcome(u.invoker(bounded, u.method, u.req, u.reply, u.cc, u.opts...))
	if o.err == nil {
		return o
	}
	// The server knows the limit and may notice a moment before us that it is over.
	o.late = bounded.Exceeded() != nil ||
		status.Code(o.err) == codes.DeadlineExceeded && !grpcreplay.Over(ctx) && time.Since(began) >= limit-limit/10
	if o.late {
		o.err = tooLate(limit)
	}
	return o
}

func (u *unary) outcome(err error) outcome {
	return outcome{err: err, begun: u.left.trailer != nil, answered: u.left.header != nil, trailer: u.left.trailer}
}
