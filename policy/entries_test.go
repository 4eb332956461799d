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

// TestEntriesForAddressesOfOthers: nor can it take over an address, which may be that of a Service or of a pod.
func TestEntriesForAddressesOfOthers(t *testing.T) {
	const spec = "{hosts: [db.example.com], addresses: [192.0.2.0/24, %s], location: MESH_INTERNAL, ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.6.6.6}]}"
	for _, tt := range []struct {
		address, called, namespace string
		alone, want                bool
	}{
		{"10.96.0.5", "10.96.0.5", "other", true, false},
		{"10.96.0.5/32", "10.96.0.5", "other", true, false},
		{"'fd00::5'", "[fd00::5]:80", "other", true, false},
		{"'::ffff:10.96.0.5'", "10.96.0.5", "other", true, false},
		{"10.96.0.5", "10.96.0.5", "default", true, true},
		{"10.96.0.5", "10.96.0.5", "istio-system", true, true},
		{"10.96.0.5", "10.96.0.5", "other", false, true}, // in a folder it may be meant
		{"'::ffff:10.96.0.5'", "10.96.0.5", "default", true, true},
	} {
		entry := object{kind: "ServiceEntry", namespace: tt.namespace, name: "db", uid: 1, spec: fmt.Sprintf(spec, tt.address)}.source()
		entry.Alone = tt.alone
		plan, findings := policy.Compile([]policy.Source{entry}, workload)
		if plan == nil {
			t.Fatal(findings)
		}
		h := plan.Host(tt.called)
		if got := h.Entry != nil; got != tt.want || h.Known != tt.want {
			t.Errorf("an entry of %s has the address %s, alone %v: %v (known %v), want %v", tt.namespace, tt.address, tt.alone, got, h.Known, tt.want)
		}
		if warned := strings.Contains(findings.Error(), "spec.addresses[1]: warning: has no effect in other namespaces than other"); warned == tt.want {
			t.Errorf("an entry of %s for %s, alone %v: findings %v", tt.namespace, tt.address, tt.alone, findings)
		}
		if plan.Host("db.example.com").Entry == nil {
			t.Errorf("an entry of %s for %s has lost its host", tt.namespace, tt.address)
		}
	}
}

// TestEntriesWithOneAddress: the first of two entries with the same address counts, and the other one says so.
func TestEntriesWithOneAddress(t *testing.T) {
	const entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: %[1]s}\n" +
		"spec: {hosts: [%[1]s.example.com], addresses: [192.0.2.0/24, 192.0.2.7], location: MESH_EXTERNAL, ports: [{number: 80, name: http}], resolution: DNS}\n"
	plan, findings := policy.Compile([]policy.Source{{Name: "x.yaml", Data: fmt.Appendf(nil, strings.ReplaceAll(entry, "192.0.2.0/24, ", "")+"---\n"+
		strings.ReplaceAll(strings.ReplaceAll(entry, "[1]", "[2]"), "DNS", "NONE"), "a", "b")}}, workload)
	if plan == nil {
		t.Fatal(findings)
	}
	if e := plan.Host("192.0.2.7").Entry; e == nil || e.Document != "ServiceEntry default/a" {
		t.Errorf("the address is one of %+v, want ServiceEntry default/a", e)
	}
	const want = "spec.addresses[1]: warning: has no effect: ServiceEntry default/a claims 192.0.2.7 already (x.yaml:1), and the first one counts"
	if !strings.Contains(findings.Error(), want) {
		t.Errorf("findings %v, want %q", findings, want)
	}
}
