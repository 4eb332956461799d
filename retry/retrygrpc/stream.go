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
	ctx      context.Context
	loop     *retry.Loop
	method   string
	opts     []grpc.CallOption
	results  *grpcreplay.Results
	settled  func(retry.Summary)
	limit    *deadline.Context // of the last try; nil if it has none
	out      outcome           // of the last try
	left     *grpcreplay.Left  // left by it; nil if not needed
}

// Make implements grpcreplay.Driver.
func (s *stream) Make() grpcreplay.Answer {
	summary := retry.Summary{Stopped: retry.NotRetriable} // of a panic
	defer func() {
		if s.settled != nil {
			s.settled(summary)
		}
	}()
	s.replayed.Follow(s.loop.Policy)
	n, reason, gone := grpcreplay.Do(s.ctx, s.loop, s)
	summary = retry.Summary{Attempts: n, Stopped: reason}
	return grpcreplay.Answer{
		Header: s.out.header, Trailer: s.out.trailer, Err: result(s.ctx, n, reason, gone, s.out.err),
	}
}

// Try implements grpcreplay.Tries.
func (s *stream) Try(ctx context.Context, limit time.Duration, n int) grpcreplay.Outcome {
	own := mark(ctx, n)
	s.limit = nil
	if limit > 0 {
		// Not announced to the server: it would end the stream then, however well it goes.
		s.limit = new(deadline.Context)
		s.limit.Start(own, deadline.PerTry, limit, false)
		own = s.limit
	}
	opts := s.opts[:len(s.opts):len(s.opts)]
	if s.results.WantReply() {
		s.left = new(grpcreplay.Left)
		opts = s.left.Ask(opts)
	}
	r := s.replayed.Try(own, s.method, opts)
	s.out = outcome{err: r.Err, begun: r.Begun, header: r.Header, trailer: r.Trailer}
	if s.limit != nil && !s.limit.Stop() {
		s.out.err, s.out.header, s.out.late = tooLate(limit), nil, true
	}
	o := s.out.decisive(ctx)
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
