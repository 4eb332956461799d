package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// TestEntriesForServicesOfOthers: a ServiceEntry in a cluster cannot take over a Service for callers of other namespaces, nor what may be one.
func TestEntriesForServicesOfOthers(t *testing.T) {
	const spec = "{hosts: [%s], location: MESH_INTERNAL, ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.6.6.6}]}"
	cart := object{kind: "Service of v1", name: "cart", uid: 1, spec: "{ports: [{port: 80}]}"}.source()
	const full = "cart.shop.svc.cluster.local"
	known := []policy.Source{cart}
	for _, tt := range []struct {
		host, namespace string
		alone           bool
		with            []policy.Source
		want            bool
	}{
		{full, "other", true, known, false},
		{full, "shop", true, known, false},
		{full, "istio-system", true, known, false},
		{full, "default", true, known, true},
		{full, "other", false, known, true}, // in a folder it may be meant

		// No document says that there is a Service, but there may be one.
		{full, "other", true, nil, false},
		{full, "shop", true, nil, true},
		{full, "istio-system", true, nil, true},
		{full, "default", true, nil, true},
		{full, "other", false, nil, true},

		{"cart.shop", "other", true, known, false},
		{"cart.shop", "other", true, nil, true}, // a domain like any other
		{"cart.shop", "default", true, known, true},

		// A Service is more specific than a wildcard.
		{"'*.shop.svc.cluster.local'", "other", true, known, false},
		{"'*.svc.cluster.local'", "other", true, known, false},
		{"'*.cluster.local'", "other", true, known, false},
		{"'*.local'", "other", true, known, false},
		{"'*.local'", "other", true, nil, false},
		{"'*.svc.cluster.local'", "shop", true, nil, false},
		{"'*.shop.svc.cluster.local'", "shop", true, known, false},
		{"'*.shop.svc.cluster.local'", "shop", true, nil, true},
		{"'*.svc.cluster.local'", "istio-system", true, known, false},
		{"'*.svc.cluster.local'", "istio-system", true, nil, true},
		{"'*.shop.svc.cluster.local'", "default", true, known, false},
		{"'*.shop.svc.cluster.local'", "default", true, nil, true},
		{"'*.shop.svc.cluster.local'", "other", false, known, true},
	} {
		entry := object{kind: "ServiceEntry", namespace: tt.namespace, name: "cart", uid: 2, spec: fmt.Sprintf(spec, tt.host)}.source()
		entry.Alone = tt.alone
		plan, findings := policy.Compile(append(tt.with, entry), workload)
		if plan == nil {
			t.Fatal(findings)
		}
		called := full
		if !strings.Contains(tt.host, ".local") {
			called = tt.host
		}
		if got := plan.Host(called).Entry != nil; got != tt.want {
			t.Errorf("an entry of %s for %s, alone %v, is in force: %v, want %v: %v", tt.namespace, tt.host, tt.alone, got, tt.want, findings)
		}
		hidden := strings.HasPrefix(tt.host, "'*") && tt.namespace != "other" && !(tt.namespace == "shop" && tt.host == "'*.svc.cluster.local'")
		if warned := strings.Contains(findings.Error(), "a Service of Kubernetes"); warned != (!tt.want && !hidden) {
			t.Errorf("an entry of %s for %s, alone %v: findings %v", tt.namespace, tt.host, tt.alone, findings)
		}
	}
}

// TestRefusedEntriesForServicesOfOthers: nor can one that is refused close it.
func TestRefusedEntriesForServicesOfOthers(t *testing.T) {
	const spec = "{hosts: [%s], location: MESH_INTERNAL, ports: [{number: 80, name: http}], resolution: STATIC, wrong: 1}"
	const full = "cart.shop.svc.cluster.local"
	cart := object{kind: "Service of v1", name: "cart", uid: 1, spec: "{ports: [{port: 80}]}"}.source()
	for _, tt := range []struct {
		host, namespace string
		with            []policy.Source
		closed          bool
	}{
		{full, "other", []policy.Source{cart}, false},
		{full, "default", []policy.Source{cart}, true},
		{full, "other", nil, false},
		{full, "shop", nil, true},
		{full, "istio-system", nil, true},
		{"'*.svc.cluster.local'", "other", nil, false},
		{"'*.local'", "other", nil, false},
		{"'*.shop.svc.cluster.local'", "shop", nil, true},
	} {
		entry := object{kind: "ServiceEntry", namespace: tt.namespace, name: "cart", uid: 2, spec: fmt.Sprintf(spec, tt.host)}.source()
		plan, findings := policy.Compile(append(tt.with, entry), workload)
		if plan == nil {
			t.Fatal(findings)
		}
		if got := plan.Cluster(route.Target{Host: "cart.shop.svc.cluster.local"}).Closed != ""; got != tt.closed {
			t.Errorf("a refused entry of %s for %s closes the host: %v, want %v: %v", tt.namespace, tt.host, got, tt.closed, findings)
		}
	}
}
