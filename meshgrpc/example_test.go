package meshgrpc_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
)

const documents = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-testers, namespace: default}
spec:
  action: DENY
  rules:
  - to: [{operation: {paths: [/grpc.health.v1.Health/Check]}}]
    when: [{key: "request.headers[x-user]", values: [tester]}]
`

func Example() {
	ctx := context.Background()
	listener := bufconn.Listen(1 << 20) // a network in memory, in the place of a real one

	var registry discovery.Memory
	registry.Set("order-service", discovery.Endpoint{Address: "10.0.0.1", Port: 8080})
	m, err := mesh.New(ctx,
		mesh.WithPolicy(policy.Source{Name: "example.yaml", Data: []byte(documents)}),
		mesh.WithDiscovery(&registry),
		mesh.WithTransport(&http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return listener.DialContext(ctx)
		}}),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	server := grpc.NewServer(meshgrpc.ServerOptions(m)...)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(m.Listen(listener)) }()
	defer server.Stop()

	conn, err := grpc.NewClient("mesh:///order-service:8080", meshgrpc.DialOptions(m)...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)

	reply, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	fmt.Println(reply.GetStatus(), status.Code(err))
	_, err = client.Check(metadata.AppendToOutgoingContext(ctx, "x-user", "tester"), &grpc_health_v1.HealthCheckRequest{})
	fmt.Println(status.Convert(err).Message(), status.Code(err))
	// Output:
	// SERVING OK
	// RBAC: access denied PermissionDenied
}
