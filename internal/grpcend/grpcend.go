// Package grpcend tells the interceptors of gRPC clients when a stream is over.
package grpcend

import (
	"context"
	"io"
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ErrPanicked is the error of a stream whose streamer panicked or exited.
var ErrPanicked = status.Error(codes.Unknown, "an interceptor of the stream has panicked")

// Open begins a stream with streamer. It calls end once, with the error of the stream or nil, when the stream is over: if it could not be
// begun, when gRPC is done with it, when a method has returned what ends it for the caller, or when ctx ends, whichever comes first. What
// gRPC says does not suffice: an interceptor in between may end a stream that gRPC goes on with, or answer it without gRPC.
func Open(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts []grpc.CallOption,
	end func(error)) (grpc.ClientStream, error) {
	s := &stream{desc: desc, end: end}
	err := ErrPanicked
	defer func() {
		if err != nil {
			s.over(err)
		}
	}()
	direct := Direct(streamer)
	if !direct {
		s.stop = context.AfterFunc(ctx, func() { s.ended(status.FromContextError(ctx.Err()).Err()) })
	}
	s.ClientStream, err = streamer(ctx, desc, cc, method, append(opts[:len(opts):len(opts)], grpc.OnFinish(s.over))...)
	switch {
	case err != nil:
		return nil, err
	case direct:
		return s.ClientStream, nil
	}
	return s, nil
}

// Direct reports whether streamer is gRPC's own: there are no more interceptors. The caller of a stream that it returns keeps to what gRPC
// says about the end. If gRPC calls it by another name some day, Direct is always false, which costs allocations only.
func Direct(streamer grpc.Streamer) bool { return streamers.own(reflect.ValueOf(streamer).Pointer()) }

// DirectUnary is Direct for unary calls.
func DirectUnary(invoker grpc.UnaryInvoker) bool {
	return invokers.own(reflect.ValueOf(invoker).Pointer())
}

var (
	streamers = function{name: "google.golang.org/grpc.newClientStream"}
	invokers  = function{name: "google.golang.org/grpc.invoke"}
)

// function is a function that is known by its name. A look-up of a name takes 600 instructions, so it is remembered where the function is,
// and where the latest other one is.
type function struct {
	name      string
	at, other atomic.Uintptr
}

// own reports whether at is where the function is.
func (f *function) own(at uintptr) bool {
	switch at {
	case f.at.Load():
		return true
	case f.other.Load():
		return false
	}
	if found := runtime.FuncForPC(at); found == nil || found.Name() != f.name {
		f.other.Store(at)
		return false
	}
	f.at.Store(at)
	return true
}

// stream is a stream whose end is watched.
type stream struct {
	grpc.ClientStream
	desc *grpc.StreamDesc
	once sync.Once
	end  func(error)
	stop func() bool // stops waiting for the end of the context; nil if nothing waits
}

// over says that the stream is over.
func (s *stream) over(err error) {
	if s.stop != nil {
		s.stop()
	}
	s.ended(err)
}

func (s *stream) ended(err error) {
	if err == io.EOF {
		err = nil
	}
	s.once.Do(func() { s.end(err) })
}

// Header implements grpc.ClientStream.
func (s *stream) Header() (metadata.MD, error) {
	md, err := s.ClientStream.Header()
	if err != nil {
		s.over(err)
	}
	return md, err
}

// SendMsg implements grpc.ClientStream.
func (s *stream) SendMsg(m any) error {
	err := s.ClientStream.SendMsg(m)
	if err != nil && err != io.EOF { // RecvMsg returns the error of a stream that ended
		s.over(err)
	}
	return err
}

// RecvMsg implements grpc.ClientStream.
func (s *stream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	if err != nil || !s.desc.ServerStreams { // there is only one message
		s.over(err)
	}
	return err
}
