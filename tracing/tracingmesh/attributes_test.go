package tracingmesh_test

import (
	"context"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/tracing"
)

// Spans have these attributes of the semantic conventions, and no others: the service is named, neither the Host of the request nor the
// endpoint, and names that the conventions have given up are gone.
func TestAttributesOfSpans(t *testing.T) {
	leak.Check(t)
	tr := newTraces(t, tracing.Config{})
	var registry discovery.Memory
	server := meshtest.New(t, "", tr.option)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(http.ResponseWriter, *http.Request) {})
	srv := httptest.NewServer(server.Handler(mux))
	t.Cleanup(srv.Close)
	at := meshtest.EndpointOf(t, srv.Listener.Addr().String())
	registry.Set("orders", at)
	rpcs := meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, meshgrpc.ServerOptions(server)...))
	registry.Set("stock", rpcs)
	client := meshtest.New(t, service("orders", "")+"---"+service("stock", ""), tr.option, mesh.WithDiscovery(&registry))
	ctx, above := tr.provider.Tracer("").Start(context.Background(), "above")
	defer above.End()

	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/orders/42?a=b&access_token=secret", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "shop.example.com:8443"
	req.Header.Set("User-Agent", "test/1")
	resp, err := client.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	conn, err := grpc.NewClient("mesh:///stock:9000", meshgrpc.DialOptions(client)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := grpctest.NewClient(conn).UnaryCall(ctx, &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}

	got := make(map[string]string)
	for _, s := range tr.ended(t, 4) {
		got[s.SpanKind().String()+" "+s.Name()] = attributesOf(s)
	}
	want := map[string]string{
		"client GET": "http.request.method=GET http.response.status_code=200 mesh.route=all network.peer.address=127.0.0.1 " +
			"network.peer.port=PORT network.protocol.version=1.1 server.address=orders url.full=http://orders/orders/42?a=b&access_token=REDACTED",
		"server GET /orders/{id}": "http.request.method=GET http.response.status_code=200 http.route=/orders/{id} network.peer.address=127.0.0.1 " +
			"network.protocol.version=1.1 server.address=shop.example.com server.port=8443 url.path=/orders/42 url.scheme=http user_agent.original=test/1",
		"client grpc.testing.TestService/UnaryCall": "mesh.route=all rpc.method=grpc.testing.TestService/UnaryCall rpc.response.status_code=OK " +
			"rpc.system.name=grpc server.address=stock server.port=9000",
		"server grpc.testing.TestService/UnaryCall": "network.peer.address=127.0.0.1 rpc.method=grpc.testing.TestService/UnaryCall " +
			"rpc.response.status_code=OK rpc.system.name=grpc server.address=stock server.port=9000",
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s has\n%s\nwant\n%s", name, got[name], want[name])
		}
	}
}

// attributesOf returns the attributes of a span, sorted.
func attributesOf(s sdk.ReadOnlySpan) string {
	var all []string
	for _, kv := range s.Attributes() {
		text := string(kv.Key) + "=" + kv.Value.String()
		if kv.Key == "network.peer.port" {
			text = string(kv.Key) + "=PORT"
		}
		all = append(all, text)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}
