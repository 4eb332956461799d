package timeoutgrpc_test

import (
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/timeout"
	"github.com/nosidecar/mesh/timeout/timeoutgrpc"
)

// A limit on silence does not keep gRPC from sending a stream again whose connection was lost before the stream was sent.
func TestOrphanedStreamIsSentAgain(t *testing.T) {
	leak.Check(t)
	grpctest.OrphanedStream(t, (&timeoutgrpc.Client{Config: timeout.Config{BodyIdle: time.Hour}}).DialOptions()...)
}
