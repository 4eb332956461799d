package meshgrpc_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"

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

// A server drains its connections again and again, as GracefulStop does. No stream fails, as with a bare ClientConn.
func TestConnectionsThatAreDrainedFailNoStream(t *testing.T) {
	leak.Check(t)
	address := grpctest.Serve(t, &grpctest.Service{Bidi: grpctest.EchoStream},
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 5 * time.Millisecond}))
	var registry discovery.Memory
	registry.Set("echo", meshtest.EndpointOf(t, address))
	m := meshtest.New(t, route("    retries: {attempts: 0}\n")+"---"+connectsIn("1m"), mesh.WithDiscovery(&registry))
	const streams = 1600
	want := map[codes.Code]int{codes.OK: streams}
	for name, conn := range map[string]*grpc.ClientConn{"bare": grpctest.Dial(t, address), "through the mesh": connect(t, m, "mesh:///echo")} {
		if ends := grpctest.Streams(t, conn, streams); !maps.Equal(ends.Codes(), want) || ends.False > 0 {
			t.Errorf("%s: streams ended with %v, and %d of them with io.EOF before the first message", name, ends.Codes(), ends.False)
		}
	}
}
