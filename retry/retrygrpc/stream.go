package retrygrpc

import (
	"context"
	"time"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/retry"
)

// newStream makes a stream that is tried as often as the policy of l permits, each time by streamer, and counts it in the
// budget.
//
// A try is retried until response headers have come or it is committed: see [grpcreplay.Stream]. settled, if not nil, is called
// once: when no further try can follow. The options Header, Trailer, Peer and OnFinish do what they do without retries: once,
// for the call as a whole.
func newStream(ctx context.Context, l *retry.Loop, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, settled func(retry.Summary), opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if idle(l) {
		stream, err := streamer(ctx, desc, cc, method, opts...)
		if settled != nil {
			settled(once(ctx, err))
		}
		return stream, err
	}
	s := &stream{ctx: ctx, loop: l, method: method, settled: settled}
	s.opts, s.results = grpcreplay.Split(make([]grpc.CallOption, 0, len(opts)+4), opts)
	return s.replayed.Begin(grpcreplay.Config{
		Context: ctx, Desc: desc, Conn: cc, Streamer: streamer, Encoding: grpcreplay.EncodingOf(opts), Room: grpcreplay.RoomOf(opts),
	}, s)
}

// stream drives the replayed stream that the caller sees.
type stream struct {
	replayed grpcreplay.Stream
	series   grpcreplay.Series
	ctx      context.Context
	loop     *retry.Loop
	method   string
	opts     []grpc.CallOption
	results  *grpcreplay.Results
	settled  func(retry.Summary)

	// Of the last try.
	own   context.Context
	limit *deadline.Context // nil if it has none
	out   outcome
	left  *grpcreplay.Left // left by it; nil if not needed
}

// Make implements grpcreplay.Driver.
func (s *stream) Make() grpcreplay.Answer {
	s.replayed.Follow(s.loop.Policy)
	return s.answer(func() grpcreplay.Result { return s.series.Begin(s.ctx, s.loop, s) })
}

// Resume implements grpcreplay.Driver.
func (s *stream) Resume() grpcreplay.Answer {
	return s.answer(func() grpcreplay.Result { return s.series.Resume(s.ctx, s.loop, s, s.await) })
}

// answer returns the answer for the result of run, which makes tries.
func (s *stream) answer(run func() grpcreplay.Result) grpcreplay.Answer {
	r := grpcreplay.Result{Reason: retry.NotRetriable} // of a panic
	defer func() {
		if !r.Pending && s.settled != nil {
			s.settled(retry.Summary{Attempts: r.Tries, Stopped: r.Reason})
		}
	}()
	r = run()
	switch {
	case !r.Pending:
		return grpcreplay.Answer{
			Header: s.out.header, Trailer: s.out.trailer, Err: result(s.ctx, r.Tries, r.Reason, r.Gone, s.out.err),
		}
	case s.limit != nil || s.settled != nil || s.series.Holds():
		return grpcreplay.Answer{Err: grpcreplay.ErrPrompt}
	}
	return grpcreplay.Answer{Err: grpcreplay.ErrPending}
}

// Try implements grpcreplay.Tries.
func (s *stream) Try(ctx context.Context, limit time.Duration, n int) grpcreplay.Outcome {
	s.own, s.limit = mark(ctx, n), nil
	if limit > 0 {
		// Not announced to the server: it would end the stream then, however well it goes.
		s.limit = new(deadline.Context)
		s.limit.Start(s.own, deadline.PerTry, limit, false)
		s.own = s.limit
	}
	return s.open()
}

// open begins the stream of the last try.
func (s *stream) open() grpcreplay.Outcome {
	opts := s.opts[:len(s.opts):len(s.opts)]
	if s.results.WantReply() {
		s.left = new(grpcreplay.Left)
		opts = s.left.Ask(opts)
	}
	r, opened := s.replayed.Open(s.own, s.method, opts)
	if opened {
		return grpcreplay.Outcome{Pending: true}
	}
	return s.outcome(r)
}

// await waits for the response to the last try.
func (s *stream) await() grpcreplay.Outcome {
	r := s.replayed.Reply(false)
	if s.replayed.Lost(r) {
		return s.open()
	}
	return s.outcome(r)
}

// outcome returns what retries are decided by after a try that ended with r, or was answered.
func (s *stream) outcome(r grpcreplay.Reply) grpcreplay.Outcome {
	s.out = outcome{err: r.Err, begun: r.Begun, header: r.Header, trailer: r.Trailer}
	if s.limit != nil && !s.limit.Stop() {
		s.out.err, s.out.header, s.out.late = tooLate(s.limit), nil, true
	}
	o := s.out.decisive(s.ctx)
	o.Committed = s.replayed.Committed()
	return o
}

// Drop implements grpcreplay.Tries.
func (s *stream) Drop() bool {
	if !s.replayed.Drop() {
		return false
	}
	s.cancelLimit()
	return true
}

func (s *stream) cancelLimit() {
	if s.limit != nil {
		s.limit.Cancel()
	}
}

// Tell implements grpcreplay.Driver.
func (s *stream) Tell(a grpcreplay.Answer) { s.finish(a.Err) }

// End implements grpcreplay.Driver.
func (s *stream) End(err error) (instead error) {
	s.finish(err)
	return nil
}

// finish gives the caller's options what the last try left behind.
func (s *stream) finish(err error) {
	s.cancelLimit()
	if s.left != nil {
		s.left.Fill(s.results)
	}
	s.results.End(err)
}
