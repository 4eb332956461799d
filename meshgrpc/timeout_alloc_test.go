//go:build !race

package meshgrpc_test

import (
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
)

// Most of these allocations are those of contexts that wait for the limits: ours, and gRPC's own.
func TestAllocationsOfTimeouts(t *testing.T) {
	endpoints := []discovery.Endpoint{serve(t, &grpctest.Service{Unary: grpctest.Echo})}
	measure := func(documents string) float64 {
		_, conn := one(t, documents, endpoints)
		return testing.AllocsPerRun(300, func() { callUnary(t, conn) })
	}
	const most = 16
	var more float64
	for range 10 { // the figures include all that the process does
		if more = measure(route("    timeout: 10s\n    retries: {attempts: 1, perTryTimeout: 5s}\n")) - measure(route("    retries: {attempts: 1}\n")); more <= most {
			return
		}
	}
	t.Errorf("%v allocations more with timeouts, want at most %v", more, most)
}
