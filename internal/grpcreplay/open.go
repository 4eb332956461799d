package grpcreplay

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/internal/grpcwire"
)

// Open begins a stream with streamer that is not retried. It calls answered, unless that is nil, when the headers of the response have come or
// never will, and end, once, when the stream is over, as grpcend.Open does. The Header of its stream may be called before RecvMsg: that of
// gRPC's own would keep gRPC from sending a stream again whose connection was lost before the stream was sent.
func Open(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts []grpc.CallOption,
	answered func(), end func(error)) (grpc.ClientStream, error) {
	s := &single{ctx: ctx, method: method, answered: answered, end: end}
	s.opts, s.results = Split(make([]grpc.CallOption, 0, len(opts)+3), opts)
	if s.results.WantReply() {
		s.opts = s.left.Ask(s.opts)
	}
	return s.replayed.Begin(Config{
		Context: ctx, Desc: desc, Conn: cc, Streamer: streamer, Encoding: EncodingOf(opts), Room: RoomOf(opts),
	}, s)
}

// single is the Driver of a stream with one try.
type single struct {
	replayed Stream
	ctx      context.Context
	method   string
	opts     []grpc.CallOption
	results  *Results
	left     Left
	answered func()
	end      func(error)
}

// Make implements Driver.
func (s *single) Make() Answer {
	switch r, opened := s.replayed.Open(s.ctx, s.method, s.opts); {
	case !opened:
		return Answer{Err: r.Err}
	case s.answered != nil:
		return Answer{Err: ErrPrompt}
	}
	return Answer{Err: ErrPending}
}

// Resume implements Driver.
func (s *single) Resume() Answer {
	r := s.replayed.Reply(false)
	if s.replayed.Lost(r) {
		return s.Make()
	}
	if s.answered != nil {
		s.answered()
	}
	return Answer{Header: r.Header, Trailer: r.Trailer, Err: r.Err}
}

// Tell implements Driver.
func (s *single) Tell(a Answer) { _ = s.End(a.Err) }

// End implements Driver.
func (s *single) End(err error) (instead error) {
	s.end(err)
	s.left.Fill(s.results)
	s.results.End(err)
	return nil
}

// RoomOf returns the room for the messages of a stream with the options that are kept, in bytes.
func RoomOf(opts []grpc.CallOption) int {
	room := grpcwire.DefaultBufferLimit
	for _, opt := range opts {
		if bound, ok := opt.(grpc.MaxRetryRPCBufferSizeCallOption); ok {
			room = bound.MaxRetryRPCBufferSize
		}
	}
	return room
}

// Left is what a try leaves behind. gRPC sets it at the end of a try if it had a stream.
type Left struct {
	Header, Trailer metadata.MD
	Peer            peer.Peer
}

// Ask appends to opts the options that set l.
func (l *Left) Ask(opts []grpc.CallOption) []grpc.CallOption {
	return append(opts, grpc.Header(&l.Header), grpc.Trailer(&l.Trailer), grpc.Peer(&l.Peer))
}

// Fill gives the caller what the last try left behind.
func (l *Left) Fill(results *Results) {
	if l.Trailer != nil { // there was a stream
		results.Fill(l.Header, l.Trailer, l.Peer)
	}
}
