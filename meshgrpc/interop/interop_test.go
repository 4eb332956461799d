// Package interop runs grpc-go's interoperability tests through a mesh.
package interop

import (
	"context"
	"net"
	"strconv"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// Each case ends the process with a message if it fails: that is how they are made.
var cases = []struct {
	name string
	run  func(ctx context.Context, c grpc_testing.TestServiceClient, conn *grpc.ClientConn)
}{
	{"empty_unary", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoEmptyUnaryCall(ctx, c)
	}},
	{"large_unary", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoLargeUnaryCall(ctx, c)
	}},
	{"client_streaming", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoClientStreaming(ctx, c)
	}},
	{"server_streaming", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoServerStreaming(ctx, c)
	}},
	{"ping_pong", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoPingPong(ctx, c)
	}},
	{"empty_stream", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoEmptyStream(ctx, c)
	}},
	{"timeout_on_sleeping_server", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoTimeoutOnSleepingServer(ctx, c)
	}},
	{"cancel_after_begin", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoCancelAfterBegin(ctx, c)
	}},
	{"cancel_after_first_response", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoCancelAfterFirstResponse(ctx, c)
	}},
	{"custom_metadata", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoCustomMetadata(ctx, c)
	}},
	{"status_code_and_message", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoStatusCodeAndMessage(ctx, c)
	}},
	{"special_status_message", func(ctx context.Context, c grpc_testing.TestServiceClient, _ *grpc.ClientConn) {
		interop.DoSpecialStatusMessage(ctx, c)
	}},
	{"unimplemented_method", func(ctx context.Context, _ grpc_testing.TestServiceClient, conn *grpc.ClientConn) {
		interop.DoUnimplementedMethod(ctx, conn)
	}},
	{"unimplemented_service", func(ctx context.Context, _ grpc_testing.TestServiceClient, conn *grpc.ClientConn) {
		interop.DoUnimplementedService(ctx, grpc_testing.NewUnimplementedServiceClient(conn))
	}},
}

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
`

func TestInterop(t *testing.T) {
	for _, test := range []struct {
		name           string
		client, server bool // through the mesh
		documents      string
	}{
		{"plain client, plain server", false, false, ""},
		{"client of the mesh", true, false, ""},
		{"server of the mesh", false, true, ""},
		{"both", true, true, ""},
		{"both, over mTLS", true, true, strict},
	} {
		t.Run(test.name, func(t *testing.T) {
			ca, err := tlsid.NewDevCA("cluster.local")
			if err != nil {
				t.Fatal(err)
			}
			var registry discovery.Memory
			member := func(account string) *mesh.Mesh {
				m, err := mesh.New(t.Context(), mesh.WithDiscovery(&registry), mesh.WithIdentity(ca.Source("default", account)),
					mesh.WithEmptyPolicy(), mesh.WithPolicy(policy.Source{Name: "test.yaml", Data: []byte(test.documents)}))
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { m.Close() })
				return m
			}
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			address := listener.Addr().String()
			var opts []grpc.ServerOption
			if test.server {
				m := member("server")
				listener, opts = m.Listen(listener), meshgrpc.ServerOptions(m)
			}
			server := grpc.NewServer(opts...)
			grpc_testing.RegisterTestServiceServer(server, interop.NewTestServer())
			var serving sync.WaitGroup
			serving.Go(func() { _ = server.Serve(listener) })
			t.Cleanup(func() {
				server.Stop()
				serving.Wait()
			})
			target, dial := address, []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
			if test.client {
				host, port, _ := net.SplitHostPort(address)
				n, _ := strconv.Atoi(port)
				registry.Set("interop", discovery.Endpoint{Address: host, Port: n, ServiceAccount: "server"})
				target, dial = "mesh:///interop", meshgrpc.DialOptions(member("client"))
			}
			conn, err := grpc.NewClient(target, dial...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) { c.run(t.Context(), grpc_testing.NewTestServiceClient(conn), conn) })
			}
		})
	}
}
