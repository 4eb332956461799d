package meshgrpc_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// grpcRoute is a GRPCRoute for the service echo.
func grpcRoute(rules string) string {
	return "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: echo}\n" +
		"spec:\n  parentRefs: [{group: \"\", kind: Service, name: echo}]\n  rules:\n" + rules
}

// echoVersions finds the services echo-v1 and echo-v2, whose answers have their name in the header "from", and a header that they saw.
func echoVersions(t *testing.T) mesh.Option {
	registry := make(discovery.Static)
	for _, name := range []string{"echo-v1", "echo-v2"} {
		registry[name] = []discovery.Endpoint{serve(t, &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			return &grpctest.Response{}, grpc.SetHeader(ctx, metadata.Pairs("from", name, "saw", strings.Join(md["x-header-set"], ",")))
		}})}
	}
	return mesh.WithDiscovery(registry)
}

// TestGRPCRoute_Weight: MeshGRPCRouteWeight.
func TestGRPCRoute_Weight(t *testing.T) {
	leak.Check(t)
	conn := connect(t, meshtest.New(t, grpcRoute("  - backendRefs: [{name: echo-v1, port: 80, weight: 70}, {name: echo-v2, port: 80, weight: 30}]\n"), echoVersions(t)), "mesh:///echo:80")
	count := make(map[string]int)
	for range 500 {
		var header metadata.MD
		if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{}, grpc.Header(&header)); err != nil {
			t.Fatal(err)
		}
		count[header["from"][0]]++
	}
	if n := count["echo-v1"]; n < 290 || n > 410 || n+count["echo-v2"] != 500 {
		t.Errorf("calls went to %v, want 70 and 30 percent", count)
	}
}

// TestGRPCRoute: methods, headers and what has no backend. An HTTPRoute of the same service has no effect.
func TestGRPCRoute(t *testing.T) {
	leak.Check(t)
	documents := grpcRoute(`
  - matches: [{method: {service: grpc.testing.TestService, method: UnaryCall}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: X-Header-Set, value: set-overwrites-values}]}}]
    backendRefs: [{name: echo-v1, port: 80}]
  - matches: [{method: {service: grpc.testing.TestService, method: UnaryCall}, headers: [{name: version, value: two}]}]
    backendRefs: [{name: echo-v2, port: 80}]
  - matches: [{method: {service: none}}]
`) + "---\n" + strings.Replace(grpcRoute("  - backendRefs: [{name: echo-v2, port: 80}]\n"), "GRPCRoute", "HTTPRoute", 1)
	conn := connect(t, meshtest.New(t, documents, echoVersions(t)), "mesh:///echo:80")
	for _, tt := range []struct{ method, version, want string }{
		{grpctest.UnaryMethod, "one", "OK echo-v1 set-overwrites-values"},
		{grpctest.UnaryMethod, "two", "OK echo-v2 some"},
		{"/none/Method", "two", fmt.Sprint(codes.Unavailable)},
		{"/grpc.testing.TestService/EmptyCall", "two", fmt.Sprint(codes.Unimplemented)},
	} {
		var header metadata.MD
		ctx := metadata.AppendToOutgoingContext(t.Context(), "version", tt.version, "x-header-set", "some")
		err := conn.Invoke(ctx, tt.method, &grpctest.Request{}, &grpctest.Response{}, grpc.Header(&header))
		got := status.Code(err).String()
		if err == nil {
			got += " " + strings.Join(append(header["from"], header["saw"]...), " ")
		}
		if got != tt.want {
			t.Errorf("%s of version %s: %s (%v), want %s", tt.method, tt.version, got, err, tt.want)
		}
	}
}

// TestHeadersThatGRPCCannotSend: the document that sets one is to blame, and not the caller. An endpoint is not asked.
func TestHeadersThatGRPCCannotSend(t *testing.T) {
	leak.Check(t)
	const route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: echo}\n" +
		"spec:\n  parentRefs: [{group: '', kind: Service, name: echo}]\n  rules:\n" +
		"  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: %s, value: %q}]}}]\n    backendRefs: [{name: echo-v1, port: 80}]\n"
	const virtual = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: echo}\n" +
		"spec: {hosts: [echo], http: [{headers: {request: {add: {%s: %q}}}, route: [{destination: {host: echo-v1}}]}]}\n"
	versions := echoVersions(t)
	for _, tt := range []struct{ document, name, value, sent, want string }{
		{route, "x-a", "é", "", `HTTPRoute default/echo sets the header x-a to a value that gRPC cannot send, "é"`},
		{route, "x~a", "a", "", `HTTPRoute default/echo sets the header "x~a", a name that gRPC cannot send`},
		{virtual, "x-a", "é", "", `VirtualService default/echo sets the header x-a to a value that gRPC cannot send, "é"`},
		{route, "x-a-bin", "é", "", ""},
		{route, "x-a", "a", "a", ""},
		{route, "x-a", "a", "é", `header key "x-other" contains value with non-printable ASCII characters`}, // which the caller sends
	} {
		conn := connect(t, meshtest.New(t, fmt.Sprintf(tt.document, tt.name, tt.value), versions), "mesh:///echo:80")
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-other", tt.sent)
		err := conn.Invoke(ctx, grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{})
		_, failed := grpctest.NewClient(conn).FullDuplexCall(ctx)
		for _, err := range []error{err, failed} {
			code := codes.Unavailable
			if tt.sent == "é" {
				code = codes.Internal
			}
			if tt.want == "" {
				code = codes.OK
			}
			if status.Code(err) != code || !strings.Contains(fmt.Sprint(err), tt.want) {
				t.Errorf("%s: %s is set, and %q is sent: %v, want %v with %q", tt.name, tt.value, tt.sent, err, code, tt.want)
			}
		}
	}
}

// TestGRPCRoute_Server: a GRPCRoute that is attached to a Server of Linkerd, and who may call its methods.
func TestGRPCRoute_Server(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment", `
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: payment, namespace: default}
spec: {podSelector: {}, port: grpc, proxyProtocol: gRPC}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: unary, namespace: default}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: Server, name: payment}]
  rules: [{matches: [{method: {service: grpc.testing.TestService, method: UnaryCall}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: other, namespace: default}
spec:
  parentRefs: [{group: policy.linkerd.io, kind: Server, name: payment}]
  rules: [{matches: [{method: {service: grpc.testing.TestService}}]}]
---
apiVersion: policy.linkerd.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: unary, namespace: default}
spec:
  targetRef: {group: gateway.networking.k8s.io, kind: GRPCRoute, name: unary}
  requiredAuthenticationRefs: [{kind: ServiceAccount, name: order}]
`), "payment", whoCalls)
	for _, test := range []struct {
		account, method string
		want            codes.Code
	}{
		{"order", "/grpc.testing.TestService/UnaryCall", codes.OK},
		{"order", "/grpc.testing.TestService/EmptyCall", codes.PermissionDenied},
		{"other", "/grpc.testing.TestService/UnaryCall", codes.PermissionDenied},
		{"order", "/no.Such/Method", codes.NotFound},
	} {
		conn := connect(t, w.member(t, test.account, strict), "mesh:///payment")
		if err := conn.Invoke(t.Context(), test.method, &grpctest.Request{}, &grpctest.Response{}); status.Code(err) != test.want {
			t.Errorf("%s calls %s: %v, want %v", test.account, test.method, err, test.want)
		}
	}
}
