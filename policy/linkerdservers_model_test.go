package policy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// The model evaluates Linkerd's documents as their reference describes it, one request at a time. It names clients as Linkerd does, so that
// identities in documents are compared as texts; the library translates them to SPIFFE IDs instead.

type modelServer struct {
	name, labels, selector, port, protocol, access string
	created                                        int
}

type modelGrant struct {
	kind, namespace, name string
	server                string   // its name; "*" for all of the namespace, "x=1" for those with that label
	anybody               bool     // even without an identity
	identities            []string // "" for a missing document
	networks              []string // "10.0.0.0/8-10.1.0.0/16" is without a part; nil for all, except that a ServerAuthorization means those of the cluster
	missing               bool     // a document that it requires
}

type modelRequest struct {
	peer, address string
	port          uint16
	raw           bool
}

var clusterNetworks = []string{"10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8", "127.0.0.0/8", "::1/128"}

// name returns the name of a peer in Linkerd, or its SPIFFE ID.
func linkerdName(peer string) string {
	parts := strings.Split(peer, "/")
	if len(parts) == 5 && parts[1] == "ns" && parts[3] == "sa" {
		return parts[4] + "." + parts[2] + ".serviceaccount.identity.linkerd." + parts[0]
	}
	return "spiffe://" + peer
}

func inNetwork(address, network string) bool {
	cidr, except, _ := strings.Cut(network, "-")
	a := netip.MustParseAddr(address)
	return netip.MustParsePrefix(cidr).Contains(a) && (except == "" || !netip.MustParsePrefix(except).Contains(a))
}

func (g *modelGrant) grants(r modelRequest, access bool) bool {
	networks := g.networks
	if networks == nil && g.kind == "ServerAuthorization" {
		networks = clusterNetworks
	}
	if g.missing || networks != nil && !slices.ContainsFunc(networks, func(n string) bool { return inNetwork(r.address, n) }) {
		return false
	}
	return g.anybody || r.peer != "" && slices.ContainsFunc(g.identities, func(id string) bool {
		suffix, star := strings.CutPrefix(id, "*")
		name := linkerdName(r.peer)
		return star && strings.HasSuffix(name, suffix) || name == id || "spiffe://"+r.peer == id
	})
}

func (s *modelServer) allows(r modelRequest, grants []modelGrant) bool {
	if r.raw && slices.Contains([]string{"HTTP/1", "HTTP/2", "gRPC"}, s.protocol) {
		return false
	}
	for _, g := range grants {
		if g.namespace == "shop" && (g.server == "*" || g.server == s.name || s.labels != "" && g.server == s.labels) && g.grants(r, false) {
			return true
		}
	}
	inCluster := slices.ContainsFunc(clusterNetworks, func(n string) bool { return inNetwork(r.address, n) })
	switch s.access {
	case "all-unauthenticated", "audit":
		return true
	case "all-authenticated":
		return r.peer != ""
	case "cluster-unauthenticated":
		return inCluster
	case "cluster-authenticated":
		return inCluster && r.peer != ""
	}
	return false
}

// modelPorts are the ports that are known by name.
var modelPorts = map[string]int{"http": 8080, "admin": 9990, "gone": 0}

// modelAllows decides about a request of a workload of the namespace shop with the label app=web.
func modelAllows(servers []modelServer, grants []modelGrant, r modelRequest) bool {
	servers = slices.Clone(servers)
	slices.SortStableFunc(servers, func(a, b modelServer) int {
		if a.created != b.created {
			return a.created - b.created
		}
		return strings.Compare(a.name, b.name)
	})
	taken := make(map[int]bool)
	for _, s := range servers {
		switch s.selector {
		case "{}", "{matchLabels: {app: web}}", "{matchExpressions: [{key: app, operator: NotIn, values: [db]}]}", "{matchExpressions: [{key: tier, operator: DoesNotExist}]}":
		default:
			continue
		}
		port, known := modelPorts[s.port]
		if !known {
			fmt.Sscan(s.port, &port)
			known = port > 0
		}
		if known && (port == 0 || taken[port]) {
			continue
		}
		taken[port] = known
		if (!known || r.port == 0 || int(r.port) == port) && !s.allows(r, grants) {
			return false
		}
	}
	return true
}

func (s *modelServer) document() string {
	labels := ""
	if s.labels != "" {
		key, value, _ := strings.Cut(s.labels, "=")
		labels = fmt.Sprintf(", labels: {%s: %q}", key, value)
	}
	access := ""
	if s.access != "" {
		access = ", accessPolicy: " + s.access
	}
	return fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: %s, namespace: shop, creationTimestamp: \"2026-01-01T00:00:%02dZ\"%s}\n"+
		"spec: {podSelector: %s, port: %s, proxyProtocol: %s%s}\n", s.name, s.created, labels, s.selector, s.port, s.protocol, access)
}

func (g *modelGrant) document() string {
	var networks []string
	for _, n := range g.networks {
		cidr, except, _ := strings.Cut(n, "-")
		if except != "" {
			except = fmt.Sprintf(", except: [%q]", except)
		}
		networks = append(networks, fmt.Sprintf("{cidr: %q%s}", cidr, except))
	}
	in := ", networks: [" + strings.Join(networks, ", ") + "]"
	if g.networks == nil {
		in = ""
	}
	if g.kind == "ServerAuthorization" {
		server := "{name: " + g.server + "}"
		switch key, value, labelled := strings.Cut(g.server, "="); {
		case g.server == "*":
			server = "{selector: {}}"
		case labelled:
			server = fmt.Sprintf("{selector: {matchLabels: {%s: %q}}}", key, value)
		}
		client := fmt.Sprintf("meshTLS: {identities: [%s]}", quoted(g.identities))
		if g.anybody {
			client = "unauthenticated: true"
		}
		return fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1beta1\nkind: ServerAuthorization\nmetadata: {name: %s, namespace: %s}\n"+
			"spec: {server: %s, client: {%s%s}}\n", g.name, g.namespace, server, client, in)
	}
	target := "{group: policy.linkerd.io, kind: Server, name: " + g.server + "}"
	if g.server == "*" {
		target = "{kind: Namespace, name: " + g.namespace + "}"
	}
	var refs []string
	text := ""
	list := func(kind, spec string) {
		refs = append(refs, fmt.Sprintf("{group: policy.linkerd.io, kind: %s, name: %s, namespace: auth}", kind, g.name))
		if !g.missing {
			text += fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1alpha1\nkind: %s\nmetadata: {name: %s, namespace: auth}\nspec: {%s}\n", kind, g.name, spec)
		}
	}
	if !g.anybody {
		list("MeshTLSAuthentication", "identities: ["+quoted(g.identities)+"]")
	}
	if g.networks != nil {
		list("NetworkAuthentication", strings.TrimPrefix(in, ", "))
	}
	g.missing = g.missing && refs != nil
	return text + fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: %s}\n"+
		"spec: {targetRef: %s, requiredAuthenticationRefs: [%s]}\n", g.name, g.namespace, target, strings.Join(refs, ", "))
}

func quoted(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%q", s))
	}
	return strings.Join(out, ", ")
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func some[T any](r *rand.Rand, n int, from ...T) []T {
	r.Shuffle(len(from), func(i, j int) { from[i], from[j] = from[j], from[i] })
	return from[:1+r.IntN(n)]
}

func randomServers(r *rand.Rand) (servers []modelServer, grants []modelGrant) {
	for i := range 1 + r.IntN(4) {
		servers = append(servers, modelServer{
			name: fmt.Sprint("s", i), labels: pick(r, "", "x=1", "x=2"), created: r.IntN(3),
			selector: pick(r, "{}", "{matchLabels: {app: web}}", "{matchLabels: {app: web, tier: a}}", "{matchExpressions: [{key: app, operator: NotIn, values: [db]}]}",
				"{matchExpressions: [{key: app, operator: In, values: [db]}]}", "{matchExpressions: [{key: tier, operator: DoesNotExist}]}"),
			port:     pick(r, "8080", "9990", "http", "admin", "gone", "8080", "9990", "unheard-of"),
			protocol: pick(r, "unknown", "HTTP/1", "HTTP/2", "gRPC", "opaque", "TLS"),
			access:   pick(r, "", "", "deny", "all-unauthenticated", "all-authenticated", "cluster-unauthenticated", "cluster-authenticated", "audit"),
		})
	}
	for i := range r.IntN(5) {
		g := modelGrant{
			kind: pick(r, "ServerAuthorization", "AuthorizationPolicy"), namespace: pick(r, "shop", "shop", "other"), name: fmt.Sprint("g", i),
			server: pick(r, "s0", "s1", "s2", "*", "nobody"), anybody: r.IntN(4) == 0,
			identities: some(r, 2, "*", "web.shop.serviceaccount.identity.linkerd.cluster.local", "*.shop.serviceaccount.identity.linkerd.cluster.local",
				"*.serviceaccount.identity.linkerd.cluster.local", "*.cluster.local", "a.b.other.serviceaccount.identity.linkerd.cluster.local",
				"web.shop.serviceaccount.identity.linkerd.far", "spiffe://cluster.local/workload/x", "spiffe://cluster.local/ns/shop/sa/web", "shop.serviceaccount.identity.linkerd.cluster.local",
				"*.eb.shop.serviceaccount.identity.linkerd.cluster.local", "*.local"),
		}
		if g.kind == "ServerAuthorization" && r.IntN(3) == 0 {
			g.server = pick(r, "x=1", "x=2")
		}
		g.missing = g.kind == "AuthorizationPolicy" && r.IntN(6) == 0
		if r.IntN(2) == 0 {
			g.networks = some(r, 2, "10.0.0.0/8", "10.0.0.0/8-10.1.0.0/16", "0.0.0.0/0", "::/0", "2001:db8::/32-2001:db8::1/128", "8.8.8.8/32", "127.0.0.0/8")
		}
		grants = append(grants, g)
	}
	return servers, grants
}

// TestServers_Model compares decisions with those of the model, for random documents that follow one another in one process.
func TestServers_Model(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var last *policy.Plan
	w := policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}, Ports: modelPorts}
	for range 400 {
		servers, grants := randomServers(r)
		text := ""
		for i := range servers {
			text += servers[i].document()
		}
		for i := range grants {
			text += grants[i].document()
		}
		plan, findings := policy.Recompile(last, []policy.Source{{Name: "x.yaml", Data: []byte(text)}}, w)
		if plan == nil {
			t.Fatalf("seed %d: %v\n%s", seed, findings, text)
		}
		last = plan
		for range 60 {
			q := modelRequest{
				peer: pick(r, "", "cluster.local/ns/shop/sa/web", "cluster.local/ns/shop/sa/x.eb", "cluster.local/ns/other/sa/a.b", "cluster.local/ns/other/sa/web",
					"far/ns/shop/sa/web", "cluster.local/workload/x"),
				address: pick(r, "10.0.0.5", "10.1.0.5", "8.8.8.8", "127.0.0.1", "fd00::1", "2001:db8::1", "2001:db8::2", "::1"),
				port:    pick[uint16](r, 8080, 9990, 80, 0), raw: r.IntN(4) == 0,
			}
			d := plan.Inbound().Authorize(&authz.Request{
				Principal: q.peer, Source: netip.MustParseAddr(q.address), Destination: netip.AddrPortFrom(netip.MustParseAddr("10.9.9.9"), q.port),
				L4: q.raw, Method: "GET", Target: "/", Host: "web",
			})
			want := modelAllows(servers, grants, q)
			// Wildcards that no set of SPIFFE IDs stands for are not enforced: they authorize nobody.
			if !d.Allowed && want && strings.Contains(text, `"*.eb.shop`) || !d.Allowed && want && strings.Contains(text, `"*.local"`) {
				continue
			}
			if d.Allowed != want {
				t.Fatalf("seed %d: %+v is allowed: %t (%s), want %t\n%s%v", seed, q, d.Allowed, d.Reason, want, text, findings)
			}
		}
	}
}

// TestServers_Aimless: what authorizes nobody, since it refers to what is not there or names nobody, gets a warning; nothing else does.
func TestServers_Aimless(t *testing.T) {
	document := func(kind, version, spec string) string {
		return fmt.Sprintf("---\napiVersion: policy.linkerd.io/%s\nkind: %s\nmetadata: {name: a, namespace: default}\nspec: %s\n", version, kind, spec)
	}
	server := document("Server", "v1beta3", "{podSelector: {}, port: 80}")
	policyOf := func(name string) string {
		return document("AuthorizationPolicy", "v1alpha1", "{targetRef: {group: policy.linkerd.io, kind: Server, name: "+name+"}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: web}]}")
	}
	authorization := func(name, identity string) string {
		return document("ServerAuthorization", "v1beta1", "{server: {name: "+name+"}, client: {meshTLS: {identities: ['"+identity+"']}}}")
	}
	for _, test := range []struct{ documents, want string }{
		{server + policyOf("a"), ""},
		{server + policyOf("b"), "spec.targetRef.name: warning: has no effect: there is no Server default/b"},
		{server + authorization("a", "*"), ""},
		{server + authorization("b", "*"), "spec.server.name: warning: has no effect: there is no Server default/b"},
		{server + authorization("a", "foo.example.com"), "spec.client.meshTLS.identities[0]: warning: no client has it"},
		{server + document("MeshTLSAuthentication", "v1alpha1", "{identities: ['*', foo.example.com]}"), "spec.identities[1]: warning: no client has it"},
	} {
		_, findings := policy.Compile([]policy.Source{{Name: "a", Data: []byte(test.documents)}}, workload)
		if got := findings.Error(); test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("the findings are %q, want %q, of\n%s", got, test.want, test.documents)
		}
	}
}
