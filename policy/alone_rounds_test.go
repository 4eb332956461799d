package policy_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

const (
	secured    = "{host: a, trafficPolicy: {tls: {mode: SIMPLE}}}"
	securedToo = "{host: a, trafficPolicy: {tls: {mode: SIMPLE, sni: a.example}}}"
)

// closed returns the document because of which calls to a host fail.
func (f *feed) closed(host string) string {
	return f.plan.Cluster(route.Target{Host: host, Port: 80}).Closed
}

// TestAlone_ClosedHostIsNoDocument: what closes the host of a refused DestinationRule is not in the way of other documents, nor they in its.
func TestAlone_ClosedHostIsNoDocument(t *testing.T) {
	t.Run("second of one name", func(t *testing.T) {
		f := newFeed(t)
		first := object{kind: "DestinationRule", name: "a", created: 1, spec: secured}
		second := object{kind: "DestinationRule", name: "a", created: 2, spec: securedToo}
		for range 2 {
			f.yields(first, second)
			f.refused("DestinationRule shop/a: denial")
			if got := f.closed("a"); got != "DestinationRule shop/a" {
				t.Errorf("the host is closed as %q", got)
			}
		}
	})
	t.Run("first of one name", func(t *testing.T) {
		f := newFeed(t)
		first := object{kind: "DestinationRule", name: "a", created: 1, spec: "{host: a, trafficPolicy: {tls: {mode: SOME}}}"}
		second := object{kind: "DestinationRule", name: "a", created: 2, spec: "{host: b, trafficPolicy: {tls: {mode: SIMPLE}}}"}
		f.yields(first, second)
		f.refused("DestinationRule shop/a: denial")
		if c := f.plan.Cluster(route.Target{Host: "b", Port: 80}); c.TLS.Mode != policy.TLSSimple || f.closed("a") == "" {
			t.Errorf("the cluster of b is %+v, want the second rule; a is closed as %q", c, f.closed("a"))
		}
	})
	t.Run("entries of Consul", func(t *testing.T) {
		f := newFeed(t)
		f.workload = policy.Workload{}
		f.static = []policy.Source{{Name: "own.yaml", Data: []byte("Kind: service-resolver\nName: a\nConnectTimeout: 3s\n")}}
		rule := object{kind: "DestinationRule", namespace: "default", name: "a", spec: "{host: a, trafficPolicy: {tls: {mode: SOME}}}"}
		f.yields(rule)
		f.refused("DestinationRule default/a: denial")
		if got := f.closed("a"); got != "DestinationRule default/a" {
			t.Errorf("the host is closed as %q", got)
		}
	})
}

// TestAlone_LastGoodThatIsRefusedCloses: if not even the last good version can be in force, what it has protected until then is closed, whatever
// the refused version says.
func TestAlone_LastGoodThatIsRefusedCloses(t *testing.T) {
	f := newFeed(t)
	f.workload = policy.Workload{}
	rule := object{kind: "DestinationRule", namespace: "default", name: "a", uid: 1, spec: secured}
	f.yields(rule)
	f.refused()
	rule.spec = "{host: [a]}"
	f.static = []policy.Source{{Name: "own.yaml", Data: []byte("Kind: service-resolver\nName: a\nConnectTimeout: 3s\n")}}
	f.yields(rule)
	f.refused("DestinationRule default/a: denial")
	if got := f.closed("a"); got != "DestinationRule default/a" {
		t.Errorf("the host is closed as %q", got)
	}
	f.static = nil // it is still the last good version
	f.yields(rule)
	f.refused("DestinationRule default/a: last good")
	if c := f.plan.Cluster(route.Target{Host: "a"}); c.TLS.Mode != policy.TLSSimple {
		t.Errorf("the cluster is %+v, want the last good rule", c)
	}
}

// TestAlone_LastGoodAndRefusedClose: if not even the last good version can be in force, both what it has protected and what the refused version is
// about are closed.
func TestAlone_LastGoodAndRefusedClose(t *testing.T) {
	f := newFeed(t)
	f.workload = policy.Workload{}
	rule := object{kind: "DestinationRule", namespace: "default", name: "a", uid: 1, spec: secured}
	f.yields(rule)
	rule.spec = "{host: c, wrong: 1, trafficPolicy: {tls: {mode: SIMPLE}}}"
	f.static = []policy.Source{{Name: "own.yaml", Data: []byte("Kind: service-resolver\nName: a\nConnectTimeout: 3s\n")}}
	f.yields(rule)
	f.refused("DestinationRule default/a: denial")
	f.closes("DestinationRule default/a", "a", "c")
}

// TestAlone_ItemOfChangedList: an item that is the same in a List that has changed is not blamed for what is new.
func TestAlone_ItemOfChangedList(t *testing.T) {
	list := func(status int) policy.Source {
		return policy.Source{Name: "list.yaml", Alone: true, Data: fmt.Appendf(nil, `{apiVersion: v1, kind: List, items: [
			{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: c, namespace: shop}, spec: %s}, # this one changes
			{apiVersion: linkerd.io/v1alpha2, kind: ServiceProfile, metadata: {name: b.shop.svc.cluster.local, namespace: shop},
				spec: {routes: [{name: r, condition: {pathRegex: '(/a$|/b)'}, timeout: 3s}]}}]}`, answering("c", status))}
	}
	route := object{kind: "VirtualService", name: "b", uid: 3, spec: "{hosts: [b], http: [{match: [{uri: {regex: '/a.*'}}], route: [{destination: {host: b}}]}]}"}
	f := newFeed(t)
	f.takes(list(201))
	f.takes(list(201)) // which is not parsed again
	f.refused()
	f.takes(list(202), route.source())
	f.refused("VirtualService shop/b: nothing")
	if got := f.status("c"); got != 202 {
		t.Errorf("the item that has changed answers %d, want 202", got)
	}
}

// TestAlone_EndlessRivals: documents that take each other's place, only to be refused in turn, are not refused one by one.
func TestAlone_EndlessRivals(t *testing.T) {
	const n = 100
	defer policy.SetMostShares(40)()
	profile := object{kind: "ServiceProfile", namespace: "other", name: "pay.other.svc.cluster.local", uid: 1,
		spec: "{routes: [{name: r, condition: {pathRegex: '(/a$|/b)'}, timeout: 3s}]}"}
	own := []policy.Source{{Name: "own.yaml", Data: []byte("Kind: service-resolver\nName: a\nConnectTimeout: 3s\n")}}
	for _, test := range []struct {
		name    string
		static  []policy.Source
		with    []object
		rival   func(i int) object
		refused int
	}{
		{"TrafficSplits", nil, []object{profile, {kind: "HTTPRouteGroup", namespace: "third", name: "x", uid: 2, spec: "{matches: [{name: m, pathRegex: '/c.*'}]}"}}, func(i int) object {
			return object{kind: "TrafficSplit", namespace: "third", name: fmt.Sprintf("s%03d", i), uid: 10 + i, spec: "{service: pay.other.svc.cluster.local, matches: [{kind: HTTPRouteGroup, name: x}], backends: [{service: b, weight: 1}]}"}
		}, n},
		{"VirtualServices with entries of Consul", own, nil, func(i int) object {
			return object{kind: "VirtualService", namespace: "default", name: fmt.Sprintf("v%03d", i), uid: 10 + i, spec: answering("a", 201)}
		}, n},
		{"DestinationRules with entries of Consul", own, nil, func(i int) object {
			return object{kind: "DestinationRule", namespace: "default", name: fmt.Sprintf("d%03d", i), uid: 10 + i, spec: fmt.Sprintf("{host: a, exportTo: ['*', n%d]}", i)}
		}, n},
		{"service-splitters", nil, []object{{kind: "ProxyDefaults of consul.hashicorp.com/v1alpha1", namespace: "default", name: "global", uid: 1, spec: "{config: {protocol: http}}"}}, func(i int) object {
			spec := "{splits: [{weight: 50, service: x}, {weight: 50, service: y}]}"
			return object{kind: "ServiceSplitter of consul.hashicorp.com/v1alpha1", namespace: "default", name: fmt.Sprintf("r%03d", i), uid: 10 + i, spec: spec}
		}, n - 19},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFeed(t)
			f.workload, f.static = policy.Workload{}, test.static
			objects := test.with
			for i := range n {
				objects = append(objects, test.rival(i))
			}
			sources := slices.Clone(test.static)
			for _, o := range objects {
				sources = append(sources, o.source())
			}
			if rounds := policy.Rounds(nil, sources, f.workload); rounds > 40 {
				t.Errorf("the documents were combined %d times", rounds)
			}
			f.yields(objects...)
			refused := make(map[string]bool)
			for _, d := range f.findings {
				if d.InForce != "" {
					refused[d.Name] = true
				}
			}
			if len(refused) != test.refused {
				t.Errorf("%d documents are refused, want %d:\n%v", len(refused), test.refused, f.findings[:min(3, len(f.findings))])
			}
		})
	}
}
