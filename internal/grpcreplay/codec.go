// Package grpcreplay sends the messages of a gRPC call more than once, for retries.
//
// A codec may hand over the buffers of a message to gRPC, which frees them after they are sent. So such a message is encoded only once, and
// each try gets its own reference to the buffers.
package grpcreplay

import (
	"reflect"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
)

// Encoding is how the messages of a call are encoded.
type Encoding struct {
	codec    encoding.CodecV2 // nil if gRPC will find none
	name     string           // the content subtype; "" if the call asks for none
	standard bool             // gRPC's own codec for protocol buffers, with which a message can be encoded any number of times
}

// EncodingOf returns the encoding of a call with the options, as gRPC chooses it.
func EncodingOf(opts []grpc.CallOption) *Encoding {
	name, forced := "", false
	var codec encoding.CodecV2
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.ContentSubtypeCallOption:
			name = strings.ToLower(opt.ContentSubtype)
		case grpc.ForceCodecV2CallOption:
			codec, forced = opt.CodecV2, true
		case grpc.ForceCodecCallOption:
			codec, forced = bridge{opt.Codec, opt.Codec.Name()}, true
		case grpc.CustomCodecCallOption:
			codec, forced = bridge{opt.Codec, ""}, true
		}
	}
	switch {
	case !forced && name == "":
		return usual()
	case !forced:
		return registered(name, name)
	case name == "" && codec != nil:
		name = strings.ToLower(codec.Name())
	}
	return &Encoding{name: name, codec: codec}
}

// usual returns the encoding of a call that asks for none. Codecs are registered by init functions, so it stays the same.
var usual = sync.OnceValue(func() *Encoding { return registered("proto", "") })

// registered returns the encoding with the codec that is registered under a name.
func registered(codec, subtype string) *Encoding {
	e := &Encoding{name: subtype}
	if v1 := encoding.GetCodec(codec); v1 != nil {
		e.codec = bridge{v1, v1.Name()}
	} else if e.codec = encoding.GetCodecV2(codec); e.codec != nil {
		e.standard = isStandard(e.codec)
	}
	return e
}

// isStandard reports whether codec is gRPC's own, not one that the program has registered in its place.
func isStandard(codec encoding.CodecV2) bool {
	t := reflect.TypeOf(codec)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.PkgPath() == "google.golang.org/grpc/encoding/proto"
}

// Subtype returns the content subtype of the call, or "" if it has none.
func (e *Encoding) Subtype() string { return e.name }

// Codec is a codec that encodes each message of a call only once. It is for one try at a time. A nil *Codec is that of a call whose
// messages may be encoded again.
type Codec struct {
	encoding *Encoding
	sending  *Message
}

// Codec returns a codec for one try at a time, and opts with the option that makes gRPC use it.
func (e *Encoding) Codec(opts []grpc.CallOption) (*Codec, []grpc.CallOption) {
	if e.standard || e.codec == nil {
		return nil, opts
	}
	c := &Codec{encoding: e}
	return c, append(opts, grpc.ForceCodecV2(c))
}

// Sends sets the message that is sent next.
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
	return c.encoding.codec.Marshal(v) // a message from an interceptor
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

// bridge adapts the older kinds of codecs.
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
