package meshgrpc_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
)

// paysPolicy returns documents with an ALLOW policy for payment, with what is the same for all calls of a test in place of RULES.
func paysPolicy(rules string) string {
	return strict + strings.Replace(`---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payment, namespace: default}
spec: {action: ALLOW, rules: [RULES]}
`, "RULES", rules, 1)
}

// called makes a unary call of a method with metadata, and returns its code.
func called(t *testing.T, conn *grpc.ClientConn, method string, md ...string) codes.Code {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(bounded(t), md...)
	return status.Code(conn.Invoke(ctx, method, &grpctest.Request{}, &grpctest.Response{}))
}

// The server remembers what it has allowed on a connection. That holds for the same call, and no longer than the documents.
func TestCallsOverOneConnectionAreDecidedAboutEach(t *testing.T) {
	leak.Check(t)
	const (
		other = "/grpc.testing.TestService/UnaryCalk"
		all   = `{}`
		one   = `{to: [{operation: {paths: ["/grpc.testing.TestService/UnaryCall"]}}]}`
		none  = `{to: [{operation: {paths: ["/grpc.testing.TestService/EmptyCall"]}}]}`
		named = `{when: [{key: "request.headers[x-name]", values: [alice]}]}`
		host  = `{to: [{operation: {hosts: [payment]}}]}`
	)
	w := newTown(t)
	server := w.member(t, "payment", paysPolicy(all))
	_, at := w.serve(t, server, "payment", &grpctest.Service{Unary: grpctest.Echo})
	at.ServiceAccount = "payment"
	conn := connect(t, w.member(t, "order", strict), "mesh:///payment")

	for range 3 {
		for _, step := range []struct {
			rules, method string
			md            []string
			want          codes.Code
		}{
			{all, grpctest.UnaryMethod, nil, codes.OK},
			{all, other, nil, codes.Unimplemented}, // it is allowed
			{one, grpctest.UnaryMethod, nil, codes.OK},
			{one, other, nil, codes.PermissionDenied},
			{one, grpctest.UnaryMethod, nil, codes.OK},
			{none, grpctest.UnaryMethod, nil, codes.PermissionDenied},
			{named, grpctest.UnaryMethod, []string{"x-name", "alice"}, codes.OK},
			{named, grpctest.UnaryMethod, []string{"x-name", "bob"}, codes.PermissionDenied},
			{named, grpctest.UnaryMethod, nil, codes.PermissionDenied},
			{host, grpctest.UnaryMethod, nil, codes.OK},
			{all, grpctest.UnaryMethod, nil, codes.OK},
		} {
			apply(t, server, paysPolicy(step.rules))
			for range 2 {
				if got := called(t, conn, step.method, step.md...); got != step.want {
					t.Fatalf("with the rule %s, %s with %v: %v, want %v", step.rules, step.method, step.md, got, step.want)
				}
			}
		}
		// The host is the authority of a call.
		apply(t, server, paysPolicy(host))
		err := conn.Invoke(bounded(t), grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{}, grpc.CallAuthority("other"))
		if status.Code(err) != codes.PermissionDenied {
			t.Fatalf("with another authority: %v, want PermissionDenied", err)
		}
	}
}

// What a peer says about itself is removed from its metadata whatever else a call has.
func TestMetadataIsCleanedWithAndWithoutOther(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	seen := make(chan metadata.MD, 1)
	_, at := w.serve(t, w.member(t, "payment", strict), "payment", &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			seen <- md
			return grpctest.Echo(ctx, in)
		},
	})
	at.ServiceAccount = "payment"
	conn := connect(t, w.member(t, "order", strict), "mesh:///payment")
	for _, md := range [][]string{
		nil,
		{"x-mine", "1"},
		{"x-envoy-peer-metadata", "AA=="},
		{"x-envoy-peer-metadata-id", "me", "traceparent", "1"},
		{"host", "elsewhere"},
		{"x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/admin"},
		nil,
	} {
		if got := called(t, conn, grpctest.UnaryMethod, md...); got != codes.OK {
			t.Fatalf("with %v: %v", md, got)
		}
		got := <-seen
		for _, name := range []string{"x-envoy-peer-metadata", "x-envoy-peer-metadata-id", "host"} {
			if got[name] != nil {
				t.Errorf("with %v, the handler sees %s", md, name)
			}
		}
		certs := got["x-forwarded-client-cert"]
		if len(certs) != 1 || !strings.HasSuffix(certs[0], "URI=spiffe://cluster.local/ns/default/sa/order") {
			t.Errorf("with %v, the handler sees the certificates %q", md, certs)
		}
	}
}

// What a TrafficTarget allows with some metadata only is decided about call by call, beside a Server that allows all.
func TestTrafficTargetsDecideAboutEachCall(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	_, at := w.serve(t, w.member(t, "payment", strict+`---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: payment, namespace: default}
spec:
  destination: {kind: ServiceAccount, name: payment}
  rules: [{kind: HTTPRouteGroup, name: payment}]
  sources: [{kind: ServiceAccount, name: order, namespace: default}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: payment, namespace: default}
spec:
  matches:
  - {name: named, pathRegex: "/grpc.testing.TestService/UnaryCall$", methods: [POST], headers: {x-name: alice, x-data-bin: AAE}}
---
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: payment, namespace: default}
spec: {podSelector: {}, port: grpc, proxyProtocol: gRPC, accessPolicy: all-authenticated}
`), "payment", &grpctest.Service{Unary: grpctest.Echo})
	at.ServiceAccount = "payment"
	order, cart := connect(t, w.member(t, "order", strict), "mesh:///payment"), connect(t, w.member(t, "cart", strict), "mesh:///payment")
	named := []string{"x-name", "alice", "x-data-bin", "\x00\x01"}
	for range 2 {
		for _, step := range []struct {
			conn   *grpc.ClientConn
			method string
			md     []string
			want   codes.Code
		}{
			{order, grpctest.UnaryMethod, named, codes.OK},
			{order, grpctest.UnaryMethod, nil, codes.PermissionDenied},
			{order, grpctest.UnaryMethod, named[:2], codes.PermissionDenied},
			{order, grpctest.UnaryMethod, []string{"x-name", "alice", "x-data-bin", "AAF"}, codes.PermissionDenied},
			{order, "/grpc.testing.TestService/UnaryCalls", named, codes.PermissionDenied},
			{cart, grpctest.UnaryMethod, named, codes.PermissionDenied},
		} {
			if got := called(t, step.conn, step.method, step.md...); got != step.want {
				t.Errorf("%s with %q: %v, want %v", step.method, step.md, got, step.want)
			}
		}
	}
}
