package meshgrpc_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
)

// town is a set of services that have identities of one development CA, over the loopback.
type town struct {
	*tlsid.DevCA
	registry discovery.Memory
}

func newTown(t testing.TB) *town {
	t.Helper()
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ca.RotateEvery = -1
	return &town{DevCA: ca}
}

// member makes the mesh of a process that runs as a service account of the namespace default, with labels app=account.
func (w *town) member(t testing.TB, account, documents string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	return meshtest.New(t, documents, append([]mesh.Option{
		mesh.WithDiscovery(&w.registry),
		mesh.WithIdentity(w.Source("default", account)),
		mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": account}}),
	}, opts...)...)
}

// serve starts a service of m, with health checks, and registers it under its account.
func (w *town) serve(t testing.TB, m *mesh.Mesh, account string, s *grpctest.Service, opts ...grpc.ServerOption) (
	*grpc.Server, discovery.Endpoint) {
	t.Helper()
	ln := rawtest.Listen(t)
	srv := grpc.NewServer(append(meshgrpc.ServerOptions(m), opts...)...)
	grpc_testing.RegisterTestServiceServer(srv, s)
	healthpb.RegisterHealthServer(srv, health.NewServer())
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(m.Listen(ln)) })
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	e := meshtest.EndpointOf(t, ln.Addr().String())
	e.ServiceAccount = account
	w.registry.Set(account, e)
	return srv, e
}

const strict = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
`

// whoCalls answers with who the peer is.
var whoCalls = &grpctest.Service{
	Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
		p, _ := peer.FromContext(ctx)
		name := mesh.PeerID(ctx) + " over " + p.AuthInfo.AuthType()
		md, _ := metadata.FromIncomingContext(ctx)
		for _, key := range []string{"x-forwarded-client-cert", "x-envoy-internal", "x-mine", "authority", "l5d-client-id", "x_forwarded_client_cert"} {
			if v := md[key]; len(v) > 0 {
				name += " " + key + "=" + v[0]
			}
		}
		return &grpctest.Response{Username: name}, nil
	},
	Bidi: echoStreams.Bidi,
}

// If an endpoint cuts off a plaintext call, the error says that the call was in plaintext, and why.
func TestPlaintextToAnEndpointOfTLS(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	_, payment := w.serve(t, w.member(t, "payment", strict), "payment", whoCalls)
	documents := fmt.Sprintf("%s---\napiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: payment}\nspec:\n"+
		"  hosts: [payment.default.svc.cluster.local]\n  resolution: STATIC\n  ports: [{number: 80, name: grpc, protocol: GRPC, targetPort: %d}]\n"+
		"  endpoints: [{address: %s, serviceAccount: payment}]\n", strict, payment.Port, payment.Address)
	client := grpctest.NewClient(connect(t, w.member(t, "order", documents), "mesh:///payment:80"))
	_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
	const want = "it was sent plaintext, as ServiceEntry default/payment has no location"
	if status.Code(err) != codes.Unavailable || strings.Count(err.Error(), want) != 1 {
		t.Errorf("the error is %v, want %q in it", err, want)
	}
}

func TestServer_MutualTLS(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment", strict), "payment", whoCalls)
	m := w.member(t, "order", strict)
	conn := connect(t, m, "mesh:///payment")
	client := grpctest.NewClient(conn)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-mine", "kept", "x-envoy-internal", "true", "l5d-client-id", "admin", "x_forwarded_client_cert", "URI=admin")
	for range 2 {
		var p peer.Peer
		reply, err := client.UnaryCall(ctx, &grpctest.Request{}, grpc.Peer(&p))
		if err != nil {
			t.Fatal(err)
		}
		if want := "spiffe://cluster.local/ns/default/sa/order over tls x-forwarded-client-cert=By=spiffe://"; !strings.HasPrefix(reply.Username, want) {
			t.Errorf("the service saw %q, want %q...", reply.Username, want)
		}
		if !strings.HasSuffix(reply.Username, " x-envoy-internal=true x-mine=kept") {
			t.Errorf("metadata of a peer with an identity was changed: %q", reply.Username)
		}
		if info, ok := p.AuthInfo.(credentials.TLSInfo); !ok || info.SPIFFEID.String() != "spiffe://cluster.local/ns/default/sa/payment" {
			t.Errorf("peer of the client: %T %v", p.AuthInfo, p)
		}
	}
	answer, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil || answer.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health: %v, %v", answer, err)
	}
}

// The inbound side also applies to streams, and to methods that do not exist.
func TestServer_Streams(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	var seen metadata.MD
	w.serve(t, w.member(t, "payment", strict), "payment", &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		seen, _ = metadata.FromIncomingContext(stream.Context())
		return stream.SendHeader(metadata.Pairs("x-peer", mesh.PeerID(stream.Context())))
	}})
	conn := connect(t, w.member(t, "order", strict), "mesh:///payment")
	stream, err := grpctest.NewClient(conn).FullDuplexCall(metadata.AppendToOutgoingContext(t.Context(), "x-data-bin", "\x00\xff"))
	if err != nil {
		t.Fatal(err)
	}
	header, err := stream.Header()
	if want := "spiffe://cluster.local/ns/default/sa/order"; err != nil || !slices.Equal(header["x-peer"], []string{want}) {
		t.Errorf("header %v, %v; want x-peer %s", header, err, want)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("end %v, want EOF", err)
	}
	if !slices.Equal(seen["x-data-bin"], []string{"\x00\xff"}) || len(seen["x-forwarded-client-cert"]) != 1 {
		t.Errorf("the handler saw %v, want x-data-bin as it was sent, and x-forwarded-client-cert", seen)
	}
	for _, method := range []string{"/no.Such/Method", "/grpc.testing.TestService/NoSuchMethod"} {
		err := conn.Invoke(t.Context(), method, &grpctest.Request{}, &grpctest.Response{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v, want Unimplemented", method, err)
		}
	}
}

// A client outside the mesh is refused if mTLS is required. Otherwise it is served, without an identity.
func TestServer_PlaintextClient(t *testing.T) {
	for _, test := range []struct {
		name, documents string
		code            codes.Code
	}{
		{"STRICT", strict, codes.Unavailable},
		{"PERMISSIVE", strings.Replace(strict, "STRICT", "PERMISSIVE", 1), codes.OK},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			w := newTown(t)
			_, e := w.serve(t, w.member(t, "payment", test.documents), "payment", whoCalls)
			conn := grpctest.Dial(t, net.JoinHostPort(e.Address, strconv.Itoa(e.Port)))
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x-mine", "kept", "x-envoy-internal", "true",
				"x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/order")
			reply, err := grpctest.NewClient(conn).UnaryCall(ctx, &grpctest.Request{})
			if status.Code(err) != test.code {
				t.Fatalf("error %v, want %v", err, test.code)
			}
			if err == nil && reply.Username != " over plaintext x-mine=kept" {
				t.Errorf("the service saw %q", reply.Username)
			}
		})
	}
}

// STRICT is enforced for calls over another listener too: the connection is closed.
func TestServer_StrictWithoutListener(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	m := w.member(t, "payment", strict)
	srv := grpctest.Serve(t, whoCalls, meshgrpc.ServerOptions(m)...)
	conn := grpctest.Dial(t, srv)
	_, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("error %v, want Unavailable", err)
	}
	if !await.Done(func() bool { return conn.GetState() != connectivity.Ready }) {
		t.Error("the connection was left open")
	}
}

const unaryOnly = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: unary, namespace: default}
spec:
  selector: {matchLabels: {app: payment}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/order"]}}]
    to: [{operation: {paths: ["/grpc.testing.TestService/UnaryCall"], methods: [POST]}}]
`

func TestServer_Authorization(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment", strict+"---"+unaryOnly), "payment", whoCalls)
	order := grpctest.NewClient(connect(t, w.member(t, "order", strict), "mesh:///payment"))
	other := connect(t, w.member(t, "other", strict), "mesh:///payment")
	if _, err := order.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Errorf("allowed call: %v", err)
	}
	denied := func(what string, err error) {
		t.Helper()
		if s := status.Convert(err); s.Code() != codes.PermissionDenied || s.Message() != "RBAC: access denied" {
			t.Errorf("%s: %v, want PermissionDenied and RBAC: access denied", what, err)
		}
	}
	_, err := order.EmptyCall(t.Context(), &grpc_testing.Empty{})
	denied("another method", err)
	_, err = grpctest.NewClient(other).UnaryCall(t.Context(), &grpctest.Request{})
	denied("another principal", err)
	stream, err := order.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	denied("a stream", err)
	denied("a method that does not exist", other.Invoke(t.Context(), "/no.Such/Method", &grpctest.Request{}, &grpctest.Response{}))
}

func TestServer_Limits(t *testing.T) {
	for _, test := range []struct {
		name   string
		server mesh.ServerConfig
		sign   string
		text   string // as from limitgrpc
	}{
		{"overload", mesh.ServerConfig{MaxRequests: 1}, "x-envoy-overloaded", "overloaded"},
		{"rate", mesh.ServerConfig{RateLimit: limit.RateConfig{PerSecond: 0.001, Burst: 1}}, "x-envoy-ratelimited", "too many calls"},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			w := newTown(t)
			begun, gate := make(chan struct{}, 2), make(chan struct{})
			w.serve(t, w.member(t, "payment", "", mesh.WithServer(test.server)), "payment", &grpctest.Service{
				Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
					begun <- struct{}{}
					<-gate
					return grpctest.Echo(ctx, in)
				},
			})
			client := grpctest.NewClient(connect(t, w.member(t, "order", ""), "mesh:///payment"))
			first := make(chan error, 1)
			go func() {
				_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
				first <- err
			}()
			<-begun
			var trailer metadata.MD
			_, err := client.UnaryCall(t.Context(), &grpctest.Request{}, grpc.Trailer(&trailer))
			if s := status.Convert(err); s.Code() != codes.Unavailable || s.Message() != test.text || len(trailer[test.sign]) == 0 {
				t.Errorf("second call: %v, trailer %v; want Unavailable, %q, with %s", err, trailer, test.text, test.sign)
			}
			close(gate)
			if err := <-first; err != nil {
				t.Errorf("first call: %v", err)
			}
		})
	}
}

// Metadata is bounded as headers over HTTP are, unless a later option says otherwise.
func TestServer_MetadataIsBounded(t *testing.T) {
	for _, test := range []struct {
		name string
		size int
		opts []grpc.ServerOption
		want codes.Code
	}{
		{"large", 900 << 10, nil, codes.OK},
		{"too large", 1 << 20, nil, codes.Internal},
		{"with a limit of its own", 1 << 20, []grpc.ServerOption{grpc.MaxHeaderListSize(4 << 20)}, codes.OK},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			w := newTown(t)
			_, at := w.serve(t, w.member(t, "payment", ""), "payment", whoCalls, test.opts...)
			conn, err := grpc.NewClient(fmt.Sprintf("%s:%d", at.Address, at.Port), grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			client := grpctest.NewClient(conn)
			if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil { // after it the client knows the limit
				t.Fatal(err)
			}
			ctx := metadata.AppendToOutgoingContext(t.Context(), "x-large", strings.Repeat("x", test.size))
			if _, err := client.UnaryCall(ctx, &grpctest.Request{}); status.Code(err) != test.want {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}

// Calls run on goroutines that have run other calls. Calls that wait for one another do not need one of these.
func TestServer_Workers(t *testing.T) {
	leak.Check(t)
	const together = 200
	var mu sync.Mutex
	goroutines := make(map[string]bool)
	arrived, all := 0, make(chan struct{})
	w := newTown(t)
	w.serve(t, w.member(t, "payment", ""), "payment", &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			stack := make([]byte, 64)
			name, _, _ := strings.Cut(string(stack[:runtime.Stack(stack, false)]), "[")
			mu.Lock()
			goroutines[name] = true
			if arrived++; arrived == together {
				close(all)
			}
			mu.Unlock()
			if in.FillUsername {
				select {
				case <-all:
				case <-ctx.Done():
				}
			}
			return &grpctest.Response{}, ctx.Err()
		},
	})
	client := grpctest.NewClient(connect(t, w.member(t, "order", ""), "mesh:///payment"))
	var calling sync.WaitGroup
	for range together {
		calling.Go(func() {
			if _, err := client.UnaryCall(bounded(t), &grpctest.Request{FillUsername: true}); err != nil {
				t.Error(err)
			}
		})
	}
	calling.Wait()
	clear(goroutines)
	const calls = 500
	for range calls {
		if _, err := client.UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	if len(goroutines) > calls/2 {
		t.Errorf("%d calls ran on %d goroutines, want fewer", calls, len(goroutines))
	}
}

func TestServer_GracefulStop(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	srv, _ := w.serve(t, w.member(t, "payment", strict), "payment", echoStreams)
	client := grpctest.NewClient(connect(t, w.member(t, "order", strict), "mesh:///payment"))
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() {
		t.Helper()
		if err := stream.Send(&grpctest.In{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	// The listener tracks a connection until a moment after it was accepted, and closes those that it tracks when it is closed.
	if !await.Done(func() bool {
		stacks := make([]byte, 1<<20)
		return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "tlsid.(*Listener).take")
	}) {
		t.Fatal("the listener still looks at connections")
	}
	stopped := make(chan struct{})
	go func() {
		srv.GracefulStop()
		close(stopped)
	}()
	exchange() // the stream goes on
	select {
	case <-stopped:
		t.Error("GracefulStop did not wait for the stream")
	default:
	}
	stream.CloseSend()
	if _, err := stream.Recv(); err == nil {
		t.Error("no end of the stream")
	}
	<-stopped
}

// The identity of the peer must be the one that discovery names.
func TestClient_ExpectedIdentity(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	_, e := w.serve(t, w.member(t, "payment", strict), "payment", whoCalls)
	e.ServiceAccount = "somebody-else"
	w.registry.Set("payment", e)
	client := grpctest.NewClient(connect(t, w.member(t, "order", strict), "mesh:///payment"))
	_, err := client.UnaryCall(t.Context(), &grpctest.Request{})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "expected spiffe://cluster.local/ns/default/sa/somebody-else") {
		t.Errorf("error %v, want Unavailable, with the expected ID", err)
	}
}

// A rewritten authority works with certificates that name no hosts.
func TestAuthorityWithSPIFFE(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	var seen sync.Map
	w.serve(t, w.member(t, "payment", strict), "payment", &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			seen.Store(md[":authority"][0], true)
			return grpctest.Echo(ctx, in)
		},
	})
	client := grpctest.NewClient(connect(t, w.member(t, "order", strict+`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment, namespace: default}
spec:
  hosts: [payment]
  http: [{rewrite: {authority: payments.example.com}, route: [{destination: {host: payment}}]}]
`), "mesh:///payment"))
	if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	if _, ok := seen.Load("payments.example.com"); !ok {
		t.Error("the authority was not rewritten")
	}
}

// Certificates are replaced while calls are made, and no call fails.
func TestRotationUnderLoad(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	w.RotateEvery = 40 * time.Millisecond
	server := w.member(t, "payment", strict)
	w.serve(t, server, "payment", echoStreams)
	m := w.member(t, "order", strict)
	client := grpctest.NewClient(connect(t, m, "mesh:///payment"))
	stream, err := client.FullDuplexCall(t.Context()) // stays open throughout
	if err != nil {
		t.Fatal(err)
	}
	first, err := m.Identity()
	if err != nil {
		t.Fatal(err)
	}
	last, rotations := first, 0
	for rotations < 5 {
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
			t.Fatalf("after %d rotations: %v", rotations, err)
		}
		if err := stream.Send(&grpctest.In{}); err != nil && err != io.EOF { // io.EOF: Recv says why
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatalf("stream after %d rotations: %v", rotations, err)
		}
		if now, err := m.Identity(); err != nil {
			t.Fatal(err)
		} else if now != last {
			last = now
			rotations++
		}
	}
	stream.CloseSend()
	if _, err := stream.Recv(); err == nil {
		t.Error("no end of the stream")
	}
}

// gRPC keeps some headers to itself. A policy that denies by one of them would deny nothing, so it is refused.
func TestPoliciesAboutHeadersThatGRPCKeeps(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	m := w.member(t, "payment", "")
	client := grpctest.NewClient(grpctest.Dial(t, grpctest.Serve(t, whoCalls, meshgrpc.ServerOptions(m)...)))
	for _, name := range []string{"grpc-timeout", "Grpc-Encoding", "grpc-message-type", "grpc-status", "grpc-message", "te"} {
		err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(strings.Replace(denyAll, "spec: {}",
			`spec: {action: DENY, rules: [{when: [{key: "request.headers[`+name+`]", values: ["*"]}]}]}`, 1))})
		if err != nil {
			continue
		}
		_, err = client.UnaryCall(bounded(t), &grpctest.Request{})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("a policy that denies calls with %s was accepted, and one ends with %v", name, err)
		}
	}
}
