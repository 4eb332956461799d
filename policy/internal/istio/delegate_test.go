package istio_test

import (
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
)

// services decodes VirtualServices, which must be right, and indexes them by namespace and name.
func services(t *testing.T, text string) (all map[string]*istio.VirtualService, docs map[string]*yamldoc.Document) {
	t.Helper()
	all, docs = make(map[string]*istio.VirtualService), make(map[string]*yamldoc.Document)
	var dec yamldoc.Decoder
	for _, doc := range yamldoc.Parse([]byte(text))[0] {
		var vs istio.VirtualService
		if dec.Decode(doc, &vs) {
			vs.Check(doc)
		}
		if doc.Failed() {
			t.Fatal(doc.Problems)
		}
		name := vs.Namespace() + "/" + vs.Metadata.Name
		all[name], docs[name] = &vs, doc
	}
	return all, docs
}

func lookup(all map[string]*istio.VirtualService) func(namespace, name string) (*istio.VirtualService, bool) {
	return func(namespace, name string) (*istio.VirtualService, bool) {
		vs, ok := all[namespace+"/"+name]
		return vs, ok
	}
}

// document returns a VirtualService with the given hosts and routes.
func document(name, hosts, routes string) string {
	namespace, name, _ := strings.Cut(name, "/")
	return fmt.Sprintf("---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: %s, namespace: %s}\n"+
		"spec: {%shttp: [%s]}\n", name, namespace, hosts, routes)
}

func TestExpand(t *testing.T) {
	all, docs := services(t, document("shop/root", "hosts: [shop], ", `
		{name: cart, match: [{name: m, uri: {prefix: /cart}, headers: {x-a: {exact: a}}}], delegate: {name: cart, namespace: team},
		 timeout: 5s, retries: {attempts: 7}, rewrite: {uri: /}, fault: {abort: {httpStatus: 500, percentage: {value: 100}}},
		 mirror: {host: copy}, mirrorPercent: 50, headers: {request: {set: {x-root: "1"}}}},
		{match: [{uri: {exact: /gone}}], delegate: {name: none}},
		{match: [{uri: {exact: /hidden}}], delegate: {name: hidden, namespace: team}},
		{match: [{uri: {exact: /other}}], delegate: {name: other}},
		{name: rest, route: [{destination: {host: web}}]}`)+
		document("team/cart", "", `
		{name: v2, match: [{name: n, uri: {prefix: /cart/v2}, queryParams: {q: {exact: x}}}], route: [{destination: {host: cart}}],
		 timeout: 1s, retries: {attempts: 0}, rewrite: {authority: cart}, fault: {delay: {fixedDelay: 1s, percentage: {value: 100}}},
		 mirror: {host: here}, headers: {request: {set: {x-leaf: "1"}}}},
		{match: [{uri: {prefix: /user}}], route: [{destination: {host: user}}]},
		{route: [{destination: {host: cart, subset: v1}}]}`)+
		document("team/hidden", "exportTo: [.], ", "{route: [{destination: {host: a}}]}")+
		document("shop/other", "hosts: [other], ", "{route: [{destination: {host: a}}]}"))
	root := all["shop/root"]
	e := root.Expand(lookup(all))

	cart := all["team/cart"]
	wantOrigins := []istio.Origin{
		{Route: 0, Matches: []int{0}, Delegate: cart},
		{Route: 0, Matches: []int{0}, Delegate: cart, DelegateRoute: 2},
		{Route: 4},
	}
	if !reflect.DeepEqual(e.Origins, wantOrigins) {
		t.Errorf("Origins = %v, want %v", e.Origins, wantOrigins)
	}
	if want := []int{1, 2, 3}; !slices.Equal(e.Missing, want) { // not there, not exported, no delegate
		t.Errorf("Missing = %v, want %v", e.Missing, want)
	}
	if want := []istio.Origin{{Route: 0, Delegate: cart, DelegateRoute: 1}}; !reflect.DeepEqual(e.Dropped, want) {
		t.Errorf("Dropped = %v, want %v", e.Dropped, want)
	}
	if root.Spec.HTTP[0].Delegate == nil || len(root.Spec.HTTP) != 5 || cart.Spec.HTTP[2].Timeout.Set {
		t.Error("Expand changed its documents")
	}

	table := e.Table(docs["shop/root"], istio.Client{Namespace: "client", ClusterDomain: "cluster.local"})
	if table == nil {
		t.Fatal(docs["shop/root"].Problems)
	}
	exact := func(key, value string) route.KeyMatch {
		return route.KeyMatch{Key: key, Value: route.StringMatch{Kind: route.Exact, Value: value}}
	}
	prefix := func(value string) route.StringMatch { return route.StringMatch{Kind: route.Prefix, Value: value} }
	set := func(name string) []route.Header { return []route.Header{{Name: name, Value: "1"}} }

	// What the delegate says counts, as it means it.
	r := table.Rule(0).Route
	if r.Name != "cart-v2" || len(r.Matches) != 1 || r.Matches[0].Name != "m-n" || r.Matches[0].URI != prefix("/cart/v2") ||
		!slices.Equal(r.Matches[0].Headers, []route.KeyMatch{exact("x-a", "a")}) ||
		!slices.Equal(r.Matches[0].Query, []route.KeyMatch{exact("q", "x")}) {
		t.Errorf("route 0: %q, %+v", r.Name, r.Matches)
	}
	if got, want := r.Destinations[0].Target, (route.Target{Host: "cart.team.svc.cluster.local"}); got != want {
		t.Errorf("destination = %v, want %v", got, want)
	}
	if r.Timeout != time.Second || r.Retry.Retries != 0 || r.Rewrite != (route.Rewrite{Authority: "cart"}) ||
		r.Fault.Abort.Fraction != 0 || r.Fault.Delay.Fixed != time.Second || !slices.Equal(r.Headers.Request.Set, set("x-leaf")) {
		t.Errorf("route 0 = %+v", r)
	}
	if want := (route.Mirror{Target: route.Target{Host: "here.team.svc.cluster.local"}, Fraction: 0.5}); len(r.Mirrors) != 1 || r.Mirrors[0] != want {
		t.Errorf("mirrors = %v, want %v", r.Mirrors, want)
	}
	// What it leaves out is the root's, as the root means it.
	r = table.Rule(1).Route
	if r.Name != "cart" || len(r.Matches) != 1 || r.Matches[0].URI != prefix("/cart") || r.Timeout != 5*time.Second ||
		r.Retry.Retries != 7 || r.Rewrite.URI != "/" || r.Fault.Abort.HTTPStatus != 500 || !slices.Equal(r.Headers.Request.Set, set("x-root")) {
		t.Errorf("route 1 = %+v", r)
	}
	if want := (route.Mirror{Target: route.Target{Host: "copy.shop.svc.cluster.local"}, Fraction: 0.5}); len(r.Mirrors) != 1 || r.Mirrors[0] != want {
		t.Errorf("mirrors = %v, want %v", r.Mirrors, want)
	}
	if got, want := r.Destinations[0].Target, (route.Target{Host: "cart.team.svc.cluster.local", Subset: "v1"}); got != want {
		t.Errorf("destination = %v, want %v", got, want)
	}
}

// TestExpand_Merged checks what a match of both has of each, and the mirrors that only the root has, which may have both fields for them.
func TestExpand_Merged(t *testing.T) {
	all, docs := services(t, document("a/root", "hosts: [b], ", `
		{match: [{port: 8080, sourceLabels: {app: web}, queryParams: {q: {exact: a}}, withoutHeaders: {x: {exact: a}}}], delegate: {name: leaf},
		 mirror: {host: copy}, mirrorPercentage: {value: 30}},
		{delegate: {name: leaf}, mirrors: [{destination: {host: first}}, {destination: {host: second}, percentage: {value: 20}}]},
		{delegate: {name: leaf}, mirror: {host: copy}, mirrors: [{destination: {host: first}}]}`)+
		document("a/leaf", "", `{match: [{port: 0, sourceLabels: {tier: front}, queryParams: {r: {exact: b}}, withoutHeaders: {y: {exact: b}}}],
		 route: [{destination: {host: b}}]}`))
	e := all["a/root"].Expand(lookup(all))
	labels := map[string]string{"app": "web", "tier": "front"}
	if got := e.Spec.HTTP[0].Match[0].SourceLabels; !reflect.DeepEqual(got, labels) {
		t.Errorf("sourceLabels = %v, want %v", got, labels)
	}
	table := e.Table(docs["a/root"], istio.Client{Labels: labels, ClusterDomain: "cluster.local"})
	if table == nil {
		t.Fatal(docs["a/root"].Problems)
	}
	keys := func(matches []route.KeyMatch) (names string) {
		for _, m := range matches {
			names += m.Key + "=" + m.Value.Value + " "
		}
		return names
	}
	m := table.Rule(0).Route.Matches[0]
	if m.Port != 8080 || keys(m.Query) != "q=a r=b " || keys(m.WithoutHeaders) != "x=a y=b " {
		t.Errorf("match = %+v", m)
	}
	to := func(host string, fraction float64) route.Mirror {
		return route.Mirror{Target: route.Target{Host: host + ".a.svc.cluster.local"}, Fraction: fraction}
	}
	for i, want := range [][]route.Mirror{{to("copy", 0.3)}, {to("first", 1), to("second", 0.2)}, {to("copy", 1), to("first", 1)}} {
		if got := table.Rule(i).Route.Mirrors; !slices.Equal(got, want) {
			t.Errorf("mirrors of route %d = %v, want %v", i, got, want)
		}
	}
}

// TestExpand_Nothing checks that a document without delegates stays what it is.
func TestExpand_Nothing(t *testing.T) {
	all, _ := services(t, document("a/b", "hosts: [b], ", "{route: [{destination: {host: b}}]}, {redirect: {uri: /}}"))
	e := all["a/b"].Expand(func(string, string) (*istio.VirtualService, bool) {
		t.Error("lookup of a delegate")
		return nil, false
	})
	if e.VirtualService != all["a/b"] || !reflect.DeepEqual(e.Origins, []istio.Origin{{Route: 0}, {Route: 1}}) {
		t.Errorf("Expand = %+v", e)
	}
}

// TestExpand_DirectResponse checks that the root's answer takes the place of the delegate's destinations, as in Istio.
func TestExpand_DirectResponse(t *testing.T) {
	all, docs := services(t, document("a/root", "hosts: [b], ", "{delegate: {name: leaf}, directResponse: {status: 503}}")+
		document("a/leaf", "", "{route: [{destination: {host: b}}], rewrite: {uri: /x}}"))
	e := all["a/root"].Expand(lookup(all))
	table := e.Table(docs["a/root"], istio.Client{})
	if table == nil || table.Rule(0).Route.Direct == nil || table.Rule(0).Route.Direct.Status != http.StatusServiceUnavailable {
		t.Fatalf("table = %+v, %v", table, docs["a/root"].Problems)
	}
}

// TestExpand_Wrong checks where it is said that a delegate cannot be compiled: in the delegate's own document, and in
// the root where that names it.
func TestExpand_Wrong(t *testing.T) {
	all, docs := services(t, document("a/root", "hosts: [b], ", "{redirect: {uri: /}}, {delegate: {name: leaf}}")+
		document("a/leaf", "", "{route: [{destination: {host: b}, headers: {request: {set: {x-a: '%X%'}}}}]}"))
	e := all["a/root"].Expand(lookup(all))
	if e.Table(docs["a/root"], istio.Client{}) != nil {
		t.Fatal("a table")
	}
	all["a/leaf"].Table(docs["a/leaf"], istio.Client{})
	for name, want := range map[string]string{
		"a/root": "spec.http[1].delegate",
		"a/leaf": "spec.http[0].route[0].headers.request.set.x-a",
	} {
		found := docs[name].Problems
		if p := found[len(found)-1]; p.Path != want || p.Message != "%X% is not supported" {
			t.Errorf("%s: %+v, want %s", name, p, want)
		}
	}
}

// TestExpand_Within checks which match of the root each of a merged route lies within.
func TestExpand_Within(t *testing.T) {
	tests := []struct {
		name, root, leaf string
		want             []int
	}{
		{"none", "[]", "[]", nil},
		{"root only", "[{uri: {exact: /a}}, {uri: {exact: /b}}]", "[]", []int{0, 1}},
		{"leaf only", "[]", "[{uri: {exact: /a}}, {uri: {exact: /b}}]", []int{-1, -1}},
		{"both", "[{uri: {prefix: /a}}, {uri: {prefix: /}}]", "[{uri: {exact: /b}}, {uri: {exact: /a}}]", []int{1, 0, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all, _ := services(t, document("a/root", "hosts: [b], ", "{match: "+tt.root+", delegate: {name: leaf}}")+
				document("a/leaf", "", "{match: "+tt.leaf+", route: [{destination: {host: b}}]}"))
			e := all["a/root"].Expand(lookup(all))
			if got := e.Origins[0].Matches; !slices.Equal(got, tt.want) || len(e.Spec.HTTP[0].Match) != len(got) {
				t.Errorf("Matches = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestExpand_Matches has one case for each way in which the matches of root and delegate contradict each other or not.
func TestExpand_Matches(t *testing.T) {
	tests := []struct {
		name, root, leaf string
		dropped          bool
	}{
		{"no matches", "[]", "[]", false},
		{"root only", "[{uri: {prefix: /a}}]", "[]", false},
		{"leaf only", "[]", "[{uri: {prefix: /a}}]", false},
		{"prefix within prefix", "[{uri: {prefix: /a}}]", "[{uri: {prefix: /a/b}}]", false},
		{"prefix around prefix", "[{uri: {prefix: /a/b}}]", "[{uri: {prefix: /a}}]", true},
		{"exact within prefix", "[{uri: {prefix: /a}}]", "[{uri: {exact: /ab}}]", false},
		{"exact outside of prefix", "[{uri: {prefix: /a}}]", "[{uri: {exact: /b}}]", true},
		{"same exact", "[{method: {exact: GET}}]", "[{method: {exact: GET}}]", false},
		{"other exact", "[{method: {exact: GET}}]", "[{method: {exact: PUT}}]", true},
		{"prefix within exact", "[{scheme: {exact: http}}]", "[{scheme: {prefix: http}}]", true},
		{"regex in both", "[{uri: {regex: a}}]", "[{uri: {regex: a}}]", true},
		{"regex in root only", "[{uri: {regex: a}}]", "[{method: {exact: GET}}]", false},
		{"regex in leaf only", "[{method: {exact: GET}}]", "[{uri: {regex: a}}]", false},
		{"regex under prefix", "[{authority: {prefix: a}}]", "[{authority: {regex: a}}]", true},
		{"header presence", "[{headers: {x: {}}}]", "[{headers: {x: {exact: a}}}]", true},
		{"header of the same name", "[{headers: {x: {prefix: a}}}]", "[{headers: {x: {exact: ab}}}]", false},
		{"header of another value", "[{headers: {x: {exact: a}}}]", "[{headers: {x: {exact: b}}}]", true},
		{"header of another name", "[{headers: {x: {exact: a}}}]", "[{headers: {y: {exact: b}}}]", false},
		{"withoutHeaders", "[{withoutHeaders: {x: {exact: a}}}]", "[{withoutHeaders: {x: {exact: b}}}]", true},
		{"withoutHeaders and headers", "[{headers: {x: {exact: a}}}]", "[{withoutHeaders: {x: {exact: b}}}]", false},
		{"query", "[{queryParams: {x: {exact: a}}}]", "[{queryParams: {x: {exact: b}}}]", true},
		{"case", "[{uri: {prefix: /a}, ignoreUriCase: true}]", "[{uri: {prefix: /a}}]", true},
		{"port", "[{port: 80}]", "[{port: 81}]", true},
		{"port 0 of root", "[{port: 0}]", "[{port: 81}]", false},
		{"port 0 of leaf", "[{port: 80}]", "[{port: 0}]", false},
		{"port of one", "[{port: 80}]", "[{method: {exact: GET}}]", false},
		{"sourceNamespace of root only", "[{sourceNamespace: a}]", "[{method: {exact: GET}}]", true},
		{"sourceNamespace of leaf only", "[{method: {exact: GET}}]", "[{sourceNamespace: a}]", false},
		{"sourceLabels", "[{sourceLabels: {a: b}}]", "[{sourceLabels: {a: c}}]", true},
		{"sourceLabels of the same value", "[{sourceLabels: {a: b}}]", "[{sourceLabels: {a: b}}]", false},
		{"sourceLabels of another name", "[{sourceLabels: {a: b}}]", "[{sourceLabels: {b: c}}]", false},
		{"gateways within", "[{gateways: [mesh, g]}]", "[{gateways: [mesh]}]", false},
		{"gateways beyond", "[{gateways: [mesh, g]}]", "[{gateways: [h]}]", true},
		{"more gateways than the root", "[{gateways: [g]}]", "[{gateways: [root/g, root/g]}]", true},
		{"gateways of another namespace", "[{gateways: [g]}]", "[{gateways: [leaf/g]}]", true},
		{"gateways by full name", "[{gateways: [g]}]", "[{gateways: [root/g]}]", false},
		{"gateways by domain", "[{gateways: [g.root.svc.cluster.local]}]", "[{gateways: [root/g]}]", false},
		{"one of several roots", "[{uri: {exact: /a}}, {uri: {exact: /b}}]", "[{uri: {exact: /b}}]", false},
		{"one of several leaves", "[{uri: {exact: /a}}]", "[{uri: {exact: /a}}, {uri: {exact: /b}}]", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all, _ := services(t, document("root/a", "hosts: [b], ", "{match: "+tt.root+", delegate: {name: a, namespace: leaf}}")+
				document("leaf/a", "", "{match: "+tt.leaf+", route: [{destination: {host: b}}]}"))
			e := all["root/a"].Expand(lookup(all))
			if dropped := len(e.Dropped) == 1; dropped != tt.dropped || len(e.Spec.HTTP) == 0 != dropped {
				t.Errorf("dropped = %v, want %v; routes: %+v", dropped, tt.dropped, e.Spec.HTTP)
			}
		})
	}
}
