package grpcreplay

import (
	"context"
	"io"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/deadline"
)

// pipe is a stream that was answered, and takes any message. It ends after some.
type pipe struct {
	grpc.ClientStream
	ctx            context.Context
	sent, received int
	last           int // the number of messages to receive
}

func (p *pipe) Header() (metadata.MD, error) { return metadata.MD{}, nil }
func (p *pipe) Context() context.Context     { return p.ctx }

func (p *pipe) SendMsg(any) error {
	p.sent++
	return nil
}

func (p *pipe) RecvMsg(any) error {
	if p.received == p.last {
		return io.EOF
	}
	p.received++
	return nil
}

// one is a driver that makes one try. It decides when it is told to.
type one struct {
	stream Stream
	ctx    context.Context
	decide chan struct{}
	limits *deadline.Call
	ended  int
}

func (d *one) Make() Answer {
	d.stream.Open(d.ctx, "/a/b", nil)
	return Answer{Err: ErrPrompt}
}

func (d *one) Resume() Answer {
	d.stream.Reply(true)
	<-d.decide
	return Answer{Limits: d.limits}
}

func (d *one) Tell(Answer) {}

func (d *one) End(error) error {
	d.ended++
	return nil
}

// Once no try can follow, messages do not pass the lock of the stream. Those that were received before it was answered, and its end, do.
func TestMessagesTakeTheShortWay(t *testing.T) {
	for _, test := range []struct {
		name            string
		desc            grpc.StreamDesc
		limits          *deadline.Call
		sends, receives bool
	}{
		{"in both directions", grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, nil, true, true},
		{"only requests", grpc.StreamDesc{ClientStreams: true}, nil, true, false},
		{"only responses", grpc.StreamDesc{ServerStreams: true}, nil, false, true},
		{"with limits", grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, new(deadline.Call), true, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &pipe{ctx: t.Context(), last: 2}
			d := &one{ctx: t.Context(), decide: make(chan struct{}), limits: test.limits}
			s := &d.stream
			short := func() (sends, receives bool) { return s.sends.Load() != nil, s.receives.Load() != nil }
			_, err := s.Begin(Config{
				Context: d.ctx, Desc: &test.desc, Room: 1 << 10, Encoding: EncodingOf(nil),
				Streamer: func(context.Context, *grpc.StreamDesc, *grpc.ClientConn, string, ...grpc.CallOption) (grpc.ClientStream, error) {
					return p, nil
				},
			}, d)
			if err != nil {
				t.Fatal(err)
			}
			if sends, receives := short(); sends || receives {
				t.Errorf("before the decision: sends %v, receives %v, want neither", sends, receives)
			}
			s.Context() // no other try can follow
			if sends, receives := short(); sends != test.desc.ClientStreams || receives {
				t.Errorf("committed: sends %v, receives %v, want only requests", sends, receives)
			}
			close(d.decide)
			if _, err := s.Header(); err != nil {
				t.Fatal(err)
			}
			if sends, receives := short(); sends != test.sends || receives != test.receives {
				t.Errorf("answered: sends %v, receives %v, want %v, %v", sends, receives, test.sends, test.receives)
			}
			for range p.last {
				if err := s.SendMsg("out"); err != nil {
					t.Fatal(err)
				}
				if err := s.RecvMsg("in"); err != nil && test.desc.ServerStreams {
					t.Fatal(err)
				}
			}
			if err := s.RecvMsg("in"); err != io.EOF {
				t.Errorf("RecvMsg after the last message: %v, want EOF", err)
			}
			if _, receives := short(); receives || d.ended != 1 || p.sent != p.last {
				t.Errorf("at the end: receives %v, %d ends, %d messages sent; want false, 1, %d", receives, d.ended, p.sent, p.last)
			}
		})
	}
}
