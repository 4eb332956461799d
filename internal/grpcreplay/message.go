package grpcreplay

import (
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"

	"github.com/nosidecar/mesh/internal/grpcwire"
)

// Message is a message that may be sent more than once. It is not safe for concurrent use. Its creator calls Free.
type Message struct {
	Value   any
	data    mem.BufferSlice
	encoded bool
}

var errNoCodec = errors.New("no codec is registered for the content subtype")

// Encode returns the encoded message, which the caller frees.
func (m *Message) Encode(e *Encoding) (mem.BufferSlice, error) {
	if !m.encoded {
		if e.codec == nil {
			return nil, errNoCodec
		}
		data, err := e.codec.Marshal(m.Value)
		if err != nil {
			return nil, err
		}
		if e.standard {
			return data, nil
		}
		m.data, m.encoded = data, true
	}
	m.data.Ref()
	return m.data, nil
}

// Free frees the encoded message. Callers of Encode have their own references.
func (m *Message) Free() {
	if m.encoded {
		m.data.Free()
	}
	*m = Message{}
}

// size returns the size of the message on the wire, if it is known.
func (m *Message) size() (size int, known bool) {
	if m.encoded {
		return grpcwire.MessageSize(m.data)
	}
	if _, raw := m.Value.(mem.BufferSlice); raw {
		return 0, false // gRPC may have freed the buffers
	}
	return grpcwire.MessageSize(m.Value)
}

// Send sends the message on a stream that uses c.
func (m *Message) Send(stream grpc.ClientStream, c *Codec) error {
	c.Sends(m)
	err := stream.SendMsg(m.Value)
	c.Sends(nil)
	return err
}

// Sent has the messages of a stream that must be sent again on the next try. It is not safe for concurrent use.
type Sent struct {
	Room     int // the room for further messages, in bytes
	messages []Message
	first    [1]Message // room for the message of most streams
}

// Keep takes ownership of a message that was sent. It reports false, and does not take the message, if there is not enough room or the size
// of the message is unknown.
func (s *Sent) Keep(m *Message) bool {
	size, known := m.size()
	if !known || size > s.Room {
		return false
	}
	s.Room -= size
	if s.messages == nil {
		s.messages = s.first[:0]
	}
	s.messages = append(s.messages, *m)
	return true
}

// Replay sends the messages on another try. It stops at the first error.
func (s *Sent) Replay(stream grpc.ClientStream, c *Codec) error {
	for i := range s.messages {
		if err := s.messages[i].Send(stream, c); err != nil {
			return err
		}
	}
	return nil
}

// Drop frees the messages.
func (s *Sent) Drop() {
	for i := range s.messages {
		s.messages[i].Free()
	}
	s.messages, s.first = nil, [1]Message{}
}
