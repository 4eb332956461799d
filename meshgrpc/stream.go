package meshgrpc

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// stream is a streaming call. It drives the replayed stream that the caller sees.
type stream struct {
	call
	replayed grpcreplay.Stream

	mu       sync.Mutex
	messages engine.Messages // of the latest start of the call
}

// stream is the grpc.StreamClientInterceptor.
func (c *client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := checkTarget(cc.Target()); err != nil {
		return nil, grpcstatus.Wrap(codes.Unavailable, err)
	}
	s := newStream(c.engine)
	s.begin(ctx, c, cc, method, opts)
	config := grpcreplay.Config{
		Context: ctx, Desc: desc, Conn: cc, Streamer: streamer, Encoding: s.encoding, Room: grpcreplay.RoomOf(opts),
		Pausing: true, // a timeout begins when the whole request is sent, as in Envoy
		Shown:   shown,
	}
	if s.observed != nil {
		config.Meter = s
	}
	return s.replayed.Begin(config, s)
}

// newStream returns a streaming call, with room for what observers see of it.
func newStream(e *engine.Engine) *stream {
	if !e.Observed() {
		return new(stream)
	}
	all := new(struct { // at once
		stream
		observed
	})
	all.stream.observed = &all.observed
	return &all.stream
}

// Sent implements grpcreplay.Meter.
func (s *stream) Sent(size int) {
	s.observed.sent.Add(int64(size))
	s.current().Sent()
}

// Received implements grpcreplay.Meter.
func (s *stream) Received(size int) {
	s.observed.received.Add(int64(size))
	s.current().Received()
}

// current returns the observer of messages of the latest start of the call.
func (s *stream) current() engine.Messages {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.messages
}

// Make implements grpcreplay.Driver.
func (s *stream) Make() (a grpcreplay.Answer) {
	answer, err := s.serve(s)
	if answer == nil && err == nil && s.last.stream != nil {
		a.Header, a.Trailer = s.last.metadata()
		if a.Header == nil && s.last.reads { // a trailers-only response that documents may have edited
			a.Header = a.Trailer
		}
		a.Limits = s.Limits()
		return a
	}
	a.Header, a.Trailer, a.Err = s.conclude(answer, err)
	return a
}

// Tell implements grpcreplay.Driver.
func (s *stream) Tell(a grpcreplay.Answer) {
	s.options.finish(a.Header, a.Trailer, s.last, a.Err)
}

// End implements grpcreplay.Driver.
func (s *stream) End(err error) (instead error) {
	t := s.last
	t.err, t.code = err, status.Code(err)
	switch {
	case err == nil:
	case ended(t.Context, t.code):
		t.rest = context.Cause(t.Context)
	case s.closed(err):
		t.err, t.code, t.rest, instead = errClosing, codes.Canceled, errClosing, errClosing
	default:
		t.rest = lost(err)
	}
	t.finish()
	header, trailer, err := s.conclude(nil, nil)
	if _, ours := errors.AsType[*deadline.Error](err); ours {
		instead = err
	}
	s.options.finish(header, trailer, t, err)
	return instead
}

// Send implements engine.Adapter.
func (s *stream) Send(ctx context.Context, loop retry.Loop) (retry.Reason, error) {
	s.replayed.Follow(loop.Policy)
	return s.attempts(ctx, loop, s)
}

// Mirror implements engine.Adapter.
func (s *stream) Mirror(rule *route.Rule) {
	s.Engine().Mirrors.Copy(s.ctx, rule.Route.Mirrors, rule.Route.Timeout, "", func(*route.Mirror, string) (func(context.Context) error, error) {
		return nil, errStreamMirror
	})
}

// Try implements grpcreplay.Tries.
func (s *stream) Try(ctx context.Context, limit time.Duration, n int) grpcreplay.Outcome {
	return s.attempt(ctx, limit, s, n)
}

// Drop implements grpcreplay.Tries.
func (s *stream) Drop() bool {
	if !s.replayed.Drop() {
		return false
	}
	s.last.giveUp()
	return true
}

// replayable implements attempter.
func (s *stream) replayable() bool { return !s.replayed.Committed() }

// send implements attempter.
func (s *stream) send(t *try) {
	s.mu.Lock()
	s.messages = s.Messages()
	s.mu.Unlock()
	r := s.replayed.Try(t, s.sent.method, t.options())
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	if r.Err != nil {
		t.judge(r.Err, r.Begun && s.replayed.Committed())
		return
	}
	t.status, t.header, t.stream = http.StatusOK, r.Header, &s.replayed
}
