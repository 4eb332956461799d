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
	"google.golang.org/grpc/health"
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
	s := &story{asked: true}
	s.traffic(ctx)
	s.security(ctx)
	if !s.asked {
		fmt.Println("Something DID NOT MATCH the documents.")
		os.Exit(1)
	}
	fmt.Println("Everything matched the documents.")
}

// traffic shows routes, retries, ejection and faults.
func (s *story) traffic(ctx context.Context) {
	var registry discovery.Memory
	bad := new(server)
	bad.failing.Store(true)
	endpoints := []discovery.Endpoint{
		labelled("v1", new(server).start(nil, "v1")),
		labelled("v1", new(server).start(nil, "v1")),
		labelled("v1", bad.start(nil, "v1")),
		labelled("v2", new(server).start(nil, "v2")),
	}
	registry.Set("catalog", endpoints...)
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
	s.tell("500 calls: 80% to v1, 20% to v2", answers["v1"] > 350 && answers["v2"] > 50 && answers["v1"]+answers["v2"] == calls,
		fmt.Sprintf("v1 %d, v2 %d, failed %d", answers["v1"], answers["v2"], calls-answers["v1"]-answers["v2"]))
	s.tell("one endpoint of v1 fails: ejected after 5", bad.calls.Load() == 5, fmt.Sprintf("it got %d calls", bad.calls.Load()))

	testers := 0
	for range 50 {
		if check(metadata.AppendToOutgoingContext(ctx, "x-user", "tester"), client) == "v2" {
			testers++
		}
	}
	s.tell("50 calls of testers: all to v2", testers == 50, fmt.Sprintf("%d to v2", testers))

	_, err = client.Check(metadata.AppendToOutgoingContext(ctx, "x-purpose", "search"), &grpc_health_v1.HealthCheckRequest{})
	s.tell("a search: aborted", status.Code(err) == codes.ResourceExhausted, status.Code(err).String())

	watch, err := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		log.Fatal(err)
	}
	update, err := watch.Recv()
	s.tell("a stream: to an endpoint that answers", err == nil && update.Status == grpc_health_v1.HealthCheckResponse_SERVING,
		fmt.Sprint(update.GetStatus()))
}

// security shows who may call what.
func (s *story) security(ctx context.Context) {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		log.Fatal(err)
	}
	var registry discovery.Memory
	member := func(account string) *mesh.Mesh {
		return newMesh(ctx, "security.yaml", mesh.WithDiscovery(&registry), mesh.WithIdentity(ca.Source("default", account)),
			mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": account}}))
	}
	catalog := member("catalog")
	defer catalog.Close()
	at := new(server).start(catalog, "v1")
	at.ServiceAccount = "catalog"
	registry.Set("catalog", at)

	for _, test := range []struct {
		account     string
		check, live codes.Code
	}{
		{"shop", codes.OK, codes.PermissionDenied},
		{"admin", codes.OK, codes.OK},
		{"visitor", codes.PermissionDenied, codes.PermissionDenied},
	} {
		m := member(test.account)
		conn, err := grpc.NewClient("mesh:///catalog", meshgrpc.DialOptions(m)...)
		if err != nil {
			log.Fatal(err)
		}
		client := grpc_health_v1.NewHealthClient(conn)
		_, checked := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		watch, watched := client.Watch(ctx, &grpc_health_v1.HealthCheckRequest{})
		if watched == nil {
			_, watched = watch.Recv()
		}
		s.tell(fmt.Sprintf("%s: Check %v, Watch %v", test.account, test.check, test.live),
			status.Code(checked) == test.check && status.Code(watched) == test.live,
			fmt.Sprintf("%v, %v", status.Code(checked), status.Code(watched)))
		conn.Close()
		m.Close()
	}

	// A client without the mesh has no certificate.
	stranger, err := grpc.NewClient(fmt.Sprintf("%s:%d", at.Address, at.Port), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer stranger.Close()
	_, err = grpc_health_v1.NewHealthClient(stranger).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	s.tell("a stranger, in plaintext: cut off", status.Code(err) == codes.Unavailable, status.Code(err).String())
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

// server is a server of the health service. It runs as long as the program.
type server struct {
	*health.Server
	version string
	failing atomic.Bool
	calls   atomic.Int64
}

// start starts the server, behind the inbound side of m if that is not nil.
func (s *server) start(m *mesh.Mesh, version string) discovery.Endpoint {
	s.Server, s.version = health.NewServer(), version
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
	grpc_health_v1.RegisterHealthServer(srv, s)
	go func() { log.Fatal(srv.Serve(listener)) }()
	return discovery.Endpoint{Address: "127.0.0.1", Port: port}
}

func labelled(version string, e discovery.Endpoint) discovery.Endpoint {
	e.Labels = map[string]string{"version": version}
	return e
}

// Check implements the service.
func (s *server) Check(ctx context.Context, in *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	s.calls.Add(1)
	if s.failing.Load() {
		return nil, status.Error(codes.Unavailable, "this server always fails")
	}
	if err := grpc.SetHeader(ctx, metadata.Pairs("x-version", s.version)); err != nil {
		return nil, err
	}
	return s.Server.Check(ctx, in)
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

// story prints the results.
type story struct {
	told  bool // there was a row
	asked bool // everything was as the documents specify, so far
}

// tell prints what the documents specify and what was measured.
func (s *story) tell(what string, asked bool, measured string) {
	if !s.told {
		fmt.Printf("   %-56s %s\n", "specified", "measured")
		s.told = true
	}
	mark := "  "
	if !asked {
		mark, s.asked = "! ", false
	}
	fmt.Printf(" %s%-56s %s\n", mark, what, measured)
}
