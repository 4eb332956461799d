package tracingmesh_test

import (
	"context"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tracing"
)

// tags is a document for the whole mesh.
func tags(spec string) string {
	return "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: tags, namespace: istio-system}\nspec: {tracing: [" + spec + "]}\n"
}

const orderHost = "order.shop.svc.cluster.local"

// pair is two processes with identities: web of the namespace default, which calls order of the namespace shop.
type pair struct {
	*traces
	registry   discovery.Memory
	web, order *mesh.Mesh
}

func newPair(t *testing.T, secure bool, documents string) *pair {
	t.Helper()
	t.Setenv("ISTIO_META_CLUSTER_ID", "east")
	t.Setenv("ISTIO_META_MESH_ID", "blue")
	p := &pair{traces: newTraces(t, tracing.Config{})}
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ca.RotateEvery = -1
	member := func(namespace, name, version string) *mesh.Mesh {
		opts := []mesh.Option{p.option, mesh.WithDiscovery(&p.registry), mesh.WithWorkload(policy.Workload{
			Namespace: namespace,
			Labels:    map[string]string{"app": name, "version": version, "service.istio.io/workload-name": name + "-" + version},
		})}
		mode := "DISABLE"
		if secure {
			mode, opts = "STRICT", append(opts, mesh.WithIdentity(ca.Source(namespace, name)))
		}
		return meshtest.New(t, `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: all, namespace: istio-system}
spec: {mtls: {mode: `+mode+`}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order, namespace: shop}
spec:
  hosts: [`+orderHost+`]
  http:
  - route: [{destination: {host: `+orderHost+`}}]
    retries: {attempts: 1, retryOn: "5xx,unavailable", backoff: 1ms}
`+documents, opts...)
	}
	p.web, p.order = member("default", "web", "v1"), member("shop", "order", "v2")
	return p
}

func (p *pair) add(t *testing.T, address string, labels map[string]string) {
	e := meshtest.EndpointOf(t, address)
	e.ServiceAccount, e.Labels = "shop/order", labels
	p.registry.Set(orderHost, e)
}

func (p *pair) serve(t *testing.T, labels map[string]string, h http.HandlerFunc) {
	t.Helper()
	ln := rawtest.Listen(t)
	p.add(t, ln.Addr().String(), labels)
	srv := &http.Server{Handler: p.order.Handler(h)}
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(p.order.Listen(ln)) })
	t.Cleanup(func() {
		srv.Close()
		serving.Wait()
	})
}

// istioTags returns the attributes of a span that are Istio's.
func istioTags(s sdk.ReadOnlySpan) map[string]string {
	out := make(map[string]string)
	for _, kv := range s.Attributes() {
		if strings.HasPrefix(string(kv.Key), "istio.") {
			out[strings.TrimPrefix(string(kv.Key), "istio.")] = kv.Value.String()
		}
	}
	return out
}

func (p *pair) hold(t *testing.T, n int, want map[trace.SpanKind]map[string]string) {
	t.Helper()
	for _, s := range p.ended(t, n) {
		if got := istioTags(s); !maps.Equal(got, want[s.SpanKind()]) {
			t.Errorf("the %s span %s has %v, want %v", s.SpanKind(), s.Name(), got, want[s.SpanKind()])
		}
	}
	p.Reset()
}

// of returns the tags of a span: of the process that it is of, and of both ends.
func of(own, source, destination []string) map[string]string {
	out := map[string]string{"mesh_id": "blue", "cluster_id": "east", "canonical_service": own[0], "canonical_revision": own[1], "namespace": own[2]}
	for end, w := range map[string][]string{"source_": source, "destination_": destination} {
		out[end+"workload"], out[end+"namespace"], out[end+"canonical_service"] = w[0], w[1], w[2]
	}
	return out
}

var (
	ownWeb, ownOrder = []string{"web", "v1", "default"}, []string{"order", "v2", "shop"}
	web              = []string{"web-v1", "default", "web"}
	order            = []string{"order-v2", "shop", "order"}
	nobody           = []string{"unknown", "unknown", "unknown"}
)

// labels are those that discovery has for order.
var labels = map[string]string{"app": "order", "version": "v2", "service.istio.io/workload-name": "order-v2"}

func TestIstioTags(t *testing.T) {
	for _, tt := range []struct {
		name        string
		secure      bool
		labels      map[string]string // that discovery has
		destination []string          // as the caller knows it
		source      []string          // as the server knows it
	}{
		{"labels and identities", true, labels, order, []string{"web", "default", "web"}},
		{"no labels", true, nil, []string{"order", "shop", "order"}, []string{"web", "default", "web"}},
		{"no identities", false, labels, order, nobody},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			p := newPair(t, tt.secure, tags("{enableIstioTags: true}"))
			want := map[trace.SpanKind]map[string]string{
				trace.SpanKindClient: of(ownWeb, web, tt.destination), trace.SpanKindInternal: of(ownWeb, web, tt.destination),
				trace.SpanKindServer: of(ownOrder, tt.source, order),
			}
			var mu sync.Mutex
			n := 0
			p.serve(t, tt.labels, func(w http.ResponseWriter, _ *http.Request) {
				mu.Lock()
				defer mu.Unlock()
				if n++; n == 1 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			if code := get(t, context.Background(), p.web, "http://"+orderHost+"/"); code != 200 {
				t.Fatal(code)
			}
			p.hold(t, 5, want) // two attempts at both ends, and what keeps them together

			p = newPair(t, tt.secure, tags("{enableIstioTags: true}"))
			ln := rawtest.Listen(t)
			grpctest.ServeOn(t, p.order.Listen(ln), &grpctest.Service{Unary: grpctest.Echo}, meshgrpc.ServerOptions(p.order)...)
			p.add(t, ln.Addr().String(), tt.labels)
			conn, err := grpc.NewClient("mesh:///"+orderHost, meshgrpc.DialOptions(p.web)...)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
				t.Fatal(err)
			}
			p.hold(t, 2, want)
		})
	}
}

// Nothing was sent, so nobody is at the other end.
func TestIstioTagsWithoutAnAttempt(t *testing.T) {
	leak.Check(t)
	p := newPair(t, false, tags("{enableIstioTags: true}"))
	p.registry.Set(orderHost)
	if resp, err := p.web.Client().Get("http://" + orderHost + "/"); err == nil {
		resp.Body.Close()
		t.Errorf("answered with %d", resp.StatusCode)
	}
	p.hold(t, len(p.Ended()), map[trace.SpanKind]map[string]string{
		trace.SpanKindClient: of(ownWeb, web, nobody), trace.SpanKindInternal: of(ownWeb, web, nobody),
	})
}

// Documents have the last word, for each side alone, and customTags do not take the place of Istio's.
func TestIstioTagsWhenAsked(t *testing.T) {
	const later = "---\napiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: later, namespace: shop}\nspec: {tracing: [{enableIstioTags: false}]}\n"
	client, server := of(ownWeb, web, order), of(ownOrder, nobody, order)
	mine := maps.Clone(client)
	mine["mesh_id"] = "mine"
	theirs := maps.Clone(server)
	theirs["mesh_id"] = "mine"
	for documents, want := range map[string]map[trace.SpanKind]map[string]string{
		"":                               {},
		tags("{enableIstioTags: false}"): {},
		tags("{customTags: {a: {literal: {value: b}}}}"):                                       {},
		tags("{match: {mode: CLIENT}, enableIstioTags: true}"):                                 {trace.SpanKindClient: client},
		tags("{match: {mode: SERVER}, enableIstioTags: true}"):                                 {trace.SpanKindServer: server},
		tags("{enableIstioTags: true, customTags: {a: {literal: {value: b}}}}"):                {trace.SpanKindClient: client, trace.SpanKindServer: server},
		tags("{enableIstioTags: true, customTags: {istio.mesh_id: {literal: {value: mine}}}}"): {trace.SpanKindClient: mine, trace.SpanKindServer: theirs},
		tags("{enableIstioTags: true}") + later:                                                {trace.SpanKindClient: client},
	} {
		t.Run(documents, func(t *testing.T) {
			leak.Check(t)
			p := newPair(t, false, documents)
			p.serve(t, labels, func(http.ResponseWriter, *http.Request) {})
			ctx, above := p.provider.Tracer("").Start(context.Background(), "above")
			if code := get(t, ctx, p.web, "http://"+orderHost+"/"); code != 200 {
				t.Fatal(code)
			}
			p.hold(t, 2, want)
			above.End()
		})
	}
}
