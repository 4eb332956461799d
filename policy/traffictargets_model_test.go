package policy_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

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
