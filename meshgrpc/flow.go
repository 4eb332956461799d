package meshgrpc

import (
	"context"
	"io"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcwire"
)

// flow is a try of a stream.
type flow struct {
	try
	stream *stream
	cs     grpc.ClientStream
	codec  *grpcreplay.Codec
	clock  deadline.Clock
	cancel context.CancelFunc

	answered bool // response headers came, or a reply without messages
	// Guarded by stream.end.
	finished  bool // gRPC is done with the try, with finishErr
	finishErr error
	judged    bool // err, code and rest of try are set
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

// Read receives a message: a flow is the body of the response that the mesh sees.
func (f *flow) Read([]byte) (int, error) {
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
func (f *flow) Close() error {
	f.cancel()
	return nil
}
