package meshgrpc_test

import (
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// A connection may be cut before a stream was sent on it. Such a stream ends with an error, and counts as not processed.
func TestStreamCutBeforeItWasAnsweredDoesNotEndWell(t *testing.T) {
	leak.Check(t)
	address := grpctest.ServeCut(t, &grpctest.Service{Bidi: grpctest.EchoStream})
	var registry discovery.Memory
	registry.Set("echo", meshtest.EndpointOf(t, address))
	const streams = 4000

	bare := grpctest.Streams(t, grpctest.Dial(t, address), streams)
	for _, test := range []struct{ name, documents string }{
		{"without retries", strings.Replace(threeTries, `{attempts: 2, retryOn: "unavailable,connect-failure,refused-stream", backoff: 2ms}`, "{attempts: 0}", 1)},
		{"with retries", strings.Replace(threeTries, "unavailable,connect-failure,refused-stream", "connect-failure,refused-stream", 1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := meshtest.New(t, test.documents, mesh.WithDiscovery(&registry))
			ours := grpctest.Streams(t, connect(t, m, "mesh:///echo"), streams)
			if ours.False > 0 {
				t.Errorf("%d of %d streams ended with io.EOF before the first message", ours.False, streams)
			}
			if ours.Unprocessed > 0 && test.name == "with retries" {
				t.Errorf("%d streams that were not sent were not retried", ours.Unprocessed)
			}
			t.Logf("bare: %v, through the mesh: %v", bare.Codes(), ours.Codes())
			for code, n := range ours.Codes() {
				if code != codes.OK && bare.Codes()[code] == 0 {
					t.Errorf("%d streams ended with %v, which no bare one does", n, code)
				}
			}
		})
	}
}
