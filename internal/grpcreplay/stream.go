package grpcreplay

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcend"
	"github.com/nosidecar/mesh/retry"
)

// Stream is a grpc.ClientStream that can be retried. Its [Driver] makes the tries until one is answered or there are no more tries. Until
// then another try can replace the current one, and all messages are sent again. The caller gets the response of the last try.
//
// The driver runs on the goroutines of the caller, except where it matters when the response comes, or nobody asks for it.
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
	in     any     // the message that RecvMsg is receiving, if there is a Meter or it waits for the answer

	mu        sync.Mutex // not held while gRPC or code of the caller runs; gRPC may hold locks of its own when it calls us
	news      sync.Cond  // signals changes of the fields below, except over and err
	last      *try       // the latest try
	current   *try       // the try that takes messages: last or nil
	kept      Sent       // not changed while replaying
	answer    Answer
	err       error // nil if last has ended without an error
	over      bool  // last has ended with err
	committed bool  // no other try can follow current
	replaying bool  // resending sends kept on last
	closed    bool  // CloseSend was called
	settled   bool  // there are no more tries; answer is set
	pending   bool  // the driver is suspended, and whoever needs the answer resumes it
	told      bool  // the stream goes on, or the caller's options were set
	begun     bool  // Make was called; not guarded, like the fields of the driver below

	panicked any // the panic of the driver or of resending, which is passed on to the caller

	// The try to which messages go, and from which they come, without the lock; nil as long as anything may change that. The two
	// directions do not write to memory that the other one uses.
	sends, receives atomic.Pointer[try]

	resending sync.WaitGroup // what sends kept on last while its response is awaited

	ending sync.Once

	// The following are not guarded: the driver has one goroutine at a time.
	apart  bool // each try has a context of its own
	prompt bool // responses are awaited at once
	unread bool // the header of the answer was not asked for
	got    bool // RecvMsg got its message with the answer

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

// Driver makes the tries of a [Stream]. It does not wait for responses: Make and Resume return a pending Answer once they have opened a try
// with [Stream.Open].
type Driver interface {
	// Make makes tries until one is opened, or no other follows.
	Make() Answer

	// Resume waits for the response with [Stream.Reply], and makes further tries.
	Resume() Answer

	// Tell sets the caller's options for an answer that ends the stream.
	Tell(Answer)

	// End ends a stream that was answered and has continued. Its argument is the error of the last try, or nil. It sets the caller's
	// options. If it returns an error, RecvMsg returns that instead of its own.
	End(error) error
}

// Answers of a [Driver] have these errors if they are pending. With ErrPrompt, Resume is called at once, on a separate goroutine. Otherwise
// it is called when the caller needs the result, or when the stream is over.
var (
	ErrPending = errors.New("the response has not been awaited")
	ErrPrompt  = errors.New("the response is to be awaited at once")
)

// Answer is the result of the tries of a stream.
type Answer struct {
	// Err is the error with which the stream has ended. If it is nil, the stream continues as that of the last try. If it is ErrPending, or
	// ErrPrompt, the result is not known yet.
	Err error

	// Header and Trailer are those of the response. If the stream continues, Trailer is not used.
	Header, Trailer metadata.MD

	// Limits bounds each wait for a message. Nil means no limits.
	Limits *deadline.Call
}

// Begin begins the stream. It returns once there is a try that takes messages.
func (s *Stream) Begin(config Config, driver Driver) (grpc.ClientStream, error) {
	s.config, s.driver, s.apart = config, driver, !grpcend.Direct(config.Streamer)
	s.news.L = &s.mu
	s.kept.Room = config.Room
	if !s.proceed(nil) {
		if _, _, err := s.wait(nil); err != nil {
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

// run makes the driver go on until the stream is settled.
func (s *Stream) run() {
	for s.step() != nil {
	}
}

// proceed runs the driver until it is suspended, or the stream is settled. It reports false if the stream is settled. first is the message of a
// RecvMsg, or nil.
func (s *Stream) proceed(first any) (suspended bool) {
	s.in = first
	pending := s.step()
	if pending == nil {
		return false
	}
	s.mu.Lock()
	s.pending = pending == ErrPending && !s.prompt && !s.over && !s.replaying // a server may answer before it reads
	waits := s.pending
	s.news.Broadcast()
	s.mu.Unlock()
	if !waits {
		go starterOf(s)()
	}
	return true
}

// takeLocked reports whether the driver was suspended. Then it is no longer, and the caller of takeLocked must resume it.
func (s *Stream) takeLocked() bool {
	pending := s.pending
	s.pending = false
	return pending
}

// step runs the driver once. It returns ErrPending or ErrPrompt if the answer is still pending, and otherwise settles the stream.
func (s *Stream) step() (pending error) {
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
	var answer Answer
	if s.begun {
		answer = s.driver.Resume()
	} else {
		s.begun = true
		answer = s.driver.Make()
	}
	returned = true
	if answer.Err == ErrPending || answer.Err == ErrPrompt {
		return answer.Err
	}
	s.settle(answer)
	return nil
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
	if a.Err != nil {
		s.current = nil
		s.sends.Store(nil)
	}
	s.commitLocked()
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
			s.receivedMessage(s.in) // gRPC ends such a stream within RecvMsg, before that returns the only message
		}
		s.instead = s.driver.End(s.err)
	})
}

// Follow must be called before the first try, with the policy of the call. A try whose response has begun goes on until the call of the caller
// ends, if it has no context of its own. It has one if policy may drop such a try, and if there are other interceptors, which may end
// a stream that gRPC goes on with.
func (s *Stream) Follow(policy *retry.Policy) {
	if policy != nil && retriesAnswers(policy) {
		s.apart, s.prompt = true, true
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
	s.shortenLocked()
}

// shortenLocked lets messages take the short way, if that is possible now.
func (s *Stream) shortenLocked() {
	t := s.current
	if t == nil || !s.committed || s.replaying {
		return
	}
	if s.config.Desc.ClientStreams {
		s.sends.Store(t)
	}
	if s.config.Desc.ServerStreams && s.settled && !s.over {
		s.receives.Store(t)
	}
}
