package grpcreplay

import (
	"context"
	"io"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
)

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
	lost    bool        // it was not sent, so another takes its place
	second  bool        // in place of one that was lost
	dropped bool        // by Drop, maybe while it was sent again; guarded by Stream.mu
	opts    [3]grpc.CallOption
}

// Open begins another try with ctx. If it is not opened, the Reply has the error.
func (s *Stream) Open(ctx context.Context, method string, opts []grpc.CallOption) (r Reply, opened bool) {
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
		return Reply{Err: err}, false
	}
	t.cs = cs
	if resends {
		s.resend(t)
	} else {
		_ = s.kept.Replay(cs, t.codec) // if the try has ended, Header below shows it
		s.open(t)
	}
	return Reply{}, true
}

// Lost reports whether the last try, whose reply was r, is to be opened again, once, because its connection was lost before it was sent. gRPC
// does that for a caller of RecvMsg, but not for one of Header, which takes such a stream for one that has ended well.
func (s *Stream) Lost(r Reply) bool {
	if !r.unsent || s.last.second || !s.Drop() {
		return false
	}
	s.last.lost = true
	return true
}

// unread stands for a header that nobody has asked for. It is never changed.
var unread = metadata.MD{}

// Reply waits for the beginning of the response to the last try, which was opened. If nobody needs its header, a RecvMsg that waits for it
// gets the first message at once, and the header of the reply is empty: gRPC makes a copy of each header that it is asked for.
func (s *Stream) Reply(needed bool) Reply {
	t := s.last
	cs := t.cs
	first := s.in
	s.in = nil
	var err error
	if first != nil && !needed {
		if err = cs.RecvMsg(first); err == nil {
			s.got, s.unread = true, true
			return Reply{Begun: true, Header: unread}
		}
	}
	header, _ := cs.Header()
	if header != nil {
		if err != nil {
			s.received = err
			t.note(err)
		}
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
	if r.Err = err; err == nil {
		r.Err = cs.RecvMsg(new(emptypb.Empty))
	}
	switch {
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
	t.stream, t.second = s, s.last != nil && s.last.lost
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
	if !t.dropped && (!s.settled || s.answer.Err == nil) {
		s.current = t
		s.shortenLocked()
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

// over ends the stream if t, which is over, was its last try. If that is not known, because nobody has waited for the response, the driver
// decides, on a goroutine of its own: gRPC may hold locks.
func (t *try) over(err error) {
	ends, resume := t.note(err)
	if ends {
		t.stream.end()
	}
	if resume {
		go starterOf(t.stream)()
	}
}

// note records the error with which a try has ended, if that is not yet known. It reports whether the stream ends with it, which is not the
// case if another try has already replaced t, and whether the driver must be resumed.
func (t *try) note(err error) (ends, resume bool) {
	s := t.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if t != s.last {
		return false, false
	}
	if !s.over {
		if err == io.EOF {
			err = nil
		}
		s.over, s.err = true, err
		s.receives.Store(nil)
	}
	return s.settled && s.answer.Err == nil, s.takeLocked()
}

// end ends the try if it is still running.
func (t *try) end() {
	if t.unwatch != nil {
		t.unwatch()
		t.cancel()
	}
}
