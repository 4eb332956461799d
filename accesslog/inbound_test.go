package accesslog_test

import (
	"context"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracingmesh"
)

// A peer that is not trusted does not choose the id of its request. The line has the id that the handler and its calls have.
func TestRequestIDOfALine(t *testing.T) {
	leak.Check(t)
	for name, first := range map[string]bool{"the log before the tracer": true, "the tracer before the log": false} {
		access, out := newLog(t, accesslog.Config{})
		tracer, err := tracingmesh.Observer(tracing.Config{})
		if err != nil {
			t.Fatal(err)
		}
		observers := []mesh.Option{mesh.WithEmptyPolicy(), mesh.WithObserver(access.Observer()), mesh.WithObserver(tracer)}
		if !first {
			observers[1], observers[2] = observers[2], observers[1]
		}
		served := make(chan [2]string, 1)
		server := meshtest.New(t, "", observers...)
		orders := meshtest.Serve(t, server.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			served <- [2]string{tracing.RequestID(r.Context()), r.Header.Get("X-Request-Id")}
		})).ServeHTTP)
		var registry discovery.Memory
		registry.Set("orders.default.svc.cluster.local", orders)
		client := meshtest.New(t, "", mesh.WithEmptyPolicy(), mesh.WithDiscovery(&registry))
		get(t, client, http.MethodGet, "http://orders/", nil, http.Header{"X-Request-Id": {"mine"}})
		if ids, line := <-served, closed(t, access, out)[0]; ids[0] == "mine" || ids[1] != ids[0] || line["request_id"] != ids[0] {
			t.Errorf("%s: the line has the request id %v, and the handler %q in its context and its header", name, line["request_id"], ids)
		}
	}
}

// The metadata of a gRPC call has that id, too.
func TestRequestIDOfAGRPCCall(t *testing.T) {
	leak.Check(t)
	tracer, err := tracingmesh.Observer(tracing.Config{})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan []string, 1)
	server := meshtest.New(t, "", mesh.WithEmptyPolicy(), mesh.WithObserver(tracer))
	address := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			served <- append(metadata.ValueFromIncomingContext(ctx, "x-request-id"), tracing.RequestID(ctx))
			return new(grpctest.Response), nil
		},
	}, meshgrpc.ServerOptions(server)...)
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, sent := range []string{"", "mine"} {
		ctx := t.Context()
		if sent != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "x-request-id", sent)
		}
		if _, err := grpctest.NewClient(conn).UnaryCall(ctx, new(grpctest.Request)); err != nil {
			t.Fatal(err)
		}
		if ids := <-served; len(ids) != 2 || ids[0] != ids[1] || len(ids[0]) != 36 {
			t.Errorf("sent %q: the handler has the ids %q", sent, ids)
		}
	}
}

// A token that is not accepted is told from a request that no policy allows.
func TestDetailsOfRefusedTokens(t *testing.T) {
	leak.Check(t)
	issuer := jwttest.New("a")
	access, out := newLog(t, accesslog.Config{})
	server := meshtest.New(t, `
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: default}
spec: {jwtRules: [{issuer: i, audiences: [shop], jwks: '`+jwttest.KeySet(issuer)+`'}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: default}
spec: {rules: [{from: [{source: {requestPrincipals: ["i/*"]}}]}]}
`, mesh.WithObserver(access.Observer()))
	var registry discovery.Memory
	registry.Set("orders.default.svc.cluster.local", meshtest.Serve(t, server.Handler(http.NotFoundHandler()).ServeHTTP))
	client := meshtest.New(t, "", mesh.WithEmptyPolicy(), mesh.WithDiscovery(&registry))
	for _, credentials := range []string{"Basic YTpi", "Bearer none", "Bearer " + issuer.Token(`{"iss": "i", "sub": "s", "aud": "other"}`)} {
		get(t, client, http.MethodGet, "http://orders/", nil, http.Header{"Authorization": {credentials}})
	}
	// The text of a reason does not tell.
	access.Observer().InboundEnd(t.Context(), &mesh.Inbound{Request: newRequest("/"), Decision: authz.Decision{Reason: "Jwt is what the rule is about"}})
	all := closed(t, access, out)
	for i, want := range []string{
		"rbac_access_denied_matched_policy[none]",
		"jwt_authn_access_denied{Jwt_is_not_in_the_form_of_Header.Payload.Signature_with_two_dots_and_3_sections}",
		"jwt_authn_access_denied{Audiences_in_Jwt_are_not_allowed}",
		"rbac_access_denied_matched_policy[none]",
	} {
		if got := all[i]["response_code_details"]; got != want {
			t.Errorf("request %d: %v, want %s", i, got, want)
		}
	}
}

// What a CORS policy answers is told from what the handler does.
func TestDetailsOfPreflights(t *testing.T) {
	leak.Check(t)
	access, out := newLog(t, accesslog.Config{})
	server := meshtest.New(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http: [{route: [{destination: {host: orders}}], corsPolicy: {allowOrigins: [{exact: https://app.example}]}}]
`, mesh.WithObserver(access.Observer()))
	var registry discovery.Memory
	registry.Set("orders.default.svc.cluster.local", meshtest.Serve(t, server.Handler(http.NotFoundHandler()).ServeHTTP))
	client := meshtest.New(t, "", mesh.WithEmptyPolicy(), mesh.WithDiscovery(&registry))
	for _, origin := range []string{"https://app.example", "https://evil.example"} {
		get(t, client, http.MethodOptions, "http://orders/", nil, http.Header{"Origin": {origin}, "Access-Control-Request-Method": {"PUT"}})
	}
	all := closed(t, access, out)
	for i, want := range []string{"cors_response", "via_upstream"} {
		if got := all[i]["response_code_details"]; got != want {
			t.Errorf("request %d: %v, want %s", i, got, want)
		}
	}
}
