package grpctest

import (
	"bytes"
	"testing"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// Frame is an encoded message in reference-counted buffers, as proxies handle it.
type Frame struct{ Data mem.BufferSlice }

// NewFrame returns m as a frame whose buffers are large enough to be pooled, so that using them after they are freed panics.
func NewFrame(t testing.TB, m proto.Message) *Frame {
	t.Helper()
	data, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if mem.IsBelowBufferPoolingThreshold(len(data)) {
		t.Fatalf("a frame of %d bytes is not pooled", len(data))
	}
	return &Frame{mem.BufferSlice{mem.Copy(data, mem.DefaultBufferPool())}}
}

// FrameCodec is the codec of frames. It hands over the buffers of a frame to gRPC, which frees them.
type FrameCodec struct{}

// Marshal implements encoding.CodecV2.
func (FrameCodec) Marshal(v any) (mem.BufferSlice, error) { return v.(*Frame).Data, nil }

// Unmarshal implements encoding.CodecV2.
func (FrameCodec) Unmarshal(data mem.BufferSlice, v any) error {
	v.(*Frame).Data = mem.BufferSlice{mem.SliceBuffer(bytes.Clone(data.Materialize()))}
	return nil
}

// Name implements encoding.CodecV2.
func (FrameCodec) Name() string { return "proto" }
