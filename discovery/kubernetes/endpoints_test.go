package kubernetes_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh/discovery/kubernetes"
)

const terminating = "conditions: {ready: false, serving: true, terminating: true}"

// where is where the process runs.
type where struct{ region, zone, node string }

// What the objects of a service say about its endpoints.
func TestEndpoints(t *testing.T) {
	const selects = "selector: {app: orders}, " + http80
	for _, test := range []struct {
		name     string
		objects  []string
		resolver where
		want     string
	}{
		{name: "no Service", objects: []string{sliceOf("a", "orders", "10.0.0.1")}, want: "unknown"},
		{name: "no slices", objects: []string{serviceOf("orders", http80)}, want: ""},
		{name: "slices without endpoints", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders")}, want: ""},
		{name: "slices of others", objects: []string{serviceOf("orders", http80), sliceOf("orders", "users", "10.0.0.1")}, want: ""},
		{name: "several slices, in the order of their names", objects: []string{serviceOf("orders", http80), sliceOf("b", "orders", "10.0.0.3"),
			sliceOf("a", "orders", "10.0.0.2", "10.0.0.1")}, want: "10.0.0.2 http:80>8080; 10.0.0.1 http:80>8080; 10.0.0.3 http:80>8080"},

		{name: "conditions that are not said", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 conditions: {}",
			"10.0.0.2 conditions: {ready: null}", "10.0.0.3 conditions: {ready: true}")},
			want: "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080; 10.0.0.3 http:80>8080"},
		{name: "not ready", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 conditions: {ready: false}", "10.0.0.2")},
			want: "10.0.0.2 http:80>8080"},
		{name: "none ready", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 conditions: {ready: false}")}, want: ""},
		{name: "terminating", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 "+terminating, "10.0.0.2")},
			want: "10.0.0.1 http:80>8080 draining; 10.0.0.2 http:80>8080"},
		{name: "ready though terminating, as publishNotReadyAddresses has it", objects: []string{serviceOf("orders", http80),
			sliceOf("a", "orders", "10.0.0.1 conditions: {ready: true, serving: true, terminating: true}")}, want: "10.0.0.1 http:80>8080"},
		{name: "none but those that end", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 "+terminating,
			"10.0.0.2 conditions: {ready: false, serving: false, terminating: true}", "10.0.0.3 conditions: {ready: false}",
			"10.0.0.4 conditions: {ready: false, terminating: true}")},
			want: "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080 draining; 10.0.0.4 http:80>8080"},

		{name: "only the first address counts", objects: []string{serviceOf("orders", http80),
			strings.Replace(sliceOf("a", "orders", "10.0.0.1"), `["10.0.0.1"]`, `["10.0.0.1", "10.0.0.2"]`, 1)}, want: "10.0.0.1 http:80>8080"},
		{name: "addresses that are none", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.01.0.1", "10.0.0.2")},
			want: "10.0.0.2 http:80>8080"},
		{name: "twice in a slice", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 "+terminating, "10.0.0.1", "10.0.0.1 "+terminating)},
			want: "10.0.0.1 http:80>8080"},
		{name: "twice in two slices", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1", "10.0.0.2"),
			sliceOf("b", "orders", "10.0.0.2", "10.0.0.1 conditions: {ready: false}")}, want: "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080"},
		{name: "an address on several ports", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1"),
			rawSlice("b", "orders", "addressType: IPv4, ports: [{name: http, port: 8081}]", "10.0.0.1")},
			want: "10.0.0.1 http:80>8080; 10.0.0.1 http:80>8081"},
		{name: "a slice for each port, as of hand-made Endpoints", objects: []string{
			serviceOf("orders", "ports: [{name: http, port: 80}, {name: grpc, port: 90}]"), sliceOf("a", "orders", "10.0.0.1"),
			rawSlice("b", "orders", "addressType: IPv4, ports: [{name: grpc, port: 9090}]", "10.0.0.1", "10.0.0.2")},
			want: "10.0.0.1 http:80>8080,grpc:90>9090; 10.0.0.2 grpc:90>9090"},

		{name: "a port without name", objects: []string{serviceOf("orders", "ports: [{port: 80}]"),
			rawSlice("a", "orders", "addressType: IPv4, ports: [{port: 8080}]", "10.0.0.1"),
			rawSlice("b", "orders", `addressType: IPv4, ports: [{name: "", port: 8081}]`, "10.0.0.2")}, want: "10.0.0.1 :80>8080; 10.0.0.2 :80>8081"},
		{name: "targetPort by name, two versions of the pod", objects: []string{serviceOf("orders", "ports: [{name: http, port: 80, targetPort: web}]"),
			sliceOf("a", "orders", "10.0.0.1"), rawSlice("b", "orders", "addressType: IPv4, ports: [{name: http, port: 9000}]", "10.0.0.2")},
			want: "10.0.0.1 http:80>8080; 10.0.0.2 http:80>9000"},
		{name: "several ports, in the order of the Service", objects: []string{
			serviceOf("orders", "ports: [{name: grpc, port: 90}, {name: http, port: 80}, {name: other, port: 70}]"),
			rawSlice("a", "orders", "addressType: IPv4, ports: [{name: http, port: 8080}, {name: grpc, port: 9090}, {name: more, port: 1}]", "10.0.0.1")},
			want: "10.0.0.1 grpc:90>9090,http:80>8080"},
		{name: "a port that stands for all", objects: []string{serviceOf("orders", http80),
			rawSlice("a", "orders", "addressType: IPv4, ports: [{name: http}]", "10.0.0.1")}, want: "10.0.0.1 http:80>0"},
		{name: "ports that are not TCP", objects: []string{
			serviceOf("orders", "ports: [{name: http, port: 80}, {name: dns, port: 53, protocol: UDP}, {name: sig, port: 54, protocol: SCTP}]"),
			rawSlice("a", "orders", "addressType: IPv4, ports: [{name: dns, port: 53, protocol: UDP}, {name: http, port: 8080}, {name: sig, port: 54, protocol: SCTP}]", "10.0.0.1")},
			want: "10.0.0.1 http:80>8080"},
		{name: "nothing but UDP", objects: []string{serviceOf("orders", "ports: [{name: dns, port: 53, protocol: UDP}]"),
			rawSlice("a", "orders", "addressType: IPv4, ports: [{name: dns, port: 53, protocol: UDP}]", "10.0.0.1")}, want: ""},
		{name: "no port of the Service", objects: []string{serviceOf("orders", http80),
			rawSlice("a", "orders", "addressType: IPv4, ports: [{name: other, port: 1}]", "10.0.0.1")}, want: ""},
		{name: "headless", objects: []string{serviceOf("orders", "clusterIP: None, "+http80), sliceOf("a", "orders", "10.0.0.1")}, want: "10.0.0.1 http:80>8080"},
		{name: "headless without ports", objects: []string{serviceOf("orders", "clusterIP: None"), rawSlice("a", "orders", "addressType: IPv4", "10.0.0.1")},
			want: "10.0.0.1"},
		{name: "ports that only the slice has", objects: []string{serviceOf("orders", "clusterIP: None"), sliceOf("a", "orders", "10.0.0.1")},
			want: "10.0.0.1 http:8080>8080"},

		{name: "dual stack", objects: []string{serviceOf("orders", "ipFamilies: [IPv4, IPv6], "+http80), sliceOf("a", "orders", "10.0.0.1"),
			rawSlice("b", "orders", "addressType: IPv6, ports: [{name: http, port: 8080}]", "fd00::1")}, want: "10.0.0.1 http:80>8080"},
		{name: "dual stack, IPv6 first", objects: []string{serviceOf("orders", "ipFamilies: [IPv6, IPv4], "+http80), sliceOf("a", "orders", "10.0.0.1"),
			rawSlice("b", "orders", "addressType: IPv6, ports: [{name: http, port: 8080}]", "fd00::1")}, want: "fd00::1 http:80>8080"},
		{name: "none of the first family", objects: []string{serviceOf("orders", "ipFamilies: [IPv6, IPv4], "+http80), sliceOf("a", "orders", "10.0.0.1"),
			rawSlice("b", "orders", "addressType: IPv6, ports: [{name: http, port: 8080}]", "fd00::1 conditions: {ready: false}")}, want: "10.0.0.1 http:80>8080"},
		{name: "names", objects: []string{serviceOf("orders", http80),
			rawSlice("a", "orders", "addressType: FQDN, ports: [{name: http, port: 8080}]", "a.example.com", "b.example.com")},
			want: "a.example.com http:80>8080; b.example.com http:80>8080"},

		{name: "zones", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 zone: z1, nodeName: n1", "10.0.0.2")},
			resolver: where{region: "eu"}, want: "10.0.0.1 http:80>8080 eu/z1; 10.0.0.2 http:80>8080 eu"},
		{name: "labels that say where pods are", objects: []string{serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 zone: z1, "+ref("u1"),
			"10.0.0.2 zone: z1, "+ref("u2"), "10.0.0.3 "+ref("u3"), "10.0.0.4 zone: z1, "+ref("u4"), "10.0.0.5 zone: z1, "+ref("u5")),
			podOf("a", "u1", "app: orders", "x"), podOf("b", "u2", "app: orders, topology.kubernetes.io/region: us, topology.kubernetes.io/zone: other", "x"),
			podOf("c", "u3", "app: orders, topology.kubernetes.io/zone: z3, topology.istio.io/subzone: r1", "x"), podOf("d", "u4", "app: orders, istio-locality: asia.z4.rack", "x"),
			podOf("e", "u5", "app: orders, istio-locality: asia, topology.kubernetes.io/zone: z5", "x")},
			resolver: where{region: "eu"}, want: "10.0.0.1 http:80>8080 eu/z1 shop/x [app:orders]; " +
				"10.0.0.2 http:80>8080 us/z1 shop/x [app:orders topology.kubernetes.io/region:us topology.kubernetes.io/zone:other]; " +
				"10.0.0.3 http:80>8080 eu/z3/r1 shop/x [app:orders topology.istio.io/subzone:r1 topology.kubernetes.io/zone:z3]; " +
				"10.0.0.4 http:80>8080 asia/z4/rack shop/x [app:orders istio-locality:asia.z4.rack]; " +
				"10.0.0.5 http:80>8080 asia shop/x [app:orders istio-locality:asia topology.kubernetes.io/zone:z5]"},
		{name: "hints for zones", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 hints: {forZones: [{name: z1}]}",
			"10.0.0.2 hints: {forZones: [{name: z2}]}", "10.0.0.3 hints: {forZones: [{name: z1}, {name: z2}]}", "10.0.0.4 "+terminating)},
			resolver: where{zone: "z2"}, want: "10.0.0.2 http:80>8080; 10.0.0.3 http:80>8080; 10.0.0.4 http:80>8080 draining"},
		{name: "hints for other zones", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 hints: {forZones: [{name: z1}]}")},
			resolver: where{zone: "z2"}, want: "10.0.0.1 http:80>8080"},
		{name: "hints and no zone", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 hints: {forZones: [{name: z1}]}")},
			want: "10.0.0.1 http:80>8080"},
		{name: "one without a hint", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 hints: {forZones: [{name: z2}]}", "10.0.0.2")},
			resolver: where{zone: "z2"}, want: "10.0.0.1 http:80>8080; 10.0.0.2 http:80>8080"},
		{name: "one without a hint that is not ready", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders",
			"10.0.0.1 hints: {forZones: [{name: z2}]}", "10.0.0.2 hints: {forZones: [{name: z1}]}", "10.0.0.3 conditions: {ready: false}")},
			resolver: where{zone: "z2"}, want: "10.0.0.1 http:80>8080"},
		{name: "hints for nodes before those for zones", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders",
			"10.0.0.1 hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}", "10.0.0.2 hints: {forZones: [{name: z1}], forNodes: [{name: n2}]}")},
			resolver: where{zone: "z1", node: "n2"}, want: "10.0.0.2 http:80>8080"},
		{name: "hints for other nodes", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders",
			"10.0.0.1 hints: {forZones: [{name: z1}], forNodes: [{name: n1}]}", "10.0.0.2 hints: {forZones: [{name: z2}], forNodes: [{name: n2}]}")},
			resolver: where{zone: "z1", node: "n3"}, want: "10.0.0.1 http:80>8080"},

		{name: "labels and account", objects: []string{serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1"), "10.0.0.2 "+ref("u2")),
			podOf("one", "u1", "app: orders, version: v1", "seller"), podOf("two", "u2", "app: orders, version: v2", "default")},
			want: "10.0.0.1 http:80>8080 shop/seller [app:orders version:v1]; 10.0.0.2 http:80>8080 shop/default [app:orders version:v2]"},
		{name: "a pod of another uid, as StatefulSets have it", objects: []string{serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1"), "10.0.0.2 "+ref("u2")),
			podOf("one", "u3", "app: orders, version: v1", "seller"), podOf("two", "u2", "app: orders", "seller")}, want: "10.0.0.2 http:80>8080 shop/seller [app:orders]"},
		{name: "pods on one address", objects: []string{serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")),
			rawSlice("b", "orders", "addressType: IPv4, ports: [{name: http, port: 8081}]", "10.0.0.1 "+ref("u2")),
			podOf("one", "u1", "app: orders, version: v1", "a"), podOf("two", "u2", "app: orders, version: v2", "b")},
			want: "10.0.0.1 http:80>8080 shop/a [app:orders version:v1]; 10.0.0.1 http:80>8081 shop/b [app:orders version:v2]"},
		{name: "pods on one address, each with a port of the Service", objects: []string{
			serviceOf("orders", "selector: {app: orders}, ports: [{name: http, port: 80}, {name: grpc, port: 90}]"), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")),
			rawSlice("b", "orders", "addressType: IPv4, ports: [{name: grpc, port: 9090}]", "10.0.0.1 "+ref("u2")),
			podOf("one", "u1", "app: orders", "a"), podOf("two", "u2", "app: orders", "b")},
			want: "10.0.0.1 http:80>8080 shop/a [app:orders]; 10.0.0.1 grpc:90>9090 shop/b [app:orders]"},
		{name: "hand-made beside pods", objects: []string{serviceOf("orders", selects), sliceOf("a", "orders", "10.0.0.1")}, want: "10.0.0.1 http:80>8080"},
		{name: "without selector", objects: []string{serviceOf("orders", http80), sliceOf("a", "orders", "10.0.0.1 "+ref("u1")),
			podOf("one", "u1", "app: orders", "seller")}, want: "10.0.0.1 http:80>8080"},
		{name: "another name of an address", objects: []string{serviceOf("orders", "type: ExternalName, externalName: 192.0.2.7")}, want: "192.0.2.7"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer()
				s.Apply(test.objects...)
				r := &kubernetes.Resolver{Client: clientOf(t, s), Zone: test.resolver.zone, Node: test.resolver.node, Region: test.resolver.region}
				l := listen(t, r, orders)
				l.want("the start", test.want)
				if n := l.number(); n != 1 {
					t.Errorf("%d answers, want 1", n)
				}
			})
		})
	}
}

// While a rollout adds a port, the slices of the old pods do not have it. These pods get no calls to it, nor to ports that the Service does not have.
func TestEndpoints_PortsThatAreNotServed(t *testing.T) {
	const both = "ports: [{name: http, port: 80}, {name: grpc, port: 90}]"
	old := sliceOf("a", "orders", "10.0.0.1")
	young := rawSlice("b", "orders", "addressType: IPv4, ports: [{name: http, port: 8080}, {name: grpc, port: 9090}]", "10.0.0.2")
	for _, test := range []struct {
		name    string
		objects []string
		want    string // what is dialled for the ports 80, 90 and 7070; 0 for no calls
	}{
		{"a rollout", []string{serviceOf("orders", both), old, young}, "10.0.0.1 8080 0 0; 10.0.0.2 8080 9090 0"},
		{"before the Service has the port", []string{serviceOf("orders", http80), old, young}, "10.0.0.1 8080 0 0; 10.0.0.2 8080 0 0"},
		{"a headless Service, whose name leads to any port", []string{serviceOf("orders", "clusterIP: None, "+both), old}, "10.0.0.1 8080 90 7070"},
		{"slices that say nothing about ports", []string{serviceOf("orders", both), rawSlice("a", "orders", "addressType: IPv4", "10.0.0.1")}, "10.0.0.1 80 90 7070"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newServer()
				s.Apply(test.objects...)
				r := &kubernetes.Resolver{Client: clientOf(t, s)}
				for endpoints, err := range r.Watch(t.Context(), orders) {
					var got []string
					for _, e := range endpoints {
						got = append(got, fmt.Sprintf("%s %d %d %d", e.Address, e.DialPort(80), e.DialPort(90), e.DialPort(7070)))
					}
					if text := strings.Join(got, "; "); text != test.want || err != nil {
						t.Errorf("%s, %v, want %s", text, err, test.want)
					}
					break
				}
			})
		})
	}
}
