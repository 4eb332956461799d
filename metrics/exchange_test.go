package metrics_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/metrics/internal/peermeta"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

const (
	order = "spiffe://cluster.local/ns/shop/sa/order"
	other = "spiffe://cluster.local/ns/other/sa/order"
)

// What a peer says is believed only if it has proved an identity, and of that one's namespace only. Of the rest the identity, or
// what discovery knows, stands for it.
func TestPeersAreBelieved(t *testing.T) {
	said := peermeta.Metadata{Name: "order-1", Namespace: "shop", Workload: "order-v1", Cluster: "east", Labels: map[string]string{
		"app": "orders", "version": "v1", "service.istio.io/canonical-name": "order", "service.istio.io/canonical-revision": "r1",
	}}
	elsewhere := said
	elsewhere.Namespace = ""
	for _, test := range []struct {
		name, peer, value string
		source            map[string]string // of a request
		destination       map[string]string // of a call
	}{
		{"mTLS", order, said.Encode(), map[string]string{
			"workload": "order-v1", "workload_namespace": "shop", "app": "orders", "version": "v1", "canonical_service": "order",
			"canonical_revision": "r1", "cluster": "east", "principal": order,
		}, nil},
		{"plaintext", "", said.Encode(), map[string]string{
			"workload": "unknown", "workload_namespace": "unknown", "app": "unknown", "version": "unknown", "canonical_service": "unknown",
			"canonical_revision": "latest", "cluster": "Kubernetes", "principal": "unknown",
		}, map[string]string{
			"workload": "found", "workload_namespace": "shop", "app": "found", "version": "v0", "canonical_service": "found",
			"canonical_revision": "v0", "cluster": "Kubernetes", "principal": "unknown",
		}},
		{"another namespace", other, said.Encode(), map[string]string{
			"workload": "order", "workload_namespace": "other", "app": "order", "version": "unknown", "canonical_service": "order",
			"canonical_revision": "latest", "cluster": "Kubernetes", "principal": other,
		}, map[string]string{
			"workload": "found", "workload_namespace": "other", "app": "found", "version": "v0", "canonical_service": "found",
			"canonical_revision": "v0", "cluster": "Kubernetes", "principal": other,
		}},
		{"no namespace, and an identity without one", "spiffe://cluster.local/vm/7", elsewhere.Encode(), map[string]string{
			"workload": "unknown", "workload_namespace": "unknown", "app": "unknown", "version": "unknown", "canonical_service": "unknown",
			"canonical_revision": "latest", "cluster": "Kubernetes", "principal": "spiffe://cluster.local/vm/7",
		}, map[string]string{"workload": "found", "workload_namespace": "shop", "principal": "spiffe://cluster.local/vm/7"}},
		{"too long", order, strings.Repeat("A", peermeta.MaxSize+4), map[string]string{"workload": "order", "workload_namespace": "shop"},
			map[string]string{"workload": "found", "workload_namespace": "shop"}},
		{"nonsense", order, "%", map[string]string{"workload": "order", "workload_namespace": "shop"}, map[string]string{"workload": "found"}},
		{"nothing", order, "", map[string]string{"workload": "order", "workload_namespace": "shop"}, map[string]string{"workload": "found"}},
	} {
		p := newProcess(t, metrics.Config{})
		o := identified(t, p.Observer())
		header := http.Header{asserted.PeerMetadata: {test.value}, asserted.PeerMetadataID: {"sidecar~10.0.0.1~order-1.shop~shop.svc.cluster.local"}}
		if test.value == "" {
			header = http.Header{}
		}
		in := &mesh.Inbound{Request: &http.Request{Header: header}, Start: time.Now(), Peer: test.peer, Status: 200, GRPCStatus: -1}
		o.InboundEnd(context.Background(), in)
		c := call(t, "order.shop.svc.cluster.local", &discovery.Endpoint{Labels: map[string]string{"app": "found", "version": "v0"}}, test.peer)
		c.ResponseHeader = header
		ends(o, c)
		if test.destination == nil {
			test.destination = test.source
		}
		for side, want := range map[string]map[string]string{"source": test.source, "destination": test.destination} {
			reporter := "source"
			if side == "source" {
				reporter = "destination" // who tells of the other side
			}
			s := p.one(t, "istio_requests_total", "reporter", reporter)
			for name, v := range want {
				if got := s.labels[side+"_"+name]; got != v {
					t.Errorf("%s: %s_%s is %q, want %q", test.name, side, name, got, v)
				}
			}
		}
		takenByKiali(t, p)
	}
}

// A peer that sends the ID of another one is not taken for it.
func TestIDsAreNoKeys(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := p.Observer()
	for _, w := range []string{"one", "two", "one", "two"} {
		said := peermeta.Metadata{Name: "pod", Namespace: "shop", Workload: w}
		o.InboundEnd(context.Background(), &mesh.Inbound{
			Request: &http.Request{Header: http.Header{asserted.PeerMetadata: {said.Encode()}, asserted.PeerMetadataID: {"the same"}}},
			Start:   time.Now(), Peer: order, Status: 200, GRPCStatus: -1,
		})
	}
	for _, w := range []string{"one", "two"} {
		if n := p.one(t, "istio_requests_total", "source_workload", w).value(); n != 2 {
			t.Errorf("%v requests of %s, want 2", n, w)
		}
	}
}

// An endpoint that has said who it is stays that workload when it does not answer.
func TestFailedCallsGoToTheSameWorkload(t *testing.T) {
	p := newProcess(t, metrics.Config{})
	o := identified(t, p.Observer())
	to := &discovery.Endpoint{}
	said := peermeta.Metadata{Name: "pod", Namespace: "shop", Workload: "order-v1"}
	c := call(t, "order.shop", to, order)
	c.ResponseHeader = http.Header{asserted.PeerMetadata: {said.Encode()}}
	ends(o, c)
	c = call(t, "order.shop", to, order)
	c.Status, c.Flags, c.ResponseHeader = 0, mesh.FlagUpstreamTimeout, nil
	ends(o, c)
	c = call(t, "order.shop", to, "") // no connection
	c.Status, c.Flags, c.ResponseHeader = 0, mesh.FlagConnectFailure, nil
	ends(o, c)
	for code, secure := range map[string]string{"200": "mutual_tls", "504": "mutual_tls", "503": "none"} {
		s := p.one(t, "istio_requests_total", "response_code", code)
		if !s.has("destination_workload", "order-v1", "connection_security_policy", secure) {
			t.Errorf("%s: %v", code, s)
		}
	}
	takenByKiali(t, p)
}

// Who answers says who it is only to who did so and has an identity, with each header that came.
func TestAnswers(t *testing.T) {
	o := newProcess(t, metrics.Config{}).Observer()
	for _, test := range []struct {
		name, peer string
		request    http.Header
		want       []string
	}{
		{"both", order, http.Header{asserted.PeerMetadata: {"x"}, asserted.PeerMetadataID: {"y"}}, []string{asserted.PeerMetadata, asserted.PeerMetadataID}},
		{"one", order, http.Header{asserted.PeerMetadataID: {"y"}}, []string{asserted.PeerMetadataID}},
		{"none", order, http.Header{"X-Other": {"y"}}, nil},
		{"from outside", "", http.Header{asserted.PeerMetadata: {"x"}, asserted.PeerMetadataID: {"y"}}, nil},
	} {
		in := &mesh.Inbound{Request: &http.Request{Header: test.request}, Peer: test.peer, ResponseHeader: http.Header{}, Start: time.Now()}
		o.InboundStart(context.Background(), in)
		if len(in.ResponseHeader) != len(test.want) {
			t.Errorf("%s: answered %v", test.name, in.ResponseHeader)
		}
		for _, name := range test.want {
			if in.ResponseHeader.Get(name) == "" {
				t.Errorf("%s: no %s", test.name, name)
			}
		}
	}
}

// The environment says who the process is, as Istio's agent has it.
func TestOwnLabels(t *testing.T) {
	t.Setenv("ISTIO_META_WORKLOAD_NAME", "order-v1")
	t.Setenv("ISTIO_META_CLUSTER_ID", "east")
	t.Setenv("ISTIO_META_OWNER", "kubernetes://apis/apps/v1/namespaces/shop/statefulsets/order-v1")
	t.Setenv("ISTIO_METAJSON_LABELS", `{"app": "orders", "version": "v1", "service.istio.io/canonical-name": "order"}`)
	t.Setenv("POD_NAMESPACE", "shop")
	own := func(c metrics.Config) map[string]string {
		p := newProcess(t, c)
		o := p.Observer()
		o.InboundEnd(context.Background(), &mesh.Inbound{Request: &http.Request{}, Start: time.Now(), Status: 200, GRPCStatus: -1})
		return p.one(t, "istio_requests_total").labels
	}
	for name, test := range map[string]struct {
		config metrics.Config
		want   map[string]string
	}{
		"environment": {want: map[string]string{
			"destination_workload": "order-v1", "destination_workload_namespace": "shop", "destination_app": "orders", "destination_version": "v1",
			"destination_canonical_service": "order", "destination_canonical_revision": "v1", "destination_cluster": "east",
			"destination_service": "order.shop.svc.cluster.local", "destination_service_name": "order", "destination_service_namespace": "shop",
		}},
		"options": {config: metrics.Config{
			Name: "mine", Cluster: "west", Service: "front.web", Workload: policy.Workload{Namespace: "web", Labels: map[string]string{}},
		}, want: map[string]string{
			"destination_workload": "mine", "destination_workload_namespace": "web", "destination_app": "mine", "destination_version": "unknown",
			"destination_canonical_service": "mine", "destination_canonical_revision": "latest", "destination_cluster": "west",
			"destination_service_name": "front.web",
		}},
		"the label of the name": {config: metrics.Config{Workload: policy.Workload{Labels: map[string]string{"service.istio.io/workload-name": "label"}}},
			want: map[string]string{"destination_workload": "label", "destination_canonical_service": "label"}},
		"the label of Kubernetes": {config: metrics.Config{Workload: policy.Workload{Labels: map[string]string{
			"app.kubernetes.io/name": "k", "app.kubernetes.io/version": "1.2",
		}}}, want: map[string]string{
			"destination_app": "k", "destination_canonical_service": "k", "destination_version": "1.2", "destination_canonical_revision": "1.2",
			"destination_workload": "order-v1",
		}},
	} {
		got := own(test.config)
		for label, want := range test.want {
			if got[label] != want {
				t.Errorf("%s: %s is %q, want %q", name, label, got[label], want)
			}
		}
	}
}

// The identity of a process may be renewed just when its mesh is ready.
func TestIdentityRenewedAtTheStart(t *testing.T) {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ca.Identity("shop", "orders")
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.New(t.Context(), mesh.WithEmptyPolicy())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	o := newProcess(t, metrics.Config{}).Observer()
	var renewed sync.WaitGroup
	renewed.Go(func() { o.Identity(id, nil) })
	o.Started(m)
	renewed.Wait()
}

// Whoever gives the workload to the mesh need not give it to the metrics again.
func TestWorkloadOfTheMesh(t *testing.T) {
	for name, test := range map[string]struct {
		config metrics.Config
		want   map[string]string
	}{
		"no Config": {want: map[string]string{
			"workload": "orders", "workload_namespace": "shop", "app": "orders", "version": "v2", "canonical_service": "orders",
		}},
		"a Config": {config: metrics.Config{Name: "orders-v2", Workload: policy.Workload{Namespace: "web"}}, want: map[string]string{
			"workload": "orders-v2", "workload_namespace": "web", "app": "orders", "version": "v2", "canonical_service": "orders",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, test.config)
			m, err := mesh.New(t.Context(), mesh.WithEmptyPolicy(), mesh.WithObserver(p.Observer()), mesh.WithWorkload(policy.Workload{
				Namespace: "shop", Labels: map[string]string{"app": "orders", "version": "v2"},
			}))
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			srv := httptest.NewServer(m.Handler(http.NotFoundHandler()))
			defer srv.Close()
			resp, err := m.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			for _, end := range []string{"source", "destination"} {
				got := p.one(t, "istio_requests_total", "reporter", end).labels
				for label, want := range test.want {
					if got[end+"_"+label] != want {
						t.Errorf("%s_%s is %q, want %q", end, label, got[end+"_"+label], want)
					}
				}
			}
			if name := "orders." + test.want["workload_namespace"] + ".svc.cluster.local"; p.total(t, "istio_requests_total", "destination_service", name) != 1 {
				t.Errorf("no request to %s: %v", name, p.scrape(t, "istio_requests_total"))
			}
		})
	}
}
