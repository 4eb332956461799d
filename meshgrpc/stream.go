package meshgrpc

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/engine/enginehttp"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
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

// flow is a try of a stream.
type flow struct {
	try
	stream *stream
	cs     grpc.ClientStream
	codec  *grpcreplay.Codec
	cancel context.CancelFunc

	answered bool // response headers came, or a reply without messages
	// Guarded by stream.end.
	finished  bool // gRPC is done with the try, with finishErr
	finishErr error
	judged    bool // err, code and rest of try are set
}

// Value implements context.Context.
func (s *stream) Value(key any) any {
	if _, ok := key.(callerKey); ok {
		return s
	}
	return s.call.Context.Value(key)
}

// stream is the grpc.StreamClientInterceptor.
func (c *client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
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
	return (*clientStream)(s), nil
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
	resp, err := s.roundTrip(s.request(s))
	returned = true
	s.settle(resp, err)
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
		if resp.Body != http.NoBody {
			_, _ = resp.Body.Read(s.one[:]) // it has no messages, only an end
			resp.Body.Close()
		}
		header, trailer = f.metadata()
		err = f.err
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

// attempt implements caller.
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
	f := &flow{stream: s}
	f.begin(&s.call, req, mt)
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
		resp.Body = (*messages)(f)
		return resp, nil
	}
	s.mu.Lock()
	if committed = s.committed; !committed {
		s.current = nil
	}
	s.mu.Unlock()
	return f.outcome(err, committed)
}

var errCommitted = refusal.New("too much was sent on the stream for another try")

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
		_ = cs.CloseSend()
	}
}

// finish is told by gRPC that it is done with the try.
func (f *flow) finish(err error) {
	s := f.stream
	s.end.Lock()
	if !f.finished {
		f.finished, f.finishErr = true, err
	}
	live := s.live
	s.end.Unlock()
	if live {
		s.conclude(f)
	}
	f.cancel()
}

// conclusion returns how a stream that was answered ended.
func (f *flow) conclusion() error {
	f.stream.end.Lock()
	defer f.stream.end.Unlock()
	if !f.judged {
		f.judged = true
		f.judgeLocked(f.finishErr)
		f.conclude()
	}
	if f.rest != nil {
		return f.rest
	}
	return io.EOF
}

func (f *flow) judgeLocked(err error) {
	f.err, f.code = err, status.Code(err)
	ctx := f.req.Context()
	switch {
	case err == nil || err == io.EOF:
		f.err, f.code = io.EOF, codes.OK
	case ended(ctx, f.code):
		f.rest = context.Cause(ctx)
	case grpcwire.Closed(err):
		f.err, f.code, f.rest = errClosing, codes.Canceled, errClosing
	default:
		f.rest = lost(err)
	}
}

// messages is the body of a response that is a stream.
type messages flow

// Read receives a message.
func (m *messages) Read([]byte) (int, error) {
	f := (*flow)(m)
	s := f.stream
	s.end.Lock()
	finished := f.finished
	s.end.Unlock()
	if finished {
		return 0, f.conclusion()
	}
	if s.into == nil {
		return 0, errEnded // it is to be drained, and has no end
	}
	err := f.cs.RecvMsg(s.into)
	if err == nil {
		return 1, nil
	}
	s.end.Lock()
	if !f.finished {
		f.finished, f.finishErr = true, err
	}
	s.end.Unlock()
	err = f.conclusion()
	f.cancel() // an interceptor may have ended what goes on for gRPC
	return 0, err
}

// Close gives the stream up.
func (m *messages) Close() error {
	m.cancel()
	return nil
}

// clientStream is a stream as its caller sees it.
type clientStream stream

// wait waits for the answer of the mesh and returns its error. What the caller's options ask for is in its place then.
func (s *stream) wait() error {
	s.mu.Lock()
	for !s.told {
		s.news.Wait()
	}
	s.mu.Unlock()
	if s.panicked != nil {
		panic(s.panicked)
	}
	return s.err
}

// await waits for a try that takes messages. It returns nil if there will be none.
func (s *stream) await(not *flow) *flow {
	s.mu.Lock()
	defer s.mu.Unlock()
	for (s.current == nil || s.current == not && !s.committed) && !s.settled {
		s.news.Wait()
	}
	if s.current == not {
		return nil
	}
	return s.current
}

// RecvMsg implements grpc.ClientStream.
func (c *clientStream) RecvMsg(m any) error {
	s := (*stream)(c)
	if err := s.wait(); err != nil {
		return err
	}
	f := s.last
	s.into = m
	_, err := s.resp.Body.Read(s.one[:])
	s.into = nil
	if err == nil {
		return nil
	}
	s.conclude(f)
	if s.verdict == io.EOF && !s.desc.ServerStreams {
		return f.cs.RecvMsg(m) // which knows how many messages there must be
	}
	return s.verdict
}

// SendMsg implements grpc.ClientStream.
func (c *clientStream) SendMsg(m any) error {
	s := (*stream)(c)
	_, once := m.(*grpc.PreparedMsg) // which gRPC sends only once
	s.out = grpcreplay.Message{Value: m}
	defer s.out.Free()
	var over *flow
	for {
		f := s.await(over)
		if f == nil {
			if !s.desc.ClientStreams {
				return nil // generated code asks for that; RecvMsg says what is wrong
			}
			return io.EOF
		}
		if once {
			s.commit(f)
		}
		switch err := s.out.Send(f.cs, f.codec); {
		case err == nil:
			if s.keep(f) {
				return nil
			}
		case err == io.EOF:
			over = f // another try may follow
		default:
			s.commit(f) // something is wrong with the message
			return err
		}
	}
}

// keep keeps the message that f took. It reports false if f is not the current try any more, so that the message is lost.
func (s *stream) keep(f *flow) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != f {
		return false
	}
	if s.committed {
		return true
	}
	if s.sent.Keep(&s.out) {
		s.out = grpcreplay.Message{}
	} else {
		s.commitLocked()
	}
	return true
}

// commitLocked says that no other try follows.
func (s *stream) commitLocked() {
	s.committed = true
	s.sent.Drop()
}

// commit makes f the last try, if it is the current one.
func (s *stream) commit(f *flow) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == f {
		s.commitLocked()
	}
}

// CloseSend implements grpc.ClientStream.
func (c *clientStream) CloseSend() error {
	s := (*stream)(c)
	s.mu.Lock()
	s.closed = true
	f := s.current
	s.mu.Unlock()
	if f == nil {
		return nil // the next try is told
	}
	return f.cs.CloseSend()
}

// Header implements grpc.ClientStream.
func (c *clientStream) Header() (metadata.MD, error) {
	s := (*stream)(c)
	if s.wait() != nil {
		return nil, nil // RecvMsg says why
	}
	header, _ := s.last.metadata()
	return header.Copy(), nil
}

// Trailer implements grpc.ClientStream. It makes the current try the last.
func (c *clientStream) Trailer() metadata.MD {
	s := (*stream)(c)
	if f := s.await(nil); f != nil {
		s.commit(f)
		return f.cs.Trailer()
	}
	return s.trailer.Copy()
}

// Context implements grpc.ClientStream. It makes the current try the last.
func (c *clientStream) Context() context.Context {
	s := (*stream)(c)
	if f := s.await(nil); f != nil {
		s.commit(f)
		return f.cs.Context()
	}
	return s.call.Context
}
