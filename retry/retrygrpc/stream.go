package retrygrpc

import (
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/retry"
)

// newStream makes a stream that is tried as often as the policy of l permits, each time by streamer, and counts it in
// the budget.
//
// A try is retried until it is committed: when response headers have come, when more was sent than is kept, or when the
// caller asks for Context or Trailer. Until then the messages that were sent are kept, not copied: like gRPC's own, the
// stream must be left the messages it is given. While a retry is under way, SendMsg and RecvMsg wait. Only RecvMsg of a
// committed try sees the caller's message.
//
// settled, if not nil, is called once: when no further try can follow. The options Header, Trailer, Peer and OnFinish do
// what they do without retries: once, for the call as a whole.
func newStream(ctx context.Context, l *retry.Loop, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, settled func(retry.Summary), opts ...grpc.CallOption) (grpc.ClientStream, error) {
	l.Budget.Deposit()
	if idle(l) {
		stream, err := streamer(ctx, desc, cc, method, opts...)
		if settled != nil {
			settled(once(ctx, err))
		}
		return stream, err
	}
	s := &stream{ctx: ctx, loop: l, desc: desc, cc: cc, method: method, streamer: streamer, settled: settled,
		encoding: grpcreplay.EncodingOf(opts)}
	s.sent.Room = grpcwire.DefaultBufferLimit
	s.opts, s.results = grpcreplay.Split(make([]grpc.CallOption, 0, len(opts)+4), opts)
	for _, opt := range opts {
		if bound, ok := opt.(grpc.MaxRetryRPCBufferSizeCallOption); ok {
			s.sent.Room = bound.MaxRetryRPCBufferSize
		}
	}
	if s.results != nil {
		s.ended = make(chan struct{})
	}
	t := s.open(1)
	s.current = t
	if t.stream == nil && !s.again(t) {
		return nil, s.failure
	}
	return s, nil
}

// stream is a grpc.ClientStream of several tries.
type stream struct {
	ctx      context.Context
	loop     *retry.Loop
	desc     *grpc.StreamDesc
	cc       *grpc.ClientConn
	method   string
	streamer grpc.Streamer
	opts     []grpc.CallOption
	results  *grpcreplay.Results
	settled  func(retry.Summary)
	encoding grpcreplay.Encoding
	out      grpcreplay.Message // that SendMsg is sending

	mu        lock // held throughout a retry; no code of the caller's runs with it
	current   *try
	committed bool  // current is the last try
	failure   error // how the call ended, if that is not for current to say
	sent      grpcreplay.Sent
	closed    bool // CloseSend was called

	ended chan struct{} // closed when the results are in their places; nil without

	end  sync.Mutex // guards what follows, and try.final, finished and err
	over bool       // the caller knows that the call is over
	told bool       // settled was called
}

// try is one try of a stream.
type try struct {
	s      *stream
	n      int
	stream grpc.ClientStream // nil if none could be made
	codec  *grpcreplay.Codec
	limit  *deadline.Context // nil if the try has no limit of its own
	left   reply
	slot   atomic.Bool // a slot of the limiter is held

	receive lock // held to wait for the answer
	known   bool // out is set
	out     outcome

	// Guarded by stream.end.
	final    bool // no other follows
	finished bool
	err      error // that gRPC finished the try with
}

// open makes the n-th try.
func (s *stream) open(n int) *try {
	t := &try{s: s, n: n}
	ctx := mark(s.ctx, n)
	limit := grpcreplay.PerTry(s.ctx, s.loop.Policy)
	if limit > 0 {
		// Not announced: the server would end the stream then, however well it goes.
		t.limit = new(deadline.Context)
		t.limit.Start(ctx, deadline.PerTry, limit, false)
		ctx = t.limit
	}
	opts := append(s.opts[:len(s.opts):len(s.opts)], grpc.OnFinish(t.finish))
	if s.results.WantReply() {
		opts = append(opts, grpc.Header(&t.left.header), grpc.Trailer(&t.left.trailer), grpc.Peer(&t.left.peer))
	}
	t.codec, opts = s.encoding.Codec(opts)
	t.slot.Store(n > 1)
	returned := false
	defer func() {
		if !returned {
			t.finish(nil) // the streamer panicked
		}
	}()
	stream, err := s.streamer(ctx, s.desc, s.cc, s.method, opts...)
	returned = true
	if err != nil {
		t.known, t.out = true, outcome{err: err}
		if t.limit != nil && t.limit.Exceeded() != nil {
			t.out.err, t.out.late = tooLate(limit), true
		}
		t.finish(t.out.err)
		return t
	}
	t.stream = stream
	if t.limit != nil {
		go t.answer() // or nobody would notice that headers came in time
	}
	return t
}

// answer waits for response headers, or for the end of a try that gets none.
func (t *try) answer() *outcome {
	t.receive.Lock()
	defer t.receive.Unlock()
	if t.known {
		return &t.out
	}
	s := t.s
	t.out.begun = true
	header, err := t.stream.Header()
	if header != nil && t.inTime() {
		t.out.answered = true
	} else {
		// The stream is over, and RecvMsg says how without a look at the message.
		if err == nil {
			err = t.stream.RecvMsg(new(emptypb.Empty))
		}
		if err == nil {
			err = status.Error(codes.Internal, "retry: a stream without headers has a message")
		}
		t.out.err, t.out.trailer = err, t.stream.Trailer()
		s.end.Lock()
		if t.finished && t.err == nil && err != io.EOF {
			t.err = err // gRPC has finished the try with less than RecvMsg knows
		}
		s.end.Unlock()
		if t.limit != nil && t.limit.Exceeded() != nil {
			t.out.err, t.out.late = tooLate(s.loop.Policy.Config().PerTryTimeout), true
		}
	}
	t.known = true
	t.release()
	return &t.out
}

// inTime stops the limit of a try that is answered, and reports whether it was not too late for that.
func (t *try) inTime() bool {
	if t.limit == nil || t.limit.Stop() {
		return true
	}
	t.s.end.Lock()
	defer t.s.end.Unlock()
	return t.finished // and the limit stopped with it
}

// limited waits for the answer of a committed try if that has a limit, and so somebody else who waits for it. It returns
// the error of one that had none in time; of others the stream tells.
func (t *try) limited() error {
	if t.limit == nil {
		return nil
	}
	if out := t.answer(); !out.answered {
		return out.err
	}
	return nil
}

// release gives back the slot of the limiter.
func (t *try) release() {
	if t.slot.Swap(false) {
		t.s.loop.Limiter.Release()
	}
}

// finish is what gRPC calls when it is done with the try, on whatever goroutine and with whatever locks held.
func (t *try) finish(err error) {
	if t.limit != nil {
		t.limit.Stop()
	}
	t.release()
	s := t.s
	s.end.Lock()
	if t.finished {
		s.end.Unlock()
		return
	}
	t.finished, t.err = true, err
	final := t.final
	s.end.Unlock()
	switch {
	case final:
		s.finish(t)
	//lint:ignore SA1019 there is no other way to tell that the caller closed the connection
	case grpcreplay.Over(s.ctx) || err == grpc.ErrClientConnClosing:
		// Nobody may ever ask for the outcome. Not here: the stream may be locked.
		go s.settle(t, grpcreplay.Ended(s.ctx))
	}
	if t.limit != nil {
		t.limit.Cancel()
	}
}

// settle says that no try follows t.
func (s *stream) settle(t *try, reason retry.Reason) {
	s.end.Lock()
	t.final = true
	finished, told := t.finished, s.told
	s.told = true
	s.end.Unlock()
	if !told && s.settled != nil {
		s.settled(retry.Summary{Attempts: t.n, Stopped: reason})
	}
	if finished {
		s.finish(t)
	}
}

// finish tells the caller that the call is over. When it returns, the results are in their places.
func (s *stream) finish(last *try) {
	s.end.Lock()
	over, err := s.over, last.err
	if !over {
		s.over = true
		last.left.fill(s.results)
	}
	s.end.Unlock()
	if !over && s.results != nil {
		defer close(s.ended)
		s.results.End(err)
	}
}

// state returns the current try, and whether it is the last.
func (s *stream) state() (t *try, committed bool, failure error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.committed, s.failure
}

// commit makes t the last try, if it is the current one.
func (s *stream) commit(t *try, reason retry.Reason) {
	s.mu.Lock()
	if s.current != t || s.committed {
		s.mu.Unlock()
		return
	}
	s.commitLocked()
	s.mu.Unlock()
	s.settle(t, reason)
}

// again makes another try after t, which has ended without an answer, unless there is to be none. It reports whether
// there is, or has been meanwhile.
func (s *stream) again(t *try) bool {
	last, reason, ok := s.replace(t)
	if last != nil {
		s.settle(last, reason)
	}
	return ok
}

// replace is again without a word to the caller; last is the try that none is to follow, if that was decided here.
func (s *stream) replace(t *try) (last *try, reason retry.Reason, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != t || s.committed {
		return nil, 0, s.current != t
	}
	if reason, ok = s.retryLocked(); ok {
		return nil, 0, true
	}
	s.commitLocked()
	return s.current, reason, false
}

// commitLocked says that no other try follows.
func (s *stream) commitLocked() {
	s.committed = true
	s.sent.Drop()
}

// retryLocked makes tries until one has taken what was sent so far. If there is none, it returns why, and the call has
// failed.
func (s *stream) retryLocked() (retry.Reason, bool) {
	for {
		t := s.current
		wait, reason, again := next(s.ctx, s.loop, t.n, &t.out)
		if !again {
			s.failure = wrap(t.n, reason, t.out.err)
			return reason, false
		}
		if !s.wait(wait) {
			reason := grpcreplay.Ended(s.ctx)
			s.failure = wrap(t.n, reason, gone(s.ctx))
			return reason, false
		}
		t = s.open(t.n + 1) // which takes over the slot of the limiter
		s.current = t
		if t.stream != nil && s.replay(t) {
			return retry.Succeeded, true
		}
	}
}

func (s *stream) wait(d time.Duration) bool {
	if grpcreplay.Sleep(s.ctx, d) {
		return true
	}
	s.loop.Limiter.Release()
	return false
}

// replay sends on a new try what was sent before. It reports false if the try ended meanwhile, without an answer.
func (s *stream) replay(t *try) bool {
	if err := s.sent.Replay(t.stream, t.codec); err != nil {
		return t.answer().answered && err == io.EOF
	}
	if s.closed {
		t.stream.CloseSend()
	}
	return true
}
