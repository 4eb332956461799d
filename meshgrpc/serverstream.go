package meshgrpc

import (
	"context"
	"io"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcwire"
)

// serverStream is the stream of an allowed call. It moves no more messages once the call is no longer allowed.
type serverStream struct {
	grpc.ServerStream
	in    *inbound
	users atomic.Int32 // the handler, and messages that are being reported; the last one leaves the call
	code  codes.Code   // of the handler
}

// passes returns what the handler of the call gets for stream.
func (in *inbound) passes(stream grpc.ServerStream) grpc.ServerStream {
	s := &in.passed
	s.ServerStream, s.in = stream, in
	s.users.Store(1)
	return s
}

// replyHeader returns what observers have set for the header of the response, nil if that is nothing.
func (in *inbound) replyHeader() *grpcwire.ReplyHeader {
	if h := in.call.Header(); len(h) > 0 {
		return grpcwire.NewReplyHeader(fromReply(h))
	}
	return nil
}

// hold keeps the call from ending. It reports false if the call has ended: goroutines of a handler may briefly outlive it.
func (s *serverStream) hold() bool {
	for {
		n := s.users.Load()
		if n == 0 {
			return false
		}
		if s.users.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (s *serverStream) release() {
	if s.users.Add(-1) == 0 {
		s.in.leave(s.code, s.in.panicked)
	}
}

func (s *serverStream) Context() context.Context { return &s.in.entered }

func (s *serverStream) SendMsg(m any) error { return s.move(true, m) }

func (s *serverStream) RecvMsg(m any) error { return s.move(false, m) }

// move moves a message, and reports it to the observers.
func (s *serverStream) move(sent bool, m any) error {
	if !s.in.call.Observed() {
		return s.pass(sent, m)
	}
	size := 0
	if sent { // a message may change after it was sent
		size, _ = grpcwire.MessageSize(m)
	}
	err := s.pass(sent, m)
	if err != nil && (sent || !answers(err)) || !s.hold() {
		return err
	}
	defer s.release()
	if err != nil {
		s.in.call.Answered(int(status.Code(err)))
		return err
	}
	if !sent {
		size, _ = grpcwire.MessageSize(m)
	}
	s.in.call.Message(sent, size)
	return nil
}

// answers reports whether gRPC has answered the call with err, since it could not receive a message: it was too large, say.
func answers(err error) bool {
	if err == io.EOF {
		return false
	}
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable: // the call was over
		return false
	}
	return true
}

func (s *serverStream) pass(sent bool, m any) error {
	if s.in.entered.Withdrawn() {
		return errDenied
	}
	if s.in.stream == nil { // ending the call does not wake goroutines that wait in the stream
		return s.in.allowed(s.passApart(sent, m))
	}
	return s.in.allowed(s.through(sent, m))
}

func (s *serverStream) through(sent bool, m any) error {
	if sent {
		return s.ServerStream.SendMsg(m)
	}
	return s.ServerStream.RecvMsg(m)
}

// passApart passes a message in a goroutine, and does not wait for it if the call is ended.
func (s *serverStream) passApart(sent bool, m any) error {
	type end struct {
		err      error
		panicked any
	}
	moved := make(chan end, 1)
	go func() { // ends when the handler has returned, at the latest
		e := end{panicked: "runtime.Goexit in a stream"}
		defer func() {
			if p := recover(); p != nil {
				e.panicked = p
			}
			moved <- e
		}()
		e.err = s.through(sent, m)
		e.panicked = nil
	}()
	var e end
	select {
	case e = <-moved:
	case <-s.in.entered.Done():
		if s.in.entered.Withdrawn() {
			return errDenied
		}
		e = <-moved
	}
	if e.panicked != nil {
		panic(e.panicked) // in the goroutine of the handler, as if it had passed the message
	}
	return e.err
}
