package meshgrpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/caller"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine/enginehttp"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/refusal"
)

// stream is a streaming call. A goroutine takes it through the mesh until it is answered; until then another try may take
// the place of the current one, and is sent what was sent before. Then the last try is the caller's. Messages are received
// by reading the body of the mesh's response, so that what bounds and watches bodies does so for streams.
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
	sent      grpcreplay.Sent
	closed    bool // CloseSend was called
	settled   bool // the mesh has answered: with err, or with the stream that current is
	told      bool // and the caller's options say so, if it was with err
	err       error
	trailer   metadata.MD // with err
	panicked  any         // of an interceptor below, for the caller to see

	out grpcreplay.Message // that SendMsg is sending

	resp *http.Response // set with settled
	into any            // where RecvMsg wants the message
	one  [1]byte        // to read into

	end       sync.Mutex // guards what follows, and what is said of it in flow; may be locked with mu held
	live      bool       // settled, and current goes on
	concluded sync.Once
	verdict   error // how the stream ended, set by concluded
}

// Value implements context.Context.
func (s *stream) Value(key any) any {
	if _, ok := key.(senderKey); ok {
		return s
	}
	return s.call.Context.Value(key)
}

// stream is the grpc.StreamClientInterceptor.
func (c *client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := checkTarget(cc.Target()); err != nil {
		return nil, grpcstatus.Wrap(codes.Unavailable, err)
	}
	s := &stream{
		call: call{Context: ctx, client: c, method: method, cc: cc},
		desc: desc, streamer: streamer,
	}
	s.news.L = &s.mu
	s.options.read(opts)
	s.sent.Room = s.room
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
	req := s.request(s)
	req.Body, req.GetBody = replayable, s.body
	resp, err := s.roundTrip(req)
	returned = true
	s.settle(resp, err)
}

// replayable says that a request has a body. The messages of a stream are sent otherwise.
var replayable = io.NopCloser(strings.NewReader(""))

// body tells the mesh whether another try is possible.
func (s *stream) body() (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.committed {
		return nil, errCommitted
	}
	return io.NopCloser(strings.NewReader("")), nil
}

// settle takes the answer of the mesh.
func (s *stream) settle(resp *http.Response, err error) {
	f := s.last // nobody changes it any more
	ours := resp != nil && f != nil && resp == &f.resp
	var header, trailer metadata.MD
	live := false
	switch {
	case err != nil:
		err = failed(s.call.Context, err)
	case !ours:
		err, trailer = answered(resp), fromReply(resp.Header)
		resp.Body.Close()
	case f.answered:
		live = true
	default:
		err = f.err
		if resp.Body != http.NoBody {
			_, cause := resp.Body.Read(s.one[:]) // it has no messages, only an end
			resp.Body.Close()
			if _, ours := errors.AsType[*deadline.Error](cause); ours {
				err = failed(s.call.Context, cause)
			}
		}
		header, trailer = f.metadata()
	}

	s.mu.Lock()
	s.settled = true
	s.commitLocked()
	s.resp, s.err, s.trailer = resp, err, trailer
	if s.told = live; !live {
		s.current = nil
	}
	s.news.Broadcast()
	s.mu.Unlock()

	if !live {
		s.results.end(header, trailer, s.from(), err)
		s.mu.Lock()
		s.told = true
		s.news.Broadcast()
		s.mu.Unlock()
		return
	}
	s.end.Lock()
	s.live = true
	finished := f.finished
	s.end.Unlock()
	if finished {
		s.conclude(f)
	}
}

// from returns who answered last, nil if nobody did.
func (s *stream) from() *peer.Peer {
	if s.last == nil {
		return nil
	}
	return &s.last.try.peer
}

// conclude ends a stream whose last try is finished: first for the mesh, then for the caller.
func (s *stream) conclude(f *flow) {
	s.concluded.Do(func() {
		_, err := s.resp.Body.Read(make([]byte, 1))
		s.verdict = f.err
		if _, ours := errors.AsType[*deadline.Error](err); ours {
			s.verdict = failed(s.call.Context, err)
		}
		if s.results != nil {
			header, trailer := f.metadata()
			err := s.verdict
			if err == io.EOF {
				err = nil
			}
			s.results.end(header, trailer, &f.try.peer, err)
		}
	})
}

// attempt implements sender.
func (s *stream) attempt(req *http.Request, mt *enginehttp.Try) (*http.Response, error) {
	body.CloseRequest(req)
	if mt.Mirror() {
		return nil, errStreamMirror
	}
	s.mu.Lock()
	committed := s.committed
	s.mu.Unlock()
	if committed {
		return nil, errCommitted
	}
	f := &s.first
	if s.last != nil {
		f = new(flow)
	}
	f.stream = s
	f.begin(&s.call, req, mt)
	f.clock = deadline.RequestClockOf(f.Context)
	if s.pausing() {
		f.clock.Pause() // timeout begins when all is sent, as in Envoy
	}
	f.Context, f.cancel = context.WithCancel(f.Context)
	var opts []grpc.CallOption
	f.codec, opts = s.encoding.Codec(append(f.options(), grpc.OnFinish(f.finish)))
	cs, err := s.streamer(f, s.desc, s.cc, req.URL.Path, opts...)
	if err != nil {
		f.cancel()
		s.open(f, nil)
		return f.outcome(err, false)
	}
	s.open(f, cs)

	header, _ := cs.Header()
	f.try.mu.Lock()
	f.over = true
	trailer, err, begun := f.trailer, f.doneErr, f.begun
	f.try.mu.Unlock()
	if header == nil && begun && !grpcstatus.TrailersOnly(trailer) {
		// To gRPC's Header, a stream that was cut before it was sent ended well, and one whose ClientConn was closed failed.
		// RecvMsg knows better, and has no message.
		if err = cs.RecvMsg(new(emptypb.Empty)); err == io.EOF {
			err = nil
		}
	}
	if header != nil || err == nil {
		f.answered, f.header = true, header
		if header == nil {
			header = trailer
		}
		resp := f.respond(http.StatusOK, header)
		resp.Body = f
		return resp, nil
	}
	s.mu.Lock()
	if committed = s.committed; !committed {
		s.current = nil
	}
	s.mu.Unlock()
	return f.outcome(err, committed)
}

var errCommitted = refusal.Because(fmt.Errorf("too much was sent on the stream for another try: %w", caller.ErrCommitted))

// open makes f the current try, after it was sent what was sent before. Without a stream it has failed already.
func (s *stream) open(f *flow, cs grpc.ClientStream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = f
	if cs == nil {
		return
	}
	f.cs = cs
	s.current, s.opened = f, true
	defer s.news.Broadcast()
	if s.sent.Replay(cs, f.codec) != nil {
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
