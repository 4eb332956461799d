package grpcreplay

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcwire"
)

var _ grpc.ClientStream = (*Stream)(nil)

// wait waits for the answer. It returns the try that continues as the stream, and whether that try is over. If no try does, it returns the
// error; the results that the caller's options ask for are set then. first is the message of a RecvMsg, or nil.
func (s *Stream) wait(first any) (t *try, over bool, err error) {
	s.mu.Lock()
	for !s.told {
		if s.takeLocked() {
			s.mu.Unlock()
			s.proceed(first)
			s.mu.Lock()
			continue
		}
		s.news.Wait()
	}
	t, over, err = s.last, s.over, s.answer.Err
	panicked := s.panicked
	s.mu.Unlock()
	if panicked != nil {
		panic(panicked)
	}
	return t, over, err
}

// await waits for a try that takes messages, other than over, and commits it if commit is set. It returns nil if there will be no such try.
func (s *Stream) await(over *try, commit bool) (t *try, committed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for (s.current == nil || s.current == over && !s.committed) && (!s.settled || s.replaying) {
		if s.current != nil && s.takeLocked() { // the try is over
			s.mu.Unlock()
			s.proceed(nil)
			s.mu.Lock()
			continue
		}
		s.news.Wait()
	}
	if s.current == over {
		return nil, true
	}
	if commit {
		s.commitLocked()
	}
	return s.current, s.committed
}

// answered returns the try that continues as the stream, nil if that is not known yet. It may not take messages yet: the server may first
// want its response to be read.
func (s *Stream) answered() *try {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled && s.answer.Err == nil {
		return s.last
	}
	return nil
}

// RecvMsg implements grpc.ClientStream.
func (s *Stream) RecvMsg(m any) error {
	if t := s.receives.Load(); t != nil && !s.got {
		if err := s.receive(t, m); err != nil {
			return s.broke(t, m, err)
		}
		s.receivedMessage(m)
		return nil
	}
	t, over, err := s.wait(m)
	switch {
	case err != nil:
		return err
	case over && !s.got:
		return s.ended(t, m)
	case s.config.Meter != nil:
		s.in = m
	}
	if err := s.receive(t, m); err != nil {
		return s.broke(t, m, err)
	}
	if s.config.Desc.ServerStreams {
		s.receivedMessage(m)
	} else { // there is only one message
		t.over(nil)
		t.end()
	}
	s.in = nil // the message now belongs to the caller
	return nil
}

// broke ends the stream of t, from which RecvMsg got err instead of the message m, and returns the error for the caller.
func (s *Stream) broke(t *try, m any, err error) error {
	s.received = err // interceptors may return another error than gRPC
	t.note(err)
	return s.ended(t, m)
}

// ended ends the stream, whose last try t is over, and returns the error for a RecvMsg of the message m.
func (s *Stream) ended(t *try, m any) error {
	s.end()
	t.end() // gRPC may not have noticed the end, if an interceptor has ended the stream
	switch {
	case s.instead != nil:
		return s.instead
	case s.received != nil:
		return s.received
	case s.err != nil:
		return s.err
	case !s.config.Desc.ServerStreams:
		return t.cs.RecvMsg(m) // gRPC checks the number of messages
	}
	return io.EOF
}

// size returns the size of a message for the Meter, if there is one. A message that is sent may change afterwards.
func (s *Stream) size(m any) (size int) {
	if s.config.Meter != nil {
		size, _ = grpcwire.MessageSize(m)
	}
	return size
}

// sentMessage reports a message of the given size to the Meter.
func (s *Stream) sentMessage(size int) {
	if s.config.Meter != nil {
		s.config.Meter.Sent(size)
	}
}

// receivedMessage reports a received message to the Meter.
func (s *Stream) receivedMessage(m any) {
	if s.config.Meter != nil {
		s.config.Meter.Received(s.size(m))
	}
}

// receive waits for a message, within the limits.
func (s *Stream) receive(t *try, m any) error {
	got := s.got
	if got {
		s.got = false
	}
	if limits := s.answer.Limits; limits != nil {
		limits.Await()
		defer limits.Received(nil) // End determines why the wait failed
	}
	if got {
		return nil
	}
	return t.cs.RecvMsg(m)
}

// SendMsg implements grpc.ClientStream.
func (s *Stream) SendMsg(m any) error {
	if t := s.sends.Load(); t != nil {
		if s.config.Meter == nil && t.clock == (deadline.Upload{}) {
			return t.cs.SendMsg(m)
		}
		return s.sendLast(t, m)
	}
	_, once := m.(*grpc.PreparedMsg) // gRPC sends such a message only once
	size := s.size(m)
	s.out = Message{Value: m}
	defer s.out.Free()
	var over *try
	for {
		t, committed := s.await(over, once)
		if t == nil {
			if !s.config.Desc.ClientStreams {
				return nil // generated code expects that; RecvMsg returns the error
			}
			return io.EOF
		}
		t.clock.Sending()
		err := s.out.Send(t.cs, t.codec)
		t.clock.Sent()
		switch {
		case err == nil:
			if committed || s.keep(t) {
				s.sentMessage(size)
				return nil
			}
		case err == io.EOF:
			over = t // another try may follow
		default:
			s.commit(t) // the message is invalid
			return err
		}
	}
}

// sendLast sends a message on the last try, and on no other.
func (s *Stream) sendLast(t *try, m any) error {
	size := s.size(m)
	t.clock.Sending()
	err := t.cs.SendMsg(m)
	t.clock.Sent()
	if err == nil {
		s.sentMessage(size)
	}
	return err
}

// keep keeps the message that t has taken. It reports false if t is no longer the current try, so that the message is lost.
func (s *Stream) keep(t *try) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current != t {
		return false
	}
	if s.committed {
		return true
	}
	if s.kept.Keep(&s.out) {
		s.out = Message{}
	} else {
		s.commitLocked()
	}
	return true
}

// commit makes t the last try, if it is the current one.
func (s *Stream) commit(t *try) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == t {
		s.commitLocked()
	}
}

// CloseSend implements grpc.ClientStream.
func (s *Stream) CloseSend() error {
	s.mu.Lock()
	s.closed = true
	t := s.current
	s.mu.Unlock()
	if t == nil {
		return nil // open calls it for the next try
	}
	t.clock.Resume()
	return t.cs.CloseSend()
}

// Header implements grpc.ClientStream.
func (s *Stream) Header() (metadata.MD, error) {
	t, _, err := s.wait(nil)
	switch {
	case err != nil:
		return nil, nil // RecvMsg returns the error
	case s.unread:
		return t.cs.Header()
	}
	return copied(s.answer.Header), nil
}

// Trailer implements grpc.ClientStream. It makes the current try the last.
func (s *Stream) Trailer() metadata.MD {
	if t, _ := s.await(nil, true); t != nil {
		return t.cs.Trailer()
	}
	return copied(s.answer.Trailer)
}

// Context implements grpc.ClientStream. It makes the current try the last.
func (s *Stream) Context() context.Context {
	ctx := s.context()
	if s.config.Shown != nil {
		return s.config.Shown(ctx)
	}
	return ctx
}

func (s *Stream) context() context.Context {
	if t := s.answered(); t != nil {
		return t.cs.Context()
	}
	if t, _ := s.await(nil, true); t != nil {
		return t.cs.Context()
	}
	if s.last != nil && s.last.cs != nil {
		return s.last.cs.Context()
	}
	return s.config.Context
}
