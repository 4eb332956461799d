package meshgrpc

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
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
	series   grpcreplay.Series               // of attempts
	messages atomic.Pointer[engine.Messages] // of the latest start of the call; nil if nobody observes them
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
	if m := s.messages.Load(); m != nil {
		m.Sent()
	}
}

// Received implements grpcreplay.Meter.
func (s *stream) Received(size int) {
	s.observed.received.Add(int64(size))
	if m := s.messages.Load(); m != nil {
		m.Received()
	}
}

// observeMessages sets the observer of messages to that of the latest start of the call.
func (s *stream) observeMessages() {
	now := s.Messages()
	if now == (engine.Messages{}) {
		return
	}
	m := &s.observed.messages
	if last := s.messages.Load(); last != nil { // it may be in use
		m = new(engine.Messages)
	}
	*m = now
	s.messages.Store(m)
}

// Make implements grpcreplay.Driver.
func (s *stream) Make() grpcreplay.Answer { return s.answer(s.serve(s)) }

// Resume implements grpcreplay.Driver.
func (s *stream) Resume() grpcreplay.Answer {
	answer, err := s.Call.Resume(s.goOn)
	return s.answer(s.served(s, answer, err))
}

// answer returns the result of serve.
func (s *stream) answer(answer *engine.Refusal, err error) (a grpcreplay.Answer) {
	switch {
	case err == engine.ErrSuspended && (s.last.timed() || s.series.Holds()):
		return grpcreplay.Answer{Err: grpcreplay.ErrPrompt}
	case err == engine.ErrSuspended:
		return grpcreplay.Answer{Err: grpcreplay.ErrPending}
	case answer == nil && err == nil && s.last.stream != nil:
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
func (s *stream) Send(ctx context.Context) (retry.Reason, error) {
	loop := s.Loop()
	s.replayed.Follow(loop.Policy)
	s.Multiplexed()
	return s.result(ctx, s.series.Begin(ctx, &loop, s))
}

// goOn goes on with Send, with the response to the last try.
func (s *stream) goOn(ctx context.Context) (retry.Reason, error) {
	loop := s.Loop()
	return s.result(ctx, s.series.Resume(ctx, &loop, s, s.outcome))
}

// result returns the result of Send.
func (s *stream) result(ctx context.Context, r grpcreplay.Result) (retry.Reason, error) {
	if r.Pending {
		return r.Reason, engine.ErrSuspended
	}
	return s.attempted(ctx, r.Tries, r.Reason, r.Gone)
}

// outcome waits for the response to the last try.
func (s *stream) outcome() (o grpcreplay.Outcome) {
	t := s.last
	returned := false
	defer func() {
		if !returned { // a panic or a Goexit
			t.giveUp()
		}
	}()
	r := s.replayed.Reply(t.needsHeader())
	switch {
	case !s.replayed.Lost(r):
		s.judge(t, r)
	case s.send(t):
		o.Pending = true
	}
	if !o.Pending {
		o = t.settle(s)
	}
	returned = true
	return o
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
func (s *stream) send(t *try) (pending bool) {
	if s.observed != nil {
		s.observeMessages()
	}
	r, opened := s.replayed.Open(t, s.sent.method, t.options())
	if !opened {
		s.judge(t, r)
	}
	return opened
}

// judge sets the result of t, whose response begins with r.
func (s *stream) judge(t *try, r grpcreplay.Reply) {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	if r.Err != nil {
		t.judge(r.Err)
		return
	}
	t.status, t.header, t.stream = http.StatusOK, r.Header, &s.replayed
}
