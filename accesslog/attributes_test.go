package accesslog

import (
	"net"
	"net/http"
	"reflect"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/attribute"
	"github.com/nosidecar/mesh/policy/route"
)

// Each attribute that expressions may ask about is there, on one side at least, and has the type that they are checked for.
func TestAttributes(t *testing.T) {
	types := map[attribute.Kind]reflect.Type{
		attribute.Text: reflect.TypeFor[string](), attribute.Number: reflect.TypeFor[int64](), attribute.Bool: reflect.TypeFor[bool](),
		attribute.Duration: reflect.TypeFor[time.Duration](), attribute.Header: reflect.TypeFor[http.Header](),
		attribute.Labels: reflect.TypeFor[map[string]string](),
	}
	call := &record{
		method: "GET", uri: "/a?b", userAgent: "test", grpcStatus: 5, headers: http.Header{}, authority: "orders",
		target: route.Target{Host: "orders.shop.svc.cluster.local", Port: 80}, peerID: "spiffe://cluster.local/ns/shop/sa/orders",
		peer: &discovery.Endpoint{Labels: map[string]string{"app": "orders", "version": "v1"}},
	}
	request := &record{
		side: inbound, grpcStatus: -1, local: &net.TCPAddr{Port: 8080}, remoteText: "10.0.0.1:4711", peerID: "spiffe://cluster.local/ns/shop/sa/web",
	}
	for name, kind := range attribute.Variables() {
		known := false
		for _, r := range []*record{call, request} {
			value, ok := r.Attribute(name)
			known = known || ok
			if ok && reflect.TypeOf(value) != types[kind] {
				t.Errorf("%s is a %T, want %v", name, value, types[kind])
			}
		}
		if !known {
			t.Errorf("nobody knows %s: an expression with it could never be true", name)
		}
	}
	for name, want := range map[string]any{
		"request.path": "/a?b", "request.url_path": "/a", "response.grpc_status": int64(5), "destination.port": int64(80),
		"xds.cluster_name": "outbound|80||orders.shop.svc.cluster.local", "filter_state.upstream_peer.namespace": "shop",
		"filter_state.upstream_peer.workload": "orders", "filter_state.upstream_peer.revision": "v1", "connection.mtls": true,
	} {
		if got, ok := call.Attribute(name); !ok || got != want {
			t.Errorf("%s of a call is %v, want %v", name, got, want)
		}
	}
	for name, want := range map[string]any{
		"destination.port": int64(8080), "source.address": "10.0.0.1:4711", "xds.cluster_name": "inbound|8080||",
		"filter_state.downstream_peer.namespace": "shop", "filter_state.downstream_peer.workload": "web",
		"filter_state.downstream_peer.app": "web", "filter_state.downstream_peer.service": "web",
	} {
		if got, ok := request.Attribute(name); !ok || got != want {
			t.Errorf("%s of a request is %v, want %v", name, got, want)
		}
	}
	if _, ok := call.Attribute("filter_state.downstream_peer.namespace"); ok {
		t.Error("a call has a downstream peer")
	}
	if _, ok := request.Attribute("response.grpc_status"); ok {
		t.Error("a request of HTTP has a status of gRPC")
	}
}

// A namespace is that of an identity of Istio's form only, as for AuthorizationPolicies: others may have /ns/ anywhere.
func TestIdentitiesOfOtherFormsHaveNoNamespace(t *testing.T) {
	for _, id := range []string{
		"spiffe://cluster.local/tenant/ns/shop/sa/web", "spiffe://cluster.local/ns/shop", "spiffe://cluster.local/ns/shop/job/web",
		"spiffe://cluster.local/web",
	} {
		request := &record{side: inbound, peerID: id}
		for _, name := range []string{"namespace", "workload"} {
			if value, ok := request.Attribute("filter_state.downstream_peer." + name); ok {
				t.Errorf("%s has the %s %v", id, name, value)
			}
		}
	}
}

// The bits are those of Envoy's ResponseFlag.
func TestEnvoyFlags(t *testing.T) {
	if got := envoyFlags(mesh.FlagUpstreamTimeout | mesh.FlagRetriesExhausted | mesh.FlagNoCluster); got != 0x4|0x8000|0x1000000 {
		t.Errorf("%#x", got)
	}
	if got := envoyFlags(0); got != 0 {
		t.Errorf("%#x", got)
	}
}
