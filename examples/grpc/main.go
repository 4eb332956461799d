// Command grpc is the quickstart's idea over gRPC: real grpc-go servers on 127.0.0.1, called by name through a mesh, with
// real documents and no sidecar.
//
// The service is gRPC's own health service, so that there is no generated code to read. Its servers send their version in
// a header. The program prints what was measured next to what the documents in the folder mesh.d specify. If the two
// differ, it says so and exits with status 1.
//
//	go run ./examples/grpc
package main

import (
	"context"
	"embed"
	"fmt"
	"log"
	"net"
	"os"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

func main() {
	log.SetFlags(0)
	// A limit for the case that something hangs. Nothing here takes nearly as long.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	r := &report{matched: true}
	traffic(ctx, r)
	security(ctx, r)
	if !r.matched {
		fmt.Println("Something DID NOT MATCH the documents.")
		os.Exit(1)
	}
	fmt.Println("Everything matched the documents.")
}

// traffic shows routes, retries, ejection and faults.
func traffic(ctx context.Context, r *report) {
	var running servers
	defer running.stop()
	bad := &catalog{version: "v1", fails: true}
	var registry discovery.Memory
	registry.Set("catalog",
		labelled("v1", running.start(nil, &catalog{version: "v1"})),
		labelled("v1", running.start(nil, &catalog{version: "v1"})),
		labelled("v1", running.start(nil, bad)),
		labelled("v2", running.start(nil, &catalog{version: "v2"})),
	)
	m := newMesh(ctx, "catalog.yaml", mesh.WithDiscovery(&registry))
	defer m.Close()

	// This is all that is needed: one connection for the service, which goes through the mesh.
	conn, err := grpc.NewClient("mesh:///catalog", meshgrpc.DialOptions(m)...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)

	const calls = 500
	answers := map[string]int{}
	for range calls {
		answers[check(ctx, client)]++
	}
	r.row("500 calls: 80% to v1, 20% to v2", answers["v1"] > 350 && answers["v2"] > 50 && answers["v1"]+answers["v2"] == calls,
		fmt.Sprintf("v1 %d, v2 %d, failed %d", answers["v1"], answers["v2"], calls-answers["v1"]-answers["v2"]))
	r.row("one endpoint of v1 fails: ejected after 5", bad.calls.Load() == 5, fmt.Sprintf("it got %d calls", bad.calls.Load()))

	testers := 0
	for range 50 {
		if check(metadata.AppendToOutgoingContext(ctx, "x-user", "tester"), client) == "v2" {
			testers++
		}
	}
	r.row("50 calls of testers: all to v2", testers == 50, fmt.Sprintf("%d to v2", testers))

	_, err = client.Check(metadata.AppendToOutgoingContext(ctx, "x-purpose", "search"), &grpc_health_v1.HealthCheckRequest{})
	r.row("a search: aborted", status.Code(err) == codes.ResourceExhausted, status.Code(err).String())

	watch, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		log.Fatal(err)
	}
	update, err := watch.Recv()
	r.row("a stream: to an endpoint that answers", err == nil && update.Status == grpc_health_v1.HealthCheckResponse_SERVING,
		fmt.Sprint(update.GetStatus()))
}

// security shows who may call what.
func security(ctx context.Context, r *report) {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		log.Fatal(err)
	}
	var registry discovery.Memory
	member := func(account string) *mesh.Mesh {
		return newMesh(ctx, "security.yaml", mesh.WithDiscovery(&registry), mesh.WithIdentity(ca.Source("default", account)),
			mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": account}}))
	}
	own := member("catalog")
	defer own.Close()
	var running servers
	defer running.stop() // before the mesh is closed
	at := running.start(own, &catalog{version: "v1"})
	at.ServiceAccount = "catalog"
	registry.Set("catalog", at)

	for _, test := range []struct {
		account      string
		check, watch codes.Code
	}{
		{"shop", codes.OK, codes.PermissionDenied},
		{"admin", codes.OK, codes.OK},
		{"visitor", codes.PermissionDenied, codes.PermissionDenied},
	} {
		m := member(test.account)
		checked, watched := checkAndWatch(ctx, m)
		m.Close()
		r.row(fmt.Sprintf("%s: Check %v, Watch %v", test.account, test.check, test.watch), checked == test.check && watched == test.watch,
			fmt.Sprintf("%v, %v", checked, watched))
	}

	// A client without the mesh has no certificate.
	stranger, err := grpc.NewClient(fmt.Sprintf("%s:%d", at.Address, at.Port), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer stranger.Close()
	_, err = grpc_health_v1.NewHealthClient(stranger).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	r.row("a stranger, in plaintext: cut off", status.Code(err) == codes.Unavailable, status.Code(err).String())
}

// checkAndWatch makes a call and a stream as a member of the mesh, and returns how they ended.
func checkAndWatch(ctx context.Context, m *mesh.Mesh) (check, watch codes.Code) {
	conn, err := grpc.NewClient("mesh:///catalog", meshgrpc.DialOptions(m)...)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	_, checked := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	stream, watched := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if watched == nil {
		_, watched = stream.Recv()
	}
	return status.Code(checked), status.Code(watched)
}

// check makes a call and returns the version that answered, or the status.
func check(ctx context.Context, client grpc_health_v1.HealthClient) string {
	var header metadata.MD
	_, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.Header(&header))
	if err != nil {
		return status.Code(err).String()
	}
	return header["x-version"][0]
}

// catalog is the service.
type catalog struct {
	grpc_health_v1.UnimplementedHealthServer
	version string
	fails   bool
	calls   atomic.Int64
}

// Check implements the service.
func (c *catalog) Check(ctx context.Context, _ *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	c.calls.Add(1)
	if c.fails {
		return nil, status.Error(codes.Unavailable, "this server always fails")
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-version", c.version)); err != nil {
		return nil, err
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

// Watch implements the service.
func (c *catalog) Watch(_ *grpc_health_v1.HealthCheckRequest, stream grpc_health_v1.Health_WatchServer) error {
	if err := stream.Send(&grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}); err != nil {
		return err
	}
	<-stream.Context().Done() // nothing changes
	return stream.Context().Err()
}

// servers are the gRPC servers that run.
type servers []*grpc.Server

// start serves c on 127.0.0.1, behind the inbound side of m if that is not nil.
func (s *servers) start(m *mesh.Mesh, c *catalog) discovery.Endpoint {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	port := listener.Addr().(*net.TCPAddr).Port
	var options []grpc.ServerOption
	if m != nil {
		listener, options = m.Listen(listener), meshgrpc.ServerOptions(m)
	}
	srv := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(srv, c)
	go func() {
		if err := srv.Serve(listener); err != nil {
			log.Fatal(err)
		}
	}()
	*s = append(*s, srv)
	return discovery.Endpoint{Address: "127.0.0.1", Port: port}
}

// stop waits for the calls that are in flight, and stops the servers.
func (s *servers) stop() {
	for _, srv := range *s {
		srv.GracefulStop()
	}
}

func labelled(version string, e discovery.Endpoint) discovery.Endpoint {
	e.Labels = map[string]string{"version": version}
	return e
}

//go:embed mesh.d
var documents embed.FS

func newMesh(ctx context.Context, file string, options ...mesh.Option) *mesh.Mesh {
	data, err := documents.ReadFile("mesh.d/" + file)
	if err != nil {
		log.Fatal(err)
	}
	m, err := mesh.New(ctx, append(options, mesh.WithPolicy(policy.Source{Name: "mesh.d/" + file, Data: data}))...)
	if err != nil {
		log.Fatal(err)
	}
	return m
}

// report prints a table.
type report struct {
	begun   bool // it has a heading
	matched bool // everything that was measured is as the documents specify
}

// row prints what the documents specify and what was measured.
func (r *report) row(specified string, matched bool, measured string) {
	if !r.begun {
		fmt.Printf("   %-56s %s\n", "specified", "measured")
		r.begun = true
	}
	mark := "  "
	if !matched {
		mark, r.matched = "! ", false
	}
	fmt.Printf(" %s%-56s %s\n", mark, specified, measured)
}
