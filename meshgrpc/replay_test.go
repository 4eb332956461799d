package meshgrpc_test

import (
	"context"
	"testing"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// framed returns a function that connects to a service with frames as messages. shadow is called for mirrored messages.
func framed(documents string, shadow func(*grpctest.Request)) func(*testing.T, *grpctest.Service) *grpc.ClientConn {
	return func(t *testing.T, s *grpctest.Service) *grpc.ClientConn {
		t.Helper()
		var registry discovery.Memory
		registry.Set("echo", serve(t, s))
		registry.Set("shadow", serve(t, &grpctest.Service{
			Unary: func(_ context.Context, in *grpctest.Request) (*grpctest.Response, error) {
				shadow(in)
				return &grpctest.Response{}, nil
			},
		}))
		m := meshtest.New(t, documents, mesh.WithDiscovery(&registry))
		return connect(t, m, "mesh:///echo", grpc.WithDefaultCallOptions(grpc.ForceCodecV2(grpctest.FrameCodec{})))
	}
}

func TestUnaryRetryOfMessageWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	grpctest.RetriedFrames(t, framed(threeTries, nil), nil)
}

func TestMirrorOfMessageWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	copies := make(chan byte, 20)
	dial := framed(threeTries+"    mirror: {host: shadow}\n", func(in *grpctest.Request) { copies <- in.Payload.Body[0] })
	grpctest.RetriedFrames(t, dial, func(t *testing.T, first byte) {
		if got := await.Receive(t, "a copy", copies); got != first {
			t.Errorf("the mirror got the message of call %d, want %d", got, first)
		}
	})
}

func TestStreamRetryOfMessagesWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	grpctest.RetriedFramesOfStreams(t, framed(threeTries, nil))
}
