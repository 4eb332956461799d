package retrygrpc

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/retry"
)

// What follows is the stream as its caller sees it.

// Header implements grpc.ClientStream.
func (s *stream) Header() (metadata.MD, error) {
	for {
		t, committed, failure := s.state()
		if failure != nil || t.stream == nil {
			return nil, nil // RecvMsg says why
		}
		if committed {
			if t.limited() != nil {
				return nil, nil
			}
			return t.stream.Header()
		}
		if t.answer().answered {
			s.commit(t, retry.Succeeded)
		} else {
			s.again(t)
		}
	}
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	for {
		t, committed, failure := s.state()
		if failure != nil {
			if s.ended != nil {
				<-s.ended // it may be SendMsg that tells
			}
			return failure
		}
		if committed {
			if err := t.limited(); err != nil {
				return err
			}
			return t.stream.RecvMsg(m)
		}
		if t.answer().answered {
			s.commit(t, retry.Succeeded)
		} else {
			s.again(t)
		}
	}
}

// SendMsg implements grpc.ClientStream.
func (s *stream) SendMsg(m any) error {
	if _, prepared := m.(*grpc.PreparedMsg); prepared {
		t, _, _ := s.state()
		s.commit(t, retry.BodyCommitted) // gRPC sends it only once
	}
	s.out = grpcreplay.Message{Value: m}
	defer s.out.Free()
	for {
		t, committed, failure := s.state()
		switch {
		case failure != nil && s.desc.ClientStreams:
			return io.EOF
		case failure != nil:
			return nil
		case committed:
			return s.out.Send(t.stream, t.codec)
		}
		switch err := s.out.Send(t.stream, t.codec); {
		case err == nil:
			if s.keep(t) {
				return nil
			}
		case err != io.EOF:
			s.commit(t, retry.NotRetriable) // something is wrong with the message
			return err
		case t.answer().answered:
			s.commit(t, retry.Succeeded)
			return io.EOF
		default:
			s.again(t)
		}
	}
}

// keep keeps the message that t has taken. It reports false if t is not the current try any more.
func (s *stream) keep(t *try) bool {
	s.mu.Lock()
	if s.current != t {
		s.mu.Unlock()
		return false
	}
	full := false
	if !s.committed {
		if full = !s.sent.Keep(&s.out); !full {
			s.out = grpcreplay.Message{}
		}
	}
	s.mu.Unlock()
	if full {
		s.commit(t, retry.BodyCommitted)
	}
	return true
}

// CloseSend implements grpc.ClientStream.
func (s *stream) CloseSend() error {
	for {
		t, committed, failure := s.state()
		if failure != nil {
			return nil
		}
		err := t.stream.CloseSend()
		if committed {
			return err
		}
		s.mu.Lock()
		same := s.current == t
		if same {
			s.closed = true
		}
		s.mu.Unlock()
		if same {
			return err
		}
	}
}

// Context implements grpc.ClientStream.
func (s *stream) Context() context.Context {
	if t := s.last(); t.stream != nil {
		return t.stream.Context()
	}
	return s.ctx
}

// Trailer implements grpc.ClientStream.
func (s *stream) Trailer() metadata.MD {
	if t := s.last(); t.stream != nil {
		return t.stream.Trailer()
	}
	return nil
}

// last returns the current try, which it makes the last.
func (s *stream) last() *try {
	for {
		t, committed, _ := s.state()
		if committed {
			return t
		}
		s.commit(t, retry.BodyCommitted)
	}
}
