package grpcreplay

import (
	"context"
	"io"
	"slices"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
	"github.com/nosidecar/mesh/retry"
)

// Stream is a grpc.ClientStream that can be retried. Its [Driver] makes the tries on a separate goroutine, until one is answered or there
// are no more tries. Until then another try can replace the current one, and all messages are sent again. The caller gets the response of
// the last try.
//
// A try is committed if no other try can follow: because more was sent than is kept, because gRPC sends a message only once, or because the
// caller has called Context or Trailer. Messages are kept, not copied: as with gRPC's own streams, the caller must not change a message that
// it has sent. While no try takes messages, SendMsg waits. Only RecvMsg of the last try gets the caller's message.
//
// A Stream is meant to be embedded in the value that is allocated for a call. It begins with [Stream.Begin].
type Stream struct {
	config Config
	driver Driver
	first  try
	out    Message // the message that SendMsg is sending
	in     any     // the message that RecvMsg is receiving, if there is a Meter

	mu        sync.Mutex // not held while gRPC or code of the caller runs; gRPC may hold locks of its own when it calls us
	news      sync.Cond  // signals changes of the fields below, except over and err
	last      *try       // the latest try
	current   *try       // the try that takes messages: last or nil
	kept      Sent       // not changed while replaying
	answer    Answer
	err       error // nil if last has ended without an error
	over      bool  // last has ended with err
	opened    bool  // there has been a current try
	committed bool  // no other try can follow current
	replaying bool  // resending sends kept on last
	closed    bool  // CloseSend was called
	settled   bool  // there are no more tries; answer is set
	told      bool  // the stream goes on, or the caller's options were set

	apart bool // each try has a context of its own; not guarded

	panicked any // the panic of the driver or of resending, which is passed on to the caller

	resending sync.WaitGroup // what sends kept on last while its response is awaited

	ending   sync.Once
	instead  error // the error of Driver.End, set by ending
	received error // the last error of RecvMsg
}

// Config has the parameters of a [Stream].
type Config struct {
	Context  context.Context // the caller's
	Desc     *grpc.StreamDesc
	Conn     *grpc.ClientConn
	Streamer grpc.Streamer
	Encoding *Encoding
	Room     int // the room for messages that are kept, in bytes

	// Pausing pauses the limit of the whole call while the caller has more to send.
	Pausing bool

	// Shown, if not nil, returns what the caller gets as the Context of the stream.
	Shown func(context.Context) context.Context

	// Meter, if not nil, is called for the messages of the caller.
	Meter Meter
}

// Meter is called once for each message that was sent or received, with its size, or 0 if that is unknown. The calls for one direction do
// not overlap.
type Meter interface {
	Sent(size int)
	Received(size int)
}

// Driver makes the tries of a [Stream].
type Driver interface {
	// Make makes the tries, each with [Stream.Try].
	Make() Answer

	// Tell sets the caller's options for an answer that ends the stream.
	Tell(Answer)

	// End ends a stream that was answered and has continued. Its argument is the error of the last try, or nil. It sets the caller's
	// options. If it returns an error, RecvMsg returns that instead of its own.
	End(error) error
}

// Answer is the result of the tries of a stream.
type Answer struct {
	// Err is the error with which the stream has ended. If it is nil, the stream continues as that of the last try.
	Err error

	// Header and Trailer are those of the response. If the stream continues, Trailer is not used.
	Header, Trailer metadata.MD

	// Limits bounds each wait for a message. Nil means no limits.
	Limits *deadline.Call
}

// Reply is the result of a try. A try without a Header is over.
type Reply struct {
	Begun           bool // there was a stream, so the server may have seen the call
	Header, Trailer metadata.MD
	Err             error // nil if there is a header, or if the try ended without an error
	unsent          bool  // nothing was sent, and gRPC's Header has hidden that from gRPC
}

// try is one try.
type try struct {
	stream  *Stream
	cs      grpc.ClientStream // nil if there is none
	codec   *Codec
	clock   deadline.Upload
	cancel  func()      // ends the context of the try; nil if that is the caller's
	unwatch func() bool // stops waiting for the end of the driver's context; nil if nothing waits
	dropped bool        // by Drop, maybe while it was sent again; guarded by Stream.mu
	opts    [3]grpc.CallOption
}

// Begin begins the stream. It returns once there is a try that takes messages.
func (s *Stream) Begin(config Config, driver Driver) (grpc.ClientStream, error) {
	s.config, s.driver, s.apart = config, driver, !grpcend.Direct(config.Streamer)
	s.news.L = &s.mu
	s.kept.Room = config.Room
	go starterOf(s)()

	s.mu.Lock()
	for !s.opened && !s.settled {
		s.news.Wait()
	}
	opened := s.opened
	s.mu.Unlock()
	if !opened {
		if _, _, err := s.wait(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// starter runs a stream on a new goroutine, and is then used again: `go s.run()` would be an allocation per stream.
type starter struct {
	stream *Stream
	start  func()
}

var starters sync.Pool

// starterOf returns a function that runs s, and is called once.
func starterOf(s *Stream) func() {
	r, _ := starters.Get().(*starter)
	if r == nil {
		r = new(starter)
		r.start = r.run
	}
	r.stream = s
	return r.start
}

func (r *starter) run() {
	s := r.stream
	r.stream = nil
	starters.Put(r)
	s.run()
}

// run makes the driver make the tries, and settles the stream.
func (s *Stream) run() {
	returned := false
	defer func() {
		if returned {
			return
		}
		s.fail(recover())
		if s.last != nil {
			s.last.end()
		}
		s.settle(Answer{Err: grpcend.ErrPanicked})
	}()
	grow()
	answer := s.driver.Make()
	returned = true
	s.settle(answer)
}

// fail notes why a goroutine has not returned, with what it has recovered.
func (s *Stream) fail(recovered any) {
	if recovered == nil {
		recovered = "runtime.Goexit in a stream interceptor"
	}
	s.mu.Lock()
	s.panicked = recovered
	s.mu.Unlock()
}

// settle sets the answer, and makes it visible to the caller.
func (s *Stream) settle(a Answer) {
	if a.Limits != nil {
		a.Limits.WatchMessages()
	}
	s.mu.Lock()
	s.answer, s.settled, s.told = a, true, a.Err == nil
	s.commitLocked()
	if a.Err != nil {
		s.current = nil
	}
	over := s.over
	s.news.Broadcast()
	s.mu.Unlock()

	switch {
	case a.Err != nil:
		s.driver.Tell(a)
		s.mu.Lock()
		s.told = true
		s.news.Broadcast()
		s.mu.Unlock()
	case over:
		s.end()
	}
}

// end calls Driver.End, once, for a stream whose last try was answered and is over.
func (s *Stream) end() {
	s.ending.Do(func() {
		if s.err == nil && !s.config.Desc.ServerStreams && s.in != nil {
			s.receivedMessage() // gRPC ends such a stream within RecvMsg, before that returns the only message
		}
		s.instead = s.driver.End(s.err)
	})
}

// Follow must be called before the first try, with the policy of the call. A try whose response has begun goes on until the call of the caller
// ends, if it has no context of its own. It has one if policy may drop such a try, and if there are other interceptors, which may end
// a stream that gRPC goes on with.
func (s *Stream) Follow(policy *retry.Policy) {
	if policy != nil && retriesAnswers(policy) {
		s.apart = true
	}
}

// Try makes another try with ctx, up to the beginning of its response. If its connection is lost before it is sent, it starts over, once. gRPC
// does that for a caller of RecvMsg, but not for one of Header, which takes such a stream for one that has ended well.
func (s *Stream) Try(ctx context.Context, method string, opts []grpc.CallOption) Reply {
	r := s.attempt(ctx, method, opts)
	if r.unsent && s.Drop() {
		r = s.attempt(ctx, method, opts)
	}
	return r
}

func (s *Stream) attempt(ctx context.Context, method string, opts []grpc.CallOption) Reply {
	resends := s.config.Room-s.kept.Room > unreadable
	if resends {
		s.resending.Wait() // for a try that was dropped
	}
	t := s.begin(ctx)
	if s.apart || resends { // nothing may be sent on a try that was dropped
		ctx = t.apart(ctx)
	}
	opts = append(append(t.opts[:0], opts...), grpc.OnFinish(t.finished))
	t.codec, opts = s.config.Encoding.Codec(slices.Clip(opts))
	cs, err := s.config.Streamer(ctx, s.config.Desc, s.config.Conn, method, opts...)
	if err != nil {
		t.end()
		return Reply{Err: err}
	}
	t.cs = cs
	if resends {
		s.resend(t)
	} else {
		_ = s.kept.Replay(cs, t.codec) // if the try has ended, Header below shows it
		s.open(t)
	}

	header, _ := cs.Header()
	if header != nil {
		return Reply{Begun: true, Header: header}
	}
	s.resending.Wait() // the try is over, and takes no more
	r := Reply{Begun: true, Trailer: cs.Trailer()}
	s.mu.Lock()
	over, said := s.over, s.err
	if !s.committed {
		s.current = nil
	}
	s.mu.Unlock()
	if over && said != nil && grpcstatus.TrailersOnly(r.Trailer) {
		r.Err = said
		return r
	}
	// For a stream that was cut before it was sent, gRPC's Header returns no error, but RecvMsg does. There is no message to receive, unless
	// the server has sent one before its headers.
	switch r.Err = cs.RecvMsg(new(emptypb.Empty)); {
	case r.Err == nil:
		r.Err = status.Error(codes.Internal, "the stream has a message, but no headers")
	case r.Err == io.EOF:
		r.Err = nil
	case status.Code(r.Err) == codes.Unavailable && s.config.Conn.GetState() == connectivity.Shutdown:
		//lint:ignore SA1019 there is no other error for a ClientConn that the caller closed
		r.Err = grpc.ErrClientConnClosing
	default:
		r.unsent = over && said == nil && grpcwire.Unsent(r.Err)
	}
	return r
}

// unreadable is how much of a stream gRPC accepts even if the peer reads nothing. For more it waits until the peer reads. A server may not
// read until somebody reads its response.
const unreadable = 64 << 10

// resend sends the messages that were kept on t, on a goroutine, so that its response can be received meanwhile. Then it opens t.
func (s *Stream) resend(t *try) {
	s.mu.Lock()
	s.replaying = true
	s.mu.Unlock()
	s.resending.Go(func() {
		defer s.open(t)
		returned := false
		defer func() {
			if returned {
				return
			}
			s.fail(recover())
			t.end() // some of the messages are missing
		}()
		_ = s.kept.Replay(t.cs, t.codec)
		returned = true
	})
}

// apart returns a context for t alone. With the end of ctx, the try is over even if gRPC does not say so.
func (t *try) apart(ctx context.Context) context.Context {
	own, cancel := context.WithCancel(ctx)
	t.cancel = cancel
	t.unwatch = context.AfterFunc(ctx, func() { t.over(status.FromContextError(ctx.Err()).Err()) })
	return own
}

// begin returns the next try.
func (s *Stream) begin(ctx context.Context) *try {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.first
	if s.last != nil {
		t = new(try)
	}
	t.stream = s
	s.last, s.current, s.over, s.err = t, nil, false, nil
	if s.config.Pausing {
		t.clock = deadline.RequestUploadOf(ctx)
		if s.config.Desc.ClientStreams && !s.closed {
			t.clock.Pause()
		}
	}
	return t
}

// open makes t the current try, unless it was dropped. All messages so far were sent on it.
func (s *Stream) open(t *try) {
	s.mu.Lock()
	if s.replaying {
		s.replaying = false
		if s.committed {
			s.kept.Drop()
		}
	}
	s.opened = true
	if !t.dropped && (!s.settled || s.answer.Err == nil) {
		s.current = t
	}
	closed := s.closed
	s.news.Broadcast()
	s.mu.Unlock()
	if closed { // CloseSend was called while there was no current try
		t.clock.Resume()
		_ = t.cs.CloseSend()
	}
}

// finished is called by gRPC when it is done with the try.
func (t *try) finished(err error) {
	t.over(err)
	t.end()
}

// over ends the stream if t, which is over, was its last try.
func (t *try) over(err error) {
	if t.note(err) {
		t.stream.end()
	}
}

// note records the error with which a try has ended, if that is not yet known. It reports whether the stream ends with it, which is not the
// case if another try has already replaced t.
func (t *try) note(err error) (ends bool) {
	s := t.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if t != s.last {
		return false
	}
	if !s.over {
		if err == io.EOF {
			err = nil
		}
		s.over, s.err = true, err
	}
	return s.settled && s.answer.Err == nil
}

// end ends the try if it is still running.
func (t *try) end() {
	if t.unwatch != nil {
		t.unwatch()
		t.cancel()
	}
}

// End ends the latest try if it is still running, unless only the end of the caller's call can do that.
func (s *Stream) End() {
	s.mu.Lock()
	t := s.last
	s.mu.Unlock()
	t.end()
}

// Committed reports whether no other try can follow the current one.
func (s *Stream) Committed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed
}

// Drop abandons the current try so that another can follow. It reports false if the current try is committed.
func (s *Stream) Drop() bool {
	s.mu.Lock()
	if s.committed {
		s.mu.Unlock()
		return false
	}
	s.current = nil
	t := s.last
	t.dropped = true
	s.mu.Unlock()
	t.end()
	return true
}

// commitLocked commits the current try.
func (s *Stream) commitLocked() {
	s.committed = true
	if !s.replaying {
		s.kept.Drop()
	}
}
