package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// ofAccount is a process of the service account web in the namespace shop.
var ofAccount = policy.Workload{Namespace: "shop", ServiceAccount: "web"}

const targetsFile = `
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: pages, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: web, namespace: shop}
  rules: [{kind: HTTPRouteGroup, name: pages, matches: [read, admin]}]
  sources: [{kind: ServiceAccount, name: api, namespace: shop}, {kind: ServiceAccount, name: robot, namespace: ops}]
---
apiVersion: access.smi-spec.io/v1alpha2
kind: TrafficTarget
metadata: {name: all, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: web, port: 8080}
  rules: [{kind: HTTPRouteGroup, name: early}]
  sources: [{kind: ServiceAccount, name: old, namespace: shop}]
---
apiVersion: access.smi-spec.io/v1alpha1
kind: TrafficTarget
metadata: {name: tcp, namespace: shop}
destination: {kind: ServiceAccount, name: web, port: 9090}
specs: [{kind: TCPRoute, name: plain}]
sources: [{kind: ServiceAccount, name: db, namespace: shop}]
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: ports, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: web}
  rules: [{kind: TCPRoute, name: ports}, {kind: HTTPRouteGroup, name: early}]
  sources: [{kind: ServiceAccount, name: both, namespace: shop}]
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: others, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: other}
  rules: [{kind: TCPRoute, name: plain}]
  sources: [{kind: ServiceAccount, name: stranger, namespace: shop}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: pages, namespace: shop}
spec:
  matches:
  - {name: read, pathRegex: "/pages/.*", methods: [GET, HEAD]}
  - {name: admin, pathRegex: "/admin", headers: {x-role: "ro.*"}}
  - {name: secret, pathRegex: "/secret"}
---
apiVersion: specs.smi-spec.io/v1alpha2
kind: HTTPRouteGroup
metadata: {name: early, namespace: shop}
matches:
- {name: all, methods: ["*"]}
---
apiVersion: specs.smi-spec.io/v1alpha1
kind: TCPRoute
metadata: {name: plain, namespace: shop}
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: TCPRoute
metadata: {name: ports, namespace: shop}
spec: {matches: {ports: [8080, 9090]}}
`

// targetsOf compiles documents of files.
func targetsOf(t *testing.T, w policy.Workload, documents string) *policy.Inbound {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "targets.yaml", Data: []byte(documents)}}, w)
	if plan == nil {
		t.Fatal(findings)
	}
	return plan.Inbound()
}

// from returns a request. The identity is written as NAMESPACE/ACCOUNT, and "tcp" is the method of a raw connection.
func requestFrom(account, method, target string, port uint16, header ...string) *authz.Request {
	r := &authz.Request{Method: method, Target: target, Host: "web", Header: http.Header{}, L4: method == "tcp",
		Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), port)}
	if namespace, name, ok := strings.Cut(account, "/"); ok {
		r.Principal = "cluster.local/ns/" + namespace + "/sa/" + name
	} else {
		r.Principal = account
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

func TestTrafficTargets(t *testing.T) {
	in := targetsOf(t, ofAccount, targetsFile)
	if !in.Authorizes() {
		t.Error("it does not authorize")
	}
	for _, test := range []struct {
		name string
		r    *authz.Request
		by   string // the document that allows it
	}{
		{"a match", requestFrom("shop/api", "GET", "/pages/1", 80), "pages"},
		{"another source", requestFrom("ops/robot", "HEAD", "/pages/1", 80), "pages"},
		{"another namespace", requestFrom("ops/api", "GET", "/pages/1", 80), ""},
		{"another service account", requestFrom("shop/robot", "GET", "/pages/1", 80), ""},
		{"another trust domain", requestFrom("td/ns/shop/sa/api", "GET", "/pages/1", 80), ""},
		{"more than the identity", requestFrom("cluster.local/ns/shop/sa/api/x", "GET", "/pages/1", 80), ""},
		{"no identity", requestFrom("", "GET", "/pages/1", 80), ""},
		{"another method", requestFrom("shop/api", "POST", "/pages/1", 80), ""},
		{"another path", requestFrom("shop/api", "GET", "/other", 80), ""},
		{"the start of a path only", requestFrom("shop/api", "GET", "/x/pages/1", 80), ""},
		{"a match that is not named", requestFrom("shop/api", "GET", "/secret", 80), ""},
		{"a header", requestFrom("shop/api", "PUT", "/admin/x", 80, "x-role", "root"), "pages"},
		{"without the header", requestFrom("shop/api", "PUT", "/admin/x", 80), ""},
		{"a part of the header", requestFrom("shop/api", "PUT", "/admin/x", 80, "x-role", "not root"), ""},
		{"two headers", requestFrom("shop/api", "PUT", "/admin/x", 80, "x-role", "root", "x-role", "user"), ""},
		{"dots", requestFrom("shop/api", "GET", "/pages/../secret", 80), ""},
		{"escaped dots", requestFrom("shop/api", "GET", "/pages/%2e%2e/secret", 80), ""},
		{"escaped slashes", requestFrom("shop/api", "GET", "/pages/..%2Fsecret", 80), ""},
		{"backslashes", requestFrom("shop/api", "GET", `/pages/..\secret`, 80), ""},
		{"parameters", requestFrom("shop/api", "GET", "/pages;/../secret", 80), ""},
		{"malformed", requestFrom("shop/api", "GET", "/pages/%", 80), ""},
		{"a raw connection", requestFrom("shop/api", "tcp", "", 80), ""},
		{"the port", requestFrom("shop/old", "PATCH", "/any", 8080), "all"},
		{"another port", requestFrom("shop/old", "PATCH", "/any", 80), ""},
		{"an unknown port", requestFrom("shop/old", "PATCH", "/any", 0), ""},
		{"a raw connection, if matches are of HTTP", requestFrom("shop/old", "tcp", "", 8080), ""},
		{"a raw connection", requestFrom("shop/db", "tcp", "", 9090), "tcp"},
		{"a raw connection to another port", requestFrom("shop/db", "tcp", "", 8080), ""},
		{"a request, if all traffic is allowed", requestFrom("shop/db", "POST", "/", 9090), "tcp"},
		{"a port of the TCPRoute", requestFrom("shop/both", "GET", "/", 9090), "ports"},
		{"another port than those of the TCPRoute", requestFrom("shop/both", "GET", "/", 80), ""},
		{"a raw connection to a port of requests", requestFrom("shop/both", "tcp", "", 8080), ""},
		{"a source of another destination", requestFrom("shop/stranger", "GET", "/", 80), ""},
	} {
		d, want := in.Authorize(test.r), test.by
		if want != "" {
			want = "TrafficTarget shop/" + want
		}
		if d.Allowed != (want != "") || d.Policy != want {
			t.Errorf("%s: allowed %t by %q (%s), want by %q", test.name, d.Allowed, d.Policy, d.Reason, want)
		}
	}
	for name, w := range map[string]policy.Workload{
		"another service account":   {Namespace: "shop", ServiceAccount: "third"},
		"that of another namespace": {Namespace: "ops", ServiceAccount: "web"},
	} {
		if d := targetsOf(t, w, targetsFile).Authorize(requestFrom("", "GET", "/", 80)); !d.Allowed {
			t.Errorf("%s: no TrafficTarget is about the workload, and a request is denied: %s", name, d.Reason)
		}
	}
}

// A request must be allowed by AuthorizationPolicies, too.
func TestTrafficTargetsBesideAuthorizationPolicies(t *testing.T) {
	const policies = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: paths, namespace: shop}
spec: {rules: [{to: [{operation: {paths: [/pages/1, /other]}}]}]}
`
	in := targetsOf(t, ofAccount, targetsFile+policies)
	for path, want := range map[string]bool{"/pages/1": true, "/pages/2": false, "/other": false} {
		if d := in.Authorize(requestFrom("shop/api", "GET", path, 80)); d.Allowed != want {
			t.Errorf("%s: %+v", path, d)
		}
	}
}

// While the service account is not known, a TrafficTarget of the namespace closes the workload, and says what to set.
func TestTrafficTargetsForAnUnknownAccount(t *testing.T) {
	for _, test := range []struct {
		w      policy.Workload
		denies bool
	}{
		{policy.Workload{Namespace: "shop"}, true},
		{policy.Workload{Namespace: "ops"}, false},
		{ofAccount, false},
	} {
		_, rest, _ := strings.Cut(targetsFile, "---\n")
		plan, findings := policy.Compile([]policy.Source{{Name: "targets.yaml", Data: []byte(rest)}}, test.w)
		if plan == nil {
			t.Fatal(findings)
		}
		if said := strings.Contains(findings.Error(), "set ServiceAccount in mesh.WithWorkload, or the variable SERVICE_ACCOUNT"); said != test.denies {
			t.Errorf("%+v: the findings are %v", test.w, findings)
		}
		d := plan.Inbound().Authorize(requestFrom("shop/old", "GET", "/", 8080))
		if d.Allowed == test.denies || !plan.Inbound().Authorizes() && test.denies {
			t.Errorf("%+v: %+v", test.w, d)
		}
		if test.denies && !strings.Contains(d.Reason, "the service account of the process is not known, so TrafficTarget shop/all may be about it") {
			t.Errorf("the reason is %q", d.Reason)
		}
	}
	_, findings := policy.Compile(nil, policy.Workload{ServiceAccount: "shop/web"})
	if !strings.Contains(findings.Error(), `"shop/web" is not the name of a service account`) {
		t.Errorf("the findings are %v", findings)
	}
}

// targetParts are documents that stand alone, of which one allows each of a few requests to the other's account.
var targetParts = []object{
	{kind: "TrafficTarget", name: "x", uid: 1, spec: "{destination: {kind: ServiceAccount, name: web}, rules: [{kind: HTTPRouteGroup, name: g}], sources: [{kind: ServiceAccount, name: api, namespace: shop}]}"},
	{kind: "TrafficTarget", name: "y", uid: 2, spec: "{destination: {kind: ServiceAccount, name: web}, rules: [{kind: HTTPRouteGroup, name: g}, {kind: TCPRoute, name: p}], sources: [{kind: ServiceAccount, name: db, namespace: shop}]}"},
	{kind: "HTTPRouteGroup", name: "g", uid: 3, spec: "{matches: [{name: a, pathRegex: /a}]}"},
	{kind: "TCPRoute of specs.smi-spec.io/v1alpha4", name: "p", uid: 4, spec: "{matches: {ports: [80]}}"},
}

// TestAlone_TrafficTargets has documents arrive, break and go away in every order: as long as a TrafficTarget is there, nothing is allowed that
// those that are valid do not allow.
func TestAlone_TrafficTargets(t *testing.T) {
	const absent, good, broken = 0, 1, 2
	total := 0
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		f := newFeed(t)
		f.workload = ofAccount
		state, last := [4]int{}, [4]bool{} // what there is of each, and whether a good version was there before
		for range 20 {
			i := rng.IntN(4)
			state[i] = rng.IntN(3)
			last[i] = state[i] == good || state[i] == broken && last[i]
			var objects []object
			for i, o := range targetParts {
				switch state[i] {
				case broken:
					o.spec = strings.Replace(strings.Replace(o.spec, "kind: ServiceAccount, name: web", "kind: ServiceAccount, name: web, prot: 1", 1), "matches: ", "match: ", 1)
					fallthrough
				case good:
					objects = append(objects, o)
				}
			}
			rng.Shuffle(len(objects), func(i, j int) { objects[i], objects[j] = objects[j], objects[i] })
			f.yields(objects...)
			closed := state[0] == broken && !last[0] || state[1] == broken && !last[1]
			on := state[0] != absent || state[1] != absent
			for _, r := range []*authz.Request{
				requestFrom("shop/api", "GET", "/a", 80), requestFrom("shop/api", "GET", "/a", 8080), requestFrom("shop/db", "GET", "/a", 80),
				requestFrom("shop/db", "GET", "/a", 8080), requestFrom("shop/db", "tcp", "", 80), requestFrom("shop/api", "GET", "/b", 80), requestFrom("", "GET", "/a", 80),
			} {
				matches := r.Target == "/a" && state[2] != absent && last[2]
				want := !on || !closed && (state[0] != absent && strings.HasSuffix(r.Principal, "/api") && matches ||
					state[1] != absent && strings.HasSuffix(r.Principal, "/db") && matches && state[3] != absent && last[3] && r.Destination.Port() == 80)
				if d := f.plan.Inbound().Authorize(r); d.Allowed != want {
					t.Fatalf("seed %d, states %v, good before %v: %s %s at %d by %q: %+v, want %t", seed, state, last, r.Method, r.Target, r.Destination.Port(), r.Principal, d, want)
				}
				total++
			}
		}
	}
	if total != 30*20*7 {
		t.Errorf("%d requests were decided about", total)
	}
}

// TestAlone_TrafficTargetOfAnotherAccount: a refused one closes only the workloads of its destination, if that can be read.
func TestAlone_TrafficTargetOfAnotherAccount(t *testing.T) {
	for spec, denies := range map[string]bool{
		"{destination: {kind: ServiceAccount, name: web}}":                           true,
		"{destination: {kind: ServiceAccount, name: other}}":                         false,
		"{destination: {kind: ServiceAccount, name: other, name: web}}":              true,
		"{destination: {kind: ServiceAccount, name: [other]}}":                       true,
		"{destination: {kind: ServiceAccount, name: Web}}":                           true,
		"{destination: {kind: IdentityBinding, name: other}}":                        true,
		"{destination: {name: other}}":                                               true,
		"{destination: {kind: ServiceAccount}}":                                      true,
		"{destination: other}":                                                       true,
		"{}":                                                                         true,
		"[]":                                                                         true,
		"{destination: {kind: ServiceAccount, name: other, namespace: ops}}":         false,
		"{destination: {kind: ServiceAccount, name: web, namespace: ops}}":           true,
		"{Destination: {kind: ServiceAccount, name: other}}":                         true,
		"{destination: {kind: ServiceAccount, name: other}, destination: {}}":        true,
		"{destination: {kind: ServiceAccount, name: other}}, destination: {name: a}": true,
		"{destination: {kind: ServiceAccount, name: web}, targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: a}}": true,
	} {
		f := newFeed(t)
		f.workload = ofAccount
		f.yields(object{kind: "TrafficTarget", name: "x", spec: spec})
		if got := !f.asked("/").Allowed; got != denies {
			t.Errorf("%s denies: %t, want %t", spec, got, denies)
		}
		f.yields()
		f.allows("/")
	}
}

// TestAlone_TwoVersionsOfOneTrafficTarget: of two versions of one object, the one that was in force before counts; otherwise nobody is allowed.
func TestAlone_TwoVersionsOfOneTrafficTarget(t *testing.T) {
	sources := func(specs ...object) (all []policy.Source) {
		for i, o := range specs {
			s := o.source()
			s.Name = fmt.Sprint("feed", i)
			all = append(all, s)
		}
		return all
	}
	x, g := targetParts[0], targetParts[2]
	wider := x
	wider.spec = strings.Replace(x.spec, "name: api", "name: evil", 1)
	for _, order := range [][]object{{x, wider, g}, {wider, x, g}} {
		f := newFeed(t)
		f.workload = ofAccount
		f.takes(sources(order...)...)
		f.denies("TrafficTarget shop/x")
		f.takes(sources(x, x, g)...)
		f.takes(sources(order...)...)
		for account, want := range map[string]bool{"api": true, "evil": false} {
			if d := f.asked("/a", "cluster.local/ns/shop/sa/"+account); d.Allowed != want {
				t.Errorf("%s: %+v", account, d)
			}
		}
	}
}

// What an API server dropped from an HTTPRouteGroup may have been what restricted it.
func TestAlone_PrunedHTTPRouteGroup(t *testing.T) {
	f := newFeed(t)
	f.workload = ofAccount
	x, g := targetParts[0], targetParts[2]
	const caller = "cluster.local/ns/shop/sa/api"
	f.yields(x, g)
	if d := f.asked("/a", caller); !d.Allowed {
		t.Fatal(d.Reason)
	}
	g.uid, g.spec = 9, "{matches: [{name: a}]}"
	g.annotations = `kubectl.kubernetes.io/last-applied-configuration: '{"apiVersion":"specs.smi-spec.io/v1alpha4","kind":"HTTPRouteGroup",` +
		`"metadata":{"name":"g","namespace":"shop"},"spec":{"matches":[{"name":"a","pathRegexp":"/a"}]}}'`
	f.yields(x, g)
	f.refused("HTTPRouteGroup shop/g: nothing")
	for _, path := range []string{"/a", "/b"} {
		if f.asked(path, caller).Allowed {
			t.Errorf("%s is allowed", path)
		}
	}
}

// naive are documents for the differential, as plain data.
type naive struct {
	targets []naiveTarget
	groups  map[string][]naiveMatch
	routes  map[string][]uint16
}

type naiveTarget struct {
	account string
	port    uint16
	rules   []naiveRule
	sources []string
}

type naiveRule struct {
	kind, name string
	matches    []string
}

type naiveMatch struct {
	name, path, header string
	methods            []string
}

func (n *naive) String() string {
	var b strings.Builder
	for i, tt := range n.targets {
		port := ""
		if tt.port > 0 {
			port = fmt.Sprintf(", port: %d", tt.port)
		}
		fmt.Fprintf(&b, "---\napiVersion: access.smi-spec.io/v1alpha2\nkind: TrafficTarget\nmetadata: {name: t%d, namespace: shop}\nspec:\n  destination: {kind: ServiceAccount, name: %s%s}\n  rules:\n", i, tt.account, port)
		for _, r := range tt.rules {
			matches := ""
			if r.matches != nil {
				matches = ", matches: [" + strings.Join(r.matches, ", ") + "]"
			}
			fmt.Fprintf(&b, "  - {kind: %s, name: %s%s}\n", r.kind, r.name, matches)
		}
		b.WriteString("  sources:\n")
		for _, s := range tt.sources {
			fmt.Fprintf(&b, "  - {kind: ServiceAccount, name: %s, namespace: shop}\n", s)
		}
	}
	for name, matches := range n.groups {
		fmt.Fprintf(&b, "---\napiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {name: %s, namespace: shop}\nspec:\n  matches:\n", name)
		for _, m := range matches {
			fmt.Fprintf(&b, "  - {name: %s, pathRegex: %q, methods: [%s]", m.name, m.path, strings.Join(m.methods, ", "))
			if m.header != "" {
				fmt.Fprintf(&b, ", headers: {x-a: %q}", m.header)
			}
			b.WriteString("}\n")
		}
	}
	for name, ports := range n.routes {
		fmt.Fprintf(&b, "---\napiVersion: specs.smi-spec.io/v1alpha4\nkind: TCPRoute\nmetadata: {name: %s, namespace: shop}\nspec: {matches: {ports: %s}}\n",
			name, strings.ReplaceAll(fmt.Sprint(ports), " ", ", "))
	}
	return b.String()
}

// allows says what the specification, and the documentation here, say of a request of a peer of the namespace shop.
func (n *naive) allows(from string, r *authz.Request) bool {
	on := false
	for _, tt := range n.targets {
		if tt.account != "web" {
			continue
		}
		on = true
		isHTTP := func(r naiveRule) bool { return r.kind == "HTTPRouteGroup" }
		port := r.Destination.Port()
		if !slices.Contains(tt.sources, from) || tt.port > 0 && tt.port != port {
			continue
		}
		listed, allowed := false, false
		for _, rule := range tt.rules {
			if !isHTTP(rule) {
				ports, there := n.routes[rule.name]
				listed, allowed = true, allowed || there && (len(ports) == 0 || slices.Contains(ports, port))
			}
		}
		switch {
		case listed && !allowed:
			continue
		case !slices.ContainsFunc(tt.rules, isHTTP):
			return true
		case r.L4:
			continue
		}
		for _, rule := range tt.rules {
			for _, m := range n.groups[rule.name] {
				if isHTTP(rule) && (rule.matches == nil || slices.Contains(rule.matches, m.name)) && regexp.MustCompile("^(?:"+m.path+")").MatchString(r.Target) &&
					(len(m.methods) == 0 || slices.Contains(m.methods, r.Method)) && (m.header == "" || r.Header.Get("x-a") != "" && regexp.MustCompile("^(?:"+m.header+")$").MatchString(r.Header.Get("x-a"))) {
					return true
				}
			}
		}
	}
	return !on
}

func TestTrafficTargetsAgreeWithANaiveModel(t *testing.T) {
	pick := func(r *rand.Rand, from ...string) string { return from[r.IntN(len(from))] }
	some := func(r *rand.Rand, from ...string) (list []string) {
		for _, v := range from {
			if r.IntN(2) == 0 {
				list = append(list, v)
			}
		}
		return list
	}
	allowed := 0
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		n := &naive{groups: make(map[string][]naiveMatch), routes: make(map[string][]uint16)}
		for range rng.IntN(4) {
			tt := naiveTarget{account: pick(rng, "web", "web", "other"), sources: append(some(rng, "a", "b"), "c")}
			if rng.IntN(3) == 0 {
				tt.port = []uint16{80, 8080}[rng.IntN(2)]
			}
			for range 1 + rng.IntN(3) {
				rule := naiveRule{kind: pick(rng, "HTTPRouteGroup", "HTTPRouteGroup", "TCPRoute"), name: pick(rng, "r1", "r2", "r3", "r4")}
				if rule.kind == "HTTPRouteGroup" {
					rule.matches = some(rng, "m1", "m2", "m3", "m4")
				}
				tt.rules = append(tt.rules, rule)
			}
			n.targets = append(n.targets, tt)
		}
		for _, name := range some(rng, "r1", "r2", "r3") {
			for i := range rng.IntN(4) {
				n.groups[name] = append(n.groups[name], naiveMatch{fmt.Sprint("m", i+1), pick(rng, "/a", "/a/.*", "/b$", "/(a|b)", ".*"), pick(rng, "", "", "x|y", "x.*"), some(rng, "GET", "POST")})
			}
			if n.groups[name] == nil {
				delete(n.groups, name)
			}
		}
		for _, name := range some(rng, "r1", "r2", "r3") {
			n.routes[name] = [][]uint16{{}, {80}, {8080, 9090}}[rng.IntN(3)]
		}
		in := targetsOf(t, ofAccount, n.String()+"---\napiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: shop}\nspec: {ports: [{port: 80}]}\n")
		for range 40 {
			from := pick(rng, "a", "b", "c", "d")
			r := requestFrom("shop/"+from, pick(rng, "GET", "POST", "PUT", "tcp"), pick(rng, "/a", "/a/b", "/b", "/b/c", "/"), []uint16{80, 8080, 9090, 70}[rng.IntN(4)])
			if value := pick(rng, "", "x", "xy", "z"); value != "" {
				r.Header.Set("x-a", value)
			}
			d, want := in.Authorize(r), n.allows(from, r)
			if d.Allowed != want {
				t.Fatalf("seed %d: %s %s at %d by %s with %v: %+v, want %t by\n%s", seed, r.Method, r.Target, r.Destination.Port(), from, r.Header, d, want, n)
			}
			if d.Policy != "" {
				allowed++
			}
		}
	}
	if allowed < 300 {
		t.Errorf("only %d requests were allowed by a document", allowed)
	}
}
