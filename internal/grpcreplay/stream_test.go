package grpcreplay_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/leak"
)

// answered is a stream that was answered and stays silent.
type answered struct {
	grpc.ClientStream
	ctx context.Context
}

func (s answered) Header() (metadata.MD, error) { return metadata.MD{}, nil }
func (s answered) Context() context.Context     { return s.ctx }
func (s answered) SendMsg(any) error            { return nil }

// twice would make another try after one that was answered.
type twice struct {
	stream   grpcreplay.Stream
	ctx      context.Context
	answered chan struct{}
	decide   chan struct{}
	dropped  bool
}

func (d *twice) Make() grpcreplay.Answer {
	d.stream.Try(d.ctx, nil, "/a/b", nil)
	close(d.answered)
	<-d.decide
	d.dropped = d.stream.Drop()
	return grpcreplay.Answer{}
}

func (d *twice) Tell(grpcreplay.Answer) {}
func (d *twice) End(error) error        { return nil }

// A caller may ask for the Context of a try while it is decided whether another follows. What it was given is that of its stream.
func TestNoTryFollowsWhoseContextTheCallerHas(t *testing.T) {
	for _, asks := range []bool{true, false} {
		leak.Check(t)
		d := &twice{ctx: t.Context(), answered: make(chan struct{}), decide: make(chan struct{})}
		stream, err := d.stream.Begin(grpcreplay.Config{
			Context: d.ctx, Desc: &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, Room: 1 << 10,
			Streamer: func(ctx context.Context, _ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ ...grpc.CallOption) (
				grpc.ClientStream, error) {
				return answered{ctx: ctx}, nil
			},
		}, d)
		if err != nil {
			t.Fatal(err)
		}
		<-d.answered
		if asks {
			stream.Context()
		}
		close(d.decide)
		if _, err := stream.Header(); err != nil { // waits for the decision
			t.Fatal(err)
		}
		if d.dropped == asks {
			t.Errorf("the caller asked: %v; the try was given up: %v", asks, d.dropped)
		}
	}
}
