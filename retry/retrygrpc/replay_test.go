package retrygrpc_test

import (
	"testing"

	"google.golang.org/grpc"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

// framed returns a connection to s whose calls are tried three times, and whose messages are frames.
func framed(t *testing.T, s *grpctest.Service) *grpc.ClientConn {
	t.Helper()
	retries := &retrygrpc.Client{
		Config: retry.Config{Retries: 2, Backoff: -1, On: retry.On{Conditions: retry.Unavailable}},
		Budget: retry.BudgetConfig{Off: true},
	}
	frames := grpc.WithDefaultCallOptions(grpc.ForceCodecV2(grpctest.FrameCodec{}))
	return grpctest.Dial(t, grpctest.Serve(t, s), append(retries.DialOptions(), frames)...)
}

func TestUnaryRetryOfMessageWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	grpctest.RetriedFrames(t, framed, nil)
}

func TestStreamRetryOfMessagesWhoseBuffersAreHandedOver(t *testing.T) {
	leak.Check(t)
	grpctest.RetriedFramesOfStreams(t, framed)
}
