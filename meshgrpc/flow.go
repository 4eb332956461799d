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
	clock  deadline.Upload
	cancel context.CancelFunc

	// Guarded by stream.end.
	finished  bool // the try is over, with finishErr
	finishErr error
}

// finishedBy is told by gRPC that it is done with the try.
func (f *flow) finishedBy(err error) {
	if f.note(err) {
		f.stream.conclude(f)
	}
	f.cancel()
}

// note notes how the try ended, if that is not known yet. It reports whether the stream ends with it.
func (f *flow) note(err error) (ends bool) {
	s := f.stream
	s.end.Lock()
	defer s.end.Unlock()
	if !f.finished {
		f.finished, f.finishErr = true, err
	}
	return s.live
}

// noted reports whether the try is over.
func (f *flow) noted() bool {
	f.stream.end.Lock()
	defer f.stream.end.Unlock()
	return f.finished
}

// judgeEnd says what came of a stream that was answered.
func (f *flow) judgeEnd() {
	f.stream.end.Lock()
	err := f.finishErr
	f.stream.end.Unlock()
	f.err, f.code = err, status.Code(err)
	switch {
	case err == nil || err == io.EOF:
		f.err, f.code = io.EOF, codes.OK
	case ended(f.ctx, f.code):
		f.rest = context.Cause(f.ctx)
	case grpcwire.Closed(err):
		f.err, f.code, f.rest = errClosing, codes.Canceled, errClosing
	default:
		f.rest = lost(err)
	}
}
