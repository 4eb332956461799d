package grpcreplay

import (
	"context"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcstatus"
)

// Stream is a grpc.ClientStream that is tried more than once. Its [Driver] makes the tries on a goroutine of their own, until
// one is answered or none is to follow. Until then another try may take the place of the current one, and is sent what was
// sent before. The answer of the last try, and all that follows, is the caller's.
//
// No other try follows one that is committed: because more was sent than is kept, because gRPC sends a message only once, or
// because the caller asked for Context or Trailer. Messages are kept, not copied: like gRPC's own, the stream must be left
// the messages it is given. While no try takes messages SendMsg waits, and only RecvMsg of the last one sees the caller's.
//
// It is meant to be embedded in the value that is allocated for a call, and begins with [Stream.Begin].
type Stream struct {
	config Config
	driver Driver
	first  try
	out    Message // that SendMsg is sending
	in     any     // that RecvMsg is receiving, if there is a Meter

	mu        sync.Mutex // neither gRPC nor code of the caller's runs with it; gRPC may call with locks of its own
	news      sync.Cond  // of all below but over and err
	last      *try       // that was begun
	current   *try       // takes messages: last or nil
	opened    bool       // there was a current
	committed bool       // no other try can follow current
	kept      Sent
	closed    bool // CloseSend was called
	settled   bool // no other try is made: the rest is as answer says
	told      bool // and the caller's options say so, unless the stream goes on
	answer    Answer
	over      bool  // last is, with err
	err       error // nil if well

	panicked any // of the driver, for the caller to see

	ending   sync.Once
	instead  error // what the driver says of the end, set by ending
	received error // what RecvMsg said of it
}

// Config is what a [Stream] is made with.
type Config struct {
	Context  context.Context // the caller's
	Desc     *grpc.StreamDesc
	Conn     *grpc.ClientConn
	Streamer grpc.Streamer
	Encoding Encoding
	Room     int // for messages that are kept, in bytes

	// Pausing has the limit of the whole call stand still while the caller has more to send.
	Pausing bool

	// Meter is told of the messages of the caller. nil means nobody.
	Meter Meter
}

// Meter is told of messages as they are sent and received, each once, with their sizes if these are known. Those in one
// direction come one after the other.
type Meter interface {
	Sent(size int)
	Received(size int)
}

// Driver decides about the tries of a [Stream].
type Driver interface {
	// Make makes the tries, each with [Stream.Try].
	Make() Answer

	// Tell tells the caller's options of an answer that ends the stream.
	Tell(Answer)

	// End ends a stream that was answered and went on, with the error that its last try ended with, nil if well, and tells the
	// caller's options. It returns the error that RecvMsg gives instead of its own, nil if none.
	End(error) error
}

// Answer is how the tries of a stream came out.
type Answer struct {
	// Err is why the stream has ended. nil means that it goes on: as that of the last try.
	Err error

	// Header and Trailer are what there is of the answer. The trailer of a stream that goes on is that of the last try.
	Header, Trailer metadata.MD

	// Limits bound each wait for a message. nil means none.
	Limits *deadline.Call
}

// Reply is what comes of a try. One without a Header is over.
type Reply struct {
	Begun           bool // there was a stream, so that the server may have seen something
	Header, Trailer metadata.MD
	Err             error // nil if there is a header, or if the try ended well without
}

// try is one try.
type try struct {
	stream  *Stream
	cs      grpc.ClientStream // nil if there was none
	codec   *Codec
	clock   deadline.Upload
	release func() // ends what goes on of the try; nil if nobody has to
}

// Begin begins the stream. It returns once there is a try that takes messages.
func (s *Stream) Begin(config Config, driver Driver) (grpc.ClientStream, error) {
	s.config, s.driver = config, driver
	s.news.L = &s.mu
	s.kept.Room = config.Room
	go s.run()

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

var errPanicked = status.Error(codes.Internal, "the goroutine of the stream panicked")

// run has the driver make the tries.
func (s *Stream) run() {
	returned := false
	defer func() {
		if returned {
			return
		}
		if s.panicked = recover(); s.panicked == nil {
			s.panicked = "runtime.Goexit in a stream interceptor"
		}
		if s.last != nil {
			s.last.end()
		}
		s.settle(Answer{Err: errPanicked})
	}()
	answer := s.driver.Make()
	returned = true
	s.settle(answer)
}

// settle takes the answer, which is the caller's from here on.
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

// end tells the driver that the last try is over, if that was answered.
func (s *Stream) end() {
	s.ending.Do(func() {
		if s.err == nil && !s.config.Desc.ServerStreams && s.in != nil {
			s.receivedMessage() // gRPC ends such a stream, on the goroutine of RecvMsg, before that gives out the only message
		}
		s.instead = s.driver.End(s.err)
	})
}

// Try makes another try, with ctx, up to its answer. release, if not nil, is called when gRPC is done with it.
func (s *Stream) Try(ctx context.Context, release func(), method string, opts []grpc.CallOption) Reply {
	t := s.begin(ctx, release)
	t.codec, opts = s.config.Encoding.Codec(append(opts, grpc.OnFinish(t.finished)))
	cs, err := s.config.Streamer(ctx, s.config.Desc, s.config.Conn, method, opts...)
	if err != nil {
		t.end()
		return Reply{Err: err}
	}
	t.cs = cs
	_ = s.kept.Replay(cs, t.codec) // if the try ended meanwhile, its header will say so
	s.open(t)

	header, _ := cs.Header()
	if header != nil {
		return Reply{Begun: true, Header: header}
	}
	r := Reply{Begun: true, Trailer: cs.Trailer()}
	s.mu.Lock()
	over := s.over
	r.Err = s.err
	if !s.committed {
		s.current = nil
	}
	s.mu.Unlock()
	if over && grpcstatus.TrailersOnly(r.Trailer) {
		return r
	}
	// To gRPC's Header, a stream that was cut before it was sent ended well. RecvMsg knows better, and has no message.
	switch r.Err = cs.RecvMsg(new(emptypb.Empty)); {
	case r.Err == nil:
		r.Err = status.Error(codes.Internal, "a stream without headers has a message")
	case r.Err == io.EOF:
		r.Err = nil
	case status.Code(r.Err) == codes.Unavailable && s.config.Conn.GetState() == connectivity.Shutdown:
		//lint:ignore SA1019 there is no other way to tell that the caller closed the connection
		r.Err = grpc.ErrClientConnClosing
	}
	return r
}

// begin returns the next try.
func (s *Stream) begin(ctx context.Context, release func()) *try {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := &s.first
	if s.last != nil {
		t = new(try)
	}
	t.stream, t.release = s, release
	s.last, s.current, s.over, s.err = t, nil, false, nil
	if s.config.Pausing {
		t.clock = deadline.RequestUploadOf(ctx)
		if s.config.Desc.ClientStreams && !s.closed {
			t.clock.Pause()
		}
	}
	return t
}

// open makes t, which was sent what was sent before, the current try.
func (s *Stream) open(t *try) {
	s.mu.Lock()
	s.current, s.opened = t, true
	closed := s.closed
	s.news.Broadcast()
	s.mu.Unlock()
	if closed { // while there was no try that could be told
		t.clock.Resume()
		_ = t.cs.CloseSend()
	}
}

// finished is told by gRPC that it is done with the try.
func (t *try) finished(err error) {
	if t.note(err) {
		t.stream.end()
	}
	t.end()
}

// note notes how a try ended, if that is not known yet. It reports whether the stream ends with it: not if the end of a try
// comes after another has taken its place.
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

// end ends what goes on of the try.
func (t *try) end() {
	if t.release != nil {
		t.release()
	}
}

// Committed reports whether no other try can follow the one that there is.
func (s *Stream) Committed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed
}

// Drop makes room for another try, and gives up the one that there is. It reports false if that is committed.
func (s *Stream) Drop() bool {
	s.mu.Lock()
	if s.committed {
		s.mu.Unlock()
		return false
	}
	s.current = nil
	t := s.last
	s.mu.Unlock()
	t.end()
	return true
}

// commitLocked says that no other try follows.
func (s *Stream) commitLocked() {
	s.committed = true
	s.kept.Drop()
}
