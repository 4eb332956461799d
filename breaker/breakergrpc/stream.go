package breakergrpc

import (
	"context"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
)

// stream is a stream through a circuit.
type stream struct {
	grpc.ClientStream
	client *Client
	ctx    context.Context
	lease  breaker.Lease

	sends atomic.Uint32 // what SendMsg does: one of the constants below
	err   error         // how the stream ended; valid in the state over
}

const (
	idle    = iota
	sending // SendMsg is running
	over    // the stream ended while SendMsg was running, which settles it
	invalid // a message could not be sent, which says nothing about the server
)

// stream is a grpc.StreamClientInterceptor.
func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	lease, err := c.allow(ctx, method, cc)
	if err != nil {
		return nil, err
	}
	s := &stream{client: c, ctx: ctx, lease: lease}
	if c.Config.SlowCall == 0 {
		s.ClientStream, err = grpcend.Open(ctx, desc, cc, method, streamer, opts, s.end)
	} else {
		s.ClientStream, err = grpcreplay.Open(ctx, desc, cc, method, streamer, opts, s.lease.Answered, s.end)
	}
	if err != nil {
		return nil, err
	}
	return s, nil
}

// SendMsg implements grpc.ClientStream.
func (s *stream) SendMsg(m any) (err error) {
	s.sends.CompareAndSwap(idle, sending)
	defer func() { s.sent(err) }() // even if a codec panics
	return s.ClientStream.SendMsg(m)
}

// sent says that SendMsg returns err. gRPC ends a stream with the errors of SendMsg, and such an error cannot be told from a status of the
// server. So a stream that ends during SendMsg is settled here.
func (s *stream) sent(err error) {
	if ours(err) {
		if s.sends.Swap(invalid) == over {
			s.settle(true)
		}
		return
	}
	if !s.sends.CompareAndSwap(sending, idle) && s.sends.CompareAndSwap(over, idle) {
		s.settle(false)
	}
}

// ours reports whether the error of a SendMsg is about the message: gRPC returns io.EOF if the server has ended the stream.
func ours(err error) bool {
	if err == nil || err == io.EOF {
		return false
	}
	code := grpcstatus.Code(err)
	return code == codes.Internal || code == codes.ResourceExhausted
}

// end is called once, when the stream ends with err, which may be the refusal of a layer below.
func (s *stream) end(err error) {
	s.err = err
	if !s.sends.CompareAndSwap(sending, over) {
		s.settle(s.sends.Load() == invalid)
	}
}

// settle reports the outcome of a stream that has ended.
func (s *stream) settle(invalid bool) {
	outcome := breaker.Failure // if IsFailure panics
	defer func() { s.lease.Done(outcome) }()
	switch {
	case invalid:
		outcome = breaker.Ignored
	case s.err != grpcend.ErrPanicked:
		outcome = s.client.outcome(s.ctx, s.err)
	}
}
