package grpcwire

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// ReplyHeader is metadata for the header of a response. A response that is only an error has it in its trailer: if the header of a call is set,
// gRPC sends it before the error, and no client retries a call whose response has begun. A nil *ReplyHeader has no metadata.
type ReplyHeader struct {
	grpc.ServerStream // set by Stream
	md                metadata.MD
	told              atomic.Bool
}

// NewReplyHeader returns a ReplyHeader with md, or nil if that is empty.
func NewReplyHeader(md metadata.MD) *ReplyHeader {
	if len(md) == 0 {
		return nil
	}
	return &ReplyHeader{md: md}
}

// Stream returns the stream s as its handler must see it.
func (h *ReplyHeader) Stream(s grpc.ServerStream) grpc.ServerStream {
	if h == nil {
		return s
	}
	h.ServerStream = s
	return h
}

// End must be called when the handler of the call of ctx has returned err.
func (h *ReplyHeader) End(ctx context.Context, err error) {
	if h == nil || !h.told.CompareAndSwap(false, true) {
		return
	}
	if err != nil || grpc.SetHeader(ctx, h.md) != nil { // a unary handler has sent the header
		_ = grpc.SetTrailer(ctx, h.md) // fails only if there can be no response anymore
	}
}

// SendHeader implements grpc.ServerStream.
func (h *ReplyHeader) SendHeader(md metadata.MD) error {
	h.End(h.Context(), nil)
	return h.ServerStream.SendHeader(md)
}

// SendMsg implements grpc.ServerStream.
func (h *ReplyHeader) SendMsg(m any) error {
	h.End(h.Context(), nil)
	return h.ServerStream.SendMsg(m)
}
