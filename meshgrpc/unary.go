package meshgrpc

import (
	"context"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// unary is a unary call. It includes the first try, which usually is the only one. Unary calls are reused, if possible.
type unary struct {
	call
	message, reply any
	invoker        grpc.UnaryInvoker
	once           *once // nil if the message may be encoded again for each try
	lent           *lent // the context that gRPC has of the first try; nil if that is the try itself
}

// unaries has calls that have ended. Their fields are zero.
var unaries = sync.Pool{New: func() any { return new(unary) }}

// once is a message that is encoded only once, and the codec of all tries.
type once struct {
	message grpcreplay.Message
	codec   *grpcreplay.Codec
}

// unary is the grpc.UnaryClientInterceptor.
func (c *client) unary(ctx context.Context, method string, message, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := checkTarget(cc.Target()); err != nil {
		return grpcstatus.Wrap(codes.Unavailable, err)
	}
	u := newUnary(c.engine)
	u.message, u.reply, u.invoker = message, reply, invoker
	u.begin(ctx, c, cc, method, opts)
	if codec, tries := u.encoding.Codec(u.tries); codec != nil {
		u.once, u.tries = &once{message: grpcreplay.Message{Value: message}, codec: codec}, slices.Clip(tries)
		codec.Sends(&u.once.message)
		defer u.once.message.Free()
	}
	answer, err := u.serve(u)
	if answer == nil && err == nil && u.last.err == nil {
		if u.observed != nil {
			u.observed.received.Add(u.size(reply))
		}
		u.Messages().Received()
	}
	header, trailer, err := u.conclude(answer, err)
	u.options.finish(header, trailer, u.last, err)
	u.recycle() // not after a panic: then nobody knows who still uses the call
	return err
}

// reusable reports whether nobody else may have u after the call: neither an interceptor, to which tries are passed, nor an observer, nor a
// copy that is sent to a mirror. It is not a copy itself.
func (u *unary) reusable() bool {
	rule, _ := u.Rule()
	return u.observed == nil && u.once == nil && rule != nil && len(rule.Route.Mirrors) == 0 && grpcend.DirectUnary(u.invoker)
}

// recycle makes u available to other calls, if it is reusable, and gRPC is done with it.
func (u *unary) recycle() {
	if u.lent == nil || u.last != &u.first || !u.first.unused() {
		return
	}
	u.lent.try.Store(nil)
	*u = unary{}
	unaries.Put(u)
}

// newUnary returns a unary call, with room for what observers see of it.
func newUnary(e *engine.Engine) *unary {
	if !e.Observed() {
		return unaries.Get().(*unary)
	}
	all := new(struct { // at once
		unary
		observed
	})
	all.unary.observed = &all.observed
	return &all.unary
}

// Send implements engine.Adapter.
func (u *unary) Send(ctx context.Context) (retry.Reason, error) {
	return u.attempts(ctx, u)
}

// Try implements grpcreplay.Tries.
func (u *unary) Try(ctx context.Context, limit time.Duration, n int) grpcreplay.Outcome {
	return u.attempt(ctx, limit, u, n)
}

// Drop implements grpcreplay.Tries.
func (u *unary) Drop() bool {
	u.last.giveUp()
	u.reset()
	return true
}

// reset clears the reply, to which the last try may have written. gRPC does not write to it after a try has returned.
func (u *unary) reset() {
	if !u.last.received {
		return
	}
	if m, ok := u.reply.(proto.Message); ok {
		proto.Reset(m)
	} else if v := reflect.ValueOf(u.reply); v.Kind() == reflect.Pointer && !v.IsNil() {
		v.Elem().SetZero()
	}
}

// send implements attempter.
func (u *unary) send(t *try) (pending bool) {
	opts := t.options()
	if t.reads || t.exchanges || u.results.WantHeader() {
		opts = append(opts, grpc.Header(&t.header))
	}
	size := u.size(u.message) // before the message is sent, since it may change afterwards
	t.judge(u.invoker(u.lend(t), u.sent.method, u.message, u.reply, u.cc, opts...))
	if o := u.observed; o != nil && t.begun && !o.told {
		o.told = true
		o.sent.Add(size)
		u.Messages().Sent()
	}
	return false
}

// lend returns the context of t for gRPC.
func (u *unary) lend(t *try) context.Context {
	if t != &u.first || !u.reusable() {
		return t
	}
	u.lent = &lent{Context: t.Context}
	u.lent.try.Store(t)
	return u.lent
}

// replayable implements attempter.
func (u *unary) replayable() bool { return true }

// Mirror implements engine.Adapter.
func (u *unary) Mirror(rule *route.Rule) {
	original := u.sent.authority
	if original == "" {
		original = authority(u.cc)
	}
	var encoded []byte // the message
	u.Engine().Mirrors.Copy(u.ctx, rule.Route.Mirrors, rule.Route.Timeout, original, func(to *route.Mirror, authority string) (
		func(context.Context) error, error) {
		if u.restarts > 0 {
			return nil, errMirrored
		}
		if encoded == nil {
			var err error
			if encoded, err = u.encode(); err != nil {
				return nil, err
			}
		}
		c := newUnary(u.client.engine)
		c.message, c.reply, c.invoker = encoded, new([]byte), u.invoker
		c.client, c.cc, c.options, c.asked = u.client, u.cc, u.options, u.asked
		c.sent, c.results = &head{u.sent.method, authority, u.sent.header}, nil
		// The call itself appends to its options at the same time.
		c.tries = append(slices.Clip(u.tries), grpc.ForceCodecV2(verbatim{u.encoding.Subtype()}))
		return func(ctx context.Context) error { return c.copy(ctx, to.Target) }, nil
	})
}

// encode returns the encoded message for its copies, which may be sent after the caller has got the message back. It is not nil.
func (u *unary) encode() ([]byte, error) {
	message := &grpcreplay.Message{Value: u.message}
	if u.once != nil {
		message = &u.once.message
	}
	data, err := message.Encode(u.encoding)
	if err != nil {
		return nil, err
	}
	defer data.Free()
	return append([]byte{}, data.Materialize()...), nil
}

// copy sends a copy. The caller sees nothing of it.
func (u *unary) copy(ctx context.Context, target route.Target) error {
	u.ctx = ctx
	_, err := u.pass(engine.Copied, target, u)
	if err != nil {
		return err
	}
	_, _, _ = u.conclude(nil, nil)
	return u.last.rest
}

// verbatim is the codec of messages that are already encoded.
type verbatim struct{ name string }

func (verbatim) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (verbatim) Unmarshal(mem.BufferSlice, any) error { return nil }

func (c verbatim) Name() string { return c.name }
