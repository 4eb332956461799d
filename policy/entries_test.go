package policy_test

import (
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// TestEntriesForServicesOfOthers: a ServiceEntry in a cluster cannot take over a Service for callers of other namespaces.
func TestEntriesForServicesOfOthers(t *testing.T) {
	const spec = "{hosts: [cart.shop.svc.cluster.local], location: MESH_INTERNAL, ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.6.6.6}]}"
	cart := object{kind: "Service of v1", name: "cart", uid: 1, spec: "{ports: [{port: 80}]}"}.source()
	for _, tt := range []struct {
		namespace string
		alone     bool
		with      []policy.Source
		want      bool
	}{
		{"other", true, []policy.Source{cart}, false},
		{"shop", true, []policy.Source{cart}, false},
		{"default", true, []policy.Source{cart}, true},
		{"other", true, nil, true},
		{"other", false, []policy.Source{cart}, true}, // in a folder it may be meant
	} {
		entry := object{kind: "ServiceEntry", namespace: tt.namespace, name: "cart", uid: 2, spec: spec}.source()
		entry.Alone = tt.alone
		plan, findings := policy.Compile(append(tt.with, entry), workload)
		if plan == nil {
			t.Fatal(findings)
		}
		if got := plan.Host("cart.shop.svc.cluster.local").Entry != nil; got != tt.want {
			t.Errorf("an entry of %s, alone %v, is in force: %v, want %v: %v", tt.namespace, tt.alone, got, tt.want, findings)
		}
		if warned := strings.Contains(findings.Error(), "is a Service of Kubernetes"); warned == tt.want {
			t.Errorf("an entry of %s, alone %v: findings %v", tt.namespace, tt.alone, findings)
		}
	}
}

// TestRefusedEntriesForServicesOfOthers: nor can one that is refused close it.
func TestRefusedEntriesForServicesOfOthers(t *testing.T) {
	const spec = "{hosts: [cart.shop.svc.cluster.local], location: MESH_INTERNAL, ports: [{number: 80, name: http}], resolution: STATIC, wrong: 1}"
	cart := object{kind: "Service of v1", name: "cart", uid: 1, spec: "{ports: [{port: 80}]}"}.source()
	for _, tt := range []struct {
		namespace string
		with      []policy.Source
		closed    bool
	}{
		{"other", []policy.Source{cart}, false},
		{"default", []policy.Source{cart}, true},
		{"other", nil, true},
	} {
		plan, findings := policy.Compile(append(tt.with, object{kind: "ServiceEntry", namespace: tt.namespace, name: "cart", uid: 2, spec: spec}.source()), workload)
		if plan == nil {
			t.Fatal(findings)
		}
		if got := plan.Cluster(route.Target{Host: "cart.shop.svc.cluster.local"}).Closed != ""; got != tt.closed {
			t.Errorf("a refused entry of %s closes the host: %v, want %v: %v", tt.namespace, got, tt.closed, findings)
		}
	}
}
