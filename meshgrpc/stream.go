package meshgrpc

import (
	"context"
	"io"
	"net/http"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// stream is a streaming call. A goroutine takes it through the mesh until it is answered; until then another try may take
// the place of the current one, and is sent what was sent before. Then the last try is the caller's.
type stream struct {
	call
	desc     *grpc.StreamDesc
	streamer grpc.Streamer

	mu        sync.Mutex // held while a try is sent what was sent before; no code of the caller's runs with it
	news      sync.Cond  // of current, settled and told
	current   *flow      // the try that takes messages; nil if there is none
	first     flow
	last      *flow
	opened    bool // there was a current
	committed bool // no other try can follow current
	kept      grpcreplay.Sent
	closed    bool // CloseSend was called
	settled   bool // the mesh has answered: with err, or with the stream that current is
	told      bool // and the caller's options say so, if it was with err
	err       error
	trailer   metadata.MD // with err
	panicked  any         // of an interceptor below, for the caller to see

	out grpcreplay.Message // that SendMsg is sending

	end       sync.Mutex // guards what follows, and what is said of it in flow; may be locked with mu held
	live      bool       // settled, and current goes on
	concluded sync.Once
	verdict   error // how the stream ended, set by concluded
}

// stream is the grpc.StreamClientInterceptor.
func (c *client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := checkTarget(cc.Target()); err != nil {
		return nil, grpcstatus.Wrap(codes.Unavailable, err)
	}
	s := &stream{desc: desc, streamer: streamer}
	s.begin(ctx, c, cc, method, opts)
	s.news.L = &s.mu
	s.kept.Room = s.room
	go s.run()

	s.mu.Lock()
	for !s.opened && !s.settled {
		s.news.Wait()
	}
	opened := s.opened
	s.mu.Unlock()
	if !opened {
		if err := s.wait(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// run takes the stream through the mesh.
func (s *stream) run() {
	returned := false
	defer func() {
		if returned {
			return
		}
		if s.panicked = recover(); s.panicked == nil {
			s.panicked = "runtime.Goexit in a stream interceptor"
		}
		s.settle(nil, errEnded)
	}()
	answer, err := s.serve(s)
	returned = true
	s.settle(answer, err)
}

// settle takes the answer of the mesh. If it is a stream that goes on, that is the caller's from here on.
func (s *stream) settle(answer *engine.Refusal, err error) {
	var last *try
	if s.last != nil {
		last = &s.last.try
	}
	var header, trailer metadata.MD
	live := answer == nil && err == nil && last.stop != nil
	if !live {
		header, trailer, err = s.call.conclude(answer, err, last)
	} else if limits := s.Limits(); limits != nil {
		limits.WatchMessages()
	}

	s.mu.Lock()
	s.settled = true
	s.commitLocked()
	s.err, s.trailer = err, trailer
	if s.told = live; !live {
		s.current = nil
	}
	s.news.Broadcast()
	s.mu.Unlock()

	if !live {
		s.options.finish(header, trailer, last, err)
		s.mu.Lock()
		s.told = true
		s.news.Broadcast()
		s.mu.Unlock()
		return
	}
	s.end.Lock()
	s.live = true
	finished := s.last.finished
	s.end.Unlock()
	if finished {
		s.conclude(s.last)
	}
}

// conclude ends a stream whose last try is over: first for the mesh, then for the caller.
func (s *stream) conclude(f *flow) {
	s.concluded.Do(func() {
		f.judgeEnd()
		f.finish()
		header, trailer, err := s.call.conclude(nil, nil, &f.try)
		if s.verdict = err; err == io.EOF {
			err = nil
		}
		s.options.finish(header, trailer, &f.try, err)
	})
}

// Send implements engine.Adapter.
func (s *stream) Send(ctx context.Context, loop retry.Loop) (retry.Reason, error) {
	return s.attempts(ctx, loop, s)
}

// Mirror implements engine.Adapter.
func (s *stream) Mirror(rule *route.Rule) {
	s.Engine().Mirrors.Copy(s.ctx, rule.Route.Mirrors, rule.Route.Timeout, "", func(*route.Mirror, string) (func(context.Context) error, error) {
		return nil, errStreamMirror
	})
}

// replayable implements attempter.
func (s *stream) replayable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.committed
}

// next implements attempter.
func (s *stream) next() *try {
	f := &s.first
	if s.last != nil {
		f = new(flow)
	}
	f.stream, s.last = s, f
	return &f.try
}

// send implements attempter.
func (s *stream) send() {
	f := s.last
	f.clock = deadline.RequestUploadOf(f.ctx)
	if s.pausing() {
		f.clock.Pause() // timeout begins when all is sent, as in Envoy
	}
	f.Context, f.cancel = context.WithCancel(f.Context)
	var opts []grpc.CallOption
	f.codec, opts = s.encoding.Codec(append(f.options(), grpc.OnFinish(f.finishedBy)))
	cs, err := s.streamer(f, s.desc, s.cc, s.sent.method, opts...)
	if err != nil {
		f.cancel()
		f.judge(err, false)
		return
	}
	s.open(f, cs)

	header, _ := cs.Header()
	f.mu.Lock()
	f.over = true
	trailer, err, begun := f.trailer, f.doneErr, f.begun
	f.mu.Unlock()
	if header == nil && begun && !grpcstatus.TrailersOnly(trailer) {
		// To gRPC's Header, a stream that was cut before it was sent ended well, and one whose ClientConn was closed failed.
		// RecvMsg knows better, and has no message.
		if err = cs.RecvMsg(new(emptypb.Empty)); err == io.EOF {
			err = nil
		}
	}
	if header != nil || err == nil {
		f.status, f.header, f.stop = http.StatusOK, header, f.cancel
		return
	}
	s.mu.Lock()
	committed := s.committed
	if !committed {
		s.current = nil
	}
	s.mu.Unlock()
	f.judge(err, committed)
}

// open makes f the current try, after it was sent what was sent before.
func (s *stream) open(f *flow, cs grpc.ClientStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.cs = cs
	s.current, s.opened = f, true
	defer s.news.Broadcast()
	if s.kept.Replay(cs, f.codec) != nil {
		return // it is over, and its header will say so
	}
	if s.closed {
		f.clock.Resume()
		_ = cs.CloseSend()
	}
}

// pausing reports whether the caller has more to send.
func (s *stream) pausing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.desc.ClientStreams && !s.closed
}
