package meshgrpc

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/grpcreplay"
)

var _ grpc.ClientStream = (*stream)(nil)

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
func (s *stream) RecvMsg(m any) error {
	if err := s.wait(); err != nil {
		return err
	}
	f := s.last
	if !f.noted() {
		err := s.receive(f, m)
		if err == nil {
			return nil
		}
		f.note(err)
	}
	s.conclude(f)
	f.cancel() // an interceptor may have ended what goes on for gRPC
	if s.verdict == io.EOF && !s.desc.ServerStreams {
		return f.cs.RecvMsg(m) // which knows how many messages there must be
	}
	return s.verdict
}

// receive waits for a message, as long as it may.
func (s *stream) receive(f *flow, m any) error {
	limits := s.Limits()
	if limits == nil {
		return f.cs.RecvMsg(m)
	}
	limits.Await()
	defer limits.Received(nil) // conclude asks why it ended
	return f.cs.RecvMsg(m)
}

// SendMsg implements grpc.ClientStream.
func (s *stream) SendMsg(m any) error {
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
		f.clock.Sending()
		err := s.out.Send(f.cs, f.codec)
		f.clock.Sent()
		switch {
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
	if s.kept.Keep(&s.out) {
		s.out = grpcreplay.Message{}
	} else {
		s.commitLocked()
	}
	return true
}

// commitLocked says that no other try follows.
func (s *stream) commitLocked() {
	s.committed = true
	s.kept.Drop()
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
func (s *stream) CloseSend() error {
	s.mu.Lock()
	s.closed = true
	f := s.current
	s.mu.Unlock()
	if f == nil {
		return nil // the next try is told
	}
	f.clock.Resume()
	return f.cs.CloseSend()
}

// Header implements grpc.ClientStream.
func (s *stream) Header() (metadata.MD, error) {
	if s.wait() != nil {
		return nil, nil // RecvMsg says why
	}
	header, trailer := s.last.metadata()
	if header == nil && s.last.reads { // the answer is all trailers, and documents had their say
		header = trailer
	}
	return header.Copy(), nil
}

// Trailer implements grpc.ClientStream. It makes the current try the last.
func (s *stream) Trailer() metadata.MD {
	if f := s.await(nil); f != nil {
		s.commit(f)
		return f.cs.Trailer()
	}
	return s.trailer.Copy()
}

// Context implements grpc.ClientStream. It makes the current try the last.
func (s *stream) Context() context.Context {
	if f := s.await(nil); f != nil {
		s.commit(f)
		return f.cs.Context()
	}
	return s.ctx
}
