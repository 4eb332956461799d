// Package grpcreplay has what it takes to send the messages of a gRPC call more than once.
//
// A codec may hand over the buffers of a message, and gRPC frees them once they are sent. So such a message is encoded once, and
// each try gets a reference of its own.
package grpcreplay

import (
	"reflect"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// Encoding is how the messages of a call are encoded.
type Encoding struct {
	codec    encoding.CodecV2 // nil if gRPC will find none
	name     string           // the content subtype; "" if the call asks for none
	standard bool             // gRPC's own codec for protocol buffers, whose messages can be encoded as often as one likes
}

// EncodingOf returns the encoding of a call with the options, as gRPC chooses it.
func EncodingOf(opts []grpc.CallOption) Encoding {
	var e Encoding
	forced := false
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.ContentSubtypeCallOption:
			e.name = strings.ToLower(opt.ContentSubtype)
		case grpc.ForceCodecV2CallOption:
			e.codec, forced = opt.CodecV2, true
		case grpc.ForceCodecCallOption:
			e.codec, forced = bridge{opt.Codec, opt.Codec.Name()}, true
		case grpc.CustomCodecCallOption:
			e.codec, forced = bridge{opt.Codec, ""}, true
		}
	}
	if forced {
		if e.name == "" && e.codec != nil {
			e.name = strings.ToLower(e.codec.Name())
		}
		return e
	}
	name := e.name
	if name == "" {
		name = protobuf
	}
	if v1 := encoding.GetCodec(name); v1 != nil {
		e.codec = bridge{v1, v1.Name()}
	} else if e.codec = encoding.GetCodecV2(name); e.codec != nil {
		e.standard = isStandard(e.codec)
	}
	return e
}

const protobuf = "proto"

// isStandard reports whether codec is that of gRPC, and not one that a program has put in its place.
func isStandard(codec encoding.CodecV2) bool {
	t := reflect.TypeOf(codec)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath() == "google.golang.org/grpc/encoding/proto"
}

// Subtype returns the content subtype of the call, "" if it asks for none.
func (e Encoding) Subtype() string { return e.name }

// Codec is the codec of one try at a time. nil is that of a call whose messages need no care.
type Codec struct {
	encoding Encoding
	sending  *Message
}

// Codec returns a codec for one try at a time, and the options with which gRPC uses it.
func (e Encoding) Codec(opts []grpc.CallOption) (*Codec, []grpc.CallOption) {
	if e.standard || e.codec == nil {
		return nil, opts
	}
	c := &Codec{encoding: e}
	return c, append(opts, grpc.ForceCodecV2(c))
}

// Sends says which message is sent next.
func (c *Codec) Sends(m *Message) {
	if c != nil {
		c.sending = m
	}
}

// Marshal implements encoding.CodecV2.
func (c *Codec) Marshal(v any) (mem.BufferSlice, error) {
	if m := c.sending; m != nil && same(v, m.Value) {
		return m.Encode(c.encoding)
	}
	return c.encoding.codec.Marshal(v) // the message of an interceptor
}

// Unmarshal implements encoding.CodecV2.
func (c *Codec) Unmarshal(data mem.BufferSlice, v any) error {
	return c.encoding.codec.Unmarshal(data, v)
}

// Name implements encoding.CodecV2.
func (c *Codec) Name() string { return c.encoding.name }

// same reports whether a and b are the same message.
func same(a, b any) bool {
	x, y := reflect.ValueOf(a), reflect.ValueOf(b)
	if !x.IsValid() || !y.IsValid() || x.Type() != y.Type() {
		return false
	}
	switch x.Kind() {
	case reflect.Slice:
		return x.UnsafePointer() == y.UnsafePointer() && x.Len() == y.Len()
	case reflect.Map, reflect.Func:
		return x.UnsafePointer() == y.UnsafePointer()
	}
	return x.Comparable() && y.Comparable() && a == b
}

// bridge is a codec of the older kinds.
type bridge struct {
	codec interface {
		Marshal(v any) ([]byte, error)
		Unmarshal(data []byte, v any) error
	}
	name string
}

func (b bridge) Marshal(v any) (mem.BufferSlice, error) {
	data, err := b.codec.Marshal(v)
	if err != nil {
		return nil, err
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

func (b bridge) Unmarshal(data mem.BufferSlice, v any) error {
	return b.codec.Unmarshal(data.Materialize(), v)
}

func (b bridge) Name() string { return b.name }
