package istio_test

import (
	"reflect"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

func serviceEntry(t *testing.T, spec string) *istio.ServiceEntry {
	t.Helper()
	doc := yamldoc.Parse([]byte("apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x, namespace: ns}\nspec: " + spec))[0][0]
	var se istio.ServiceEntry
	if new(yamldoc.Decoder).Decode(doc, &se) {
		se.Check(doc)
	}
	if doc.Failed() {
		t.Fatal(doc.Problems)
	}
	return &se
}

func TestServiceEntry_Endpoints(t *testing.T) {
	const ports = "ports: [{name: http, number: 80, protocol: HTTP}, {name: grpc, number: 9000, protocol: GRPC, targetPort: 9001}]"
	own := []discovery.Port{{Name: "http", Number: 80}, {Name: "grpc", Number: 9000, Target: 9001}}
	tests := []struct {
		name, spec, host, resolution string
		want                         []discovery.Endpoint
	}{
		{"static", "{hosts: [a.com], " + ports + ", resolution: STATIC, endpoints: [" +
			"{address: 10.0.0.1, ports: {http: 8080}, labels: {version: v1}, locality: eu/eu-a/1, weight: 3, serviceAccount: sa}, " +
			"{address: '2001:db8::1', locality: us}]}",
			"a.com", istio.ResolutionStatic, []discovery.Endpoint{
				{
					Address: "10.0.0.1",
					Ports:   []discovery.Port{{Name: "http", Number: 80, Target: 8080}, {Name: "grpc", Number: 9000, Target: 9001}},
					Labels: map[string]string{
						"version":                       "v1",
						"topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-a", "topology.istio.io/subzone": "1",
						"security.istio.io/tlsMode": "istio",
					},
					Locality: discovery.Locality{Region: "eu", Zone: "eu-a", SubZone: "1"}, Weight: 3, ServiceAccount: "ns/sa",
				},
				{
					Address: "2001:db8::1", Ports: own, Locality: discovery.Locality{Region: "us"},
					Labels: map[string]string{"topology.kubernetes.io/region": "us"},
				},
			}},
		{"static without endpoints", "{hosts: [a.com], " + ports + ", resolution: STATIC}", "a.com", istio.ResolutionStatic, []discovery.Endpoint{}},
		{"the label of the locality", "{hosts: [a.com], resolution: STATIC, endpoints: [{address: 10.0.0.1, labels: {istio-locality: eu.eu-a}}]}",
			"a.com", istio.ResolutionStatic, []discovery.Endpoint{{
				Address: "10.0.0.1", Ports: []discovery.Port{}, Locality: discovery.Locality{Region: "eu", Zone: "eu-a"},
				Labels: map[string]string{
					"istio-locality": "eu.eu-a", "topology.kubernetes.io/region": "eu", "topology.kubernetes.io/zone": "eu-a",
				},
			}}},
		{"DNS of the hosts", "{hosts: [a.com, b.com], " + ports + ", resolution: DNS}", "b.com", istio.ResolutionDNS,
			[]discovery.Endpoint{{Address: "b.com", Ports: own}}},
		{"DNS of endpoints", "{hosts: [a.com], " + ports + ", resolution: DNS, endpoints: [{address: b.com}]}", "a.com", istio.ResolutionDNS,
			[]discovery.Endpoint{{Address: "b.com", Ports: own}}},
		{"DNS by address", "{hosts: [a.com], addresses: [10.9.9.9], " + ports + ", resolution: DNS}", "10.9.9.9", istio.ResolutionDNS,
			[]discovery.Endpoint{{Address: "a.com", Ports: own}}},
		{"DNS round robin", "{hosts: [a.com], " + ports + ", resolution: DNS_ROUND_ROBIN}", "a.com", istio.ResolutionDNSRoundRobin,
			[]discovery.Endpoint{{Address: "a.com", Ports: own}}},
		{"none", "{hosts: ['*.a.com'], " + ports + "}", "x.a.com", istio.ResolutionNone,
			[]discovery.Endpoint{{Address: "x.a.com", Ports: own}}},
		{"none by address", "{hosts: [a.com], addresses: [10.9.9.9], " + ports + "}", "10.9.9.9", istio.ResolutionNone,
			[]discovery.Endpoint{{Address: "10.9.9.9", Ports: own}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			se := serviceEntry(t, tt.spec)
			if got := se.Resolution(); got != tt.resolution {
				t.Errorf("Resolution() = %s, want %s", got, tt.resolution)
			}
			if got := se.Endpoints(tt.host); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("Endpoints(%q) =\n%+v, want\n%+v", tt.host, got, tt.want)
			}
		})
	}
}

func TestServiceEntry_Names(t *testing.T) {
	se := serviceEntry(t, "{hosts: [A.com., '*.b.com'], addresses: [10.9.9.9, 10.9.9.8/32, 10.0.0.0/8]}")
	if got, want := se.Names(), []string{"a.com", "*.b.com", "10.9.9.9", "10.9.9.8"}; !slices.Equal(got, want) {
		t.Errorf("Names() = %v, want %v", got, want)
	}
}

func TestServiceEntry_HTTP2(t *testing.T) {
	se := serviceEntry(t, "{hosts: [a.com], ports: [{name: a, number: 80, protocol: HTTP}, {name: b, number: 81, protocol: http2}, "+
		"{name: c, number: 82, protocol: gRPC}, {name: d, number: 83}]}")
	for port, want := range map[int]bool{80: false, 81: true, 82: true, 83: false, 84: false} {
		if got := se.HTTP2(port); got != want {
			t.Errorf("HTTP2(%d) = %v, want %v", port, got, want)
		}
	}
}
