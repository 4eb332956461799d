package policy_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/tlsid"
)

// peerAuthentication returns a document.
func peerAuthentication(namespace, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: %s, namespace: %s}\nspec: %s\n",
		name, namespace, spec)
}

// authorizationPolicy returns a document.
func authorizationPolicy(namespace, name, spec string) string {
	return fmt.Sprintf("---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: %s, namespace: %s}\nspec: %s\n",
		name, namespace, spec)
}

func TestPlan_PeersOfNothing(t *testing.T) {
	plan := compile(t, "")
	if rules := plan.Peers("default"); rules != nil {
		t.Errorf("Peers = %+v, want nil", rules)
	}
	if mode, set := plan.Peers("default").Mode(nil, 80); mode != tlsid.Permissive || set {
		t.Errorf("Mode = %v, %v, want PERMISSIVE, which nobody says", mode, set)
	}
	if mode := plan.Inbound().Mode(80); mode != tlsid.Permissive {
		t.Errorf("Inbound mode = %v, want PERMISSIVE", mode)
	}
	// Nor does a document that leaves everything open.
	if rules := compile(t, peerAuthentication("default", "a", "{mtls: {mode: UNSET}}")).Peers("default"); rules != nil {
		t.Errorf("Peers = %+v, want nil", rules)
	}
	unset := compile(t, peerAuthentication("default", "a", "{selector: {matchLabels: {a: b}}, portLevelMtls: {1: {mode: STRICT}}}")).Peers("default")
	for port, want := range map[int]tlsid.Mode{1: tlsid.Strict, 2: tlsid.Permissive} {
		if mode, set := unset.Mode(map[string]string{"a": "b"}, port); mode != want || set != (port == 1) {
			t.Errorf("Mode at port %d = %v, %v, want %v", port, mode, set, want)
		}
	}
}

func TestPeerRules_Equal(t *testing.T) {
	peers := func(spec string) *policy.PeerRules {
		if spec == "" {
			return nil
		}
		return compile(t, peerAuthentication("default", "a", spec)).Peers("default")
	}
	specs := []string{
		"",
		"{mtls: {mode: STRICT}}",
		"{mtls: {mode: PERMISSIVE}}",
		"{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}}",
		"{selector: {matchLabels: {a: c}}, mtls: {mode: STRICT}}",
		"{selector: {matchLabels: {a: b}}, mtls: {mode: DISABLE}}",
		"{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {1: {mode: DISABLE}}}",
		"{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {1: {mode: PERMISSIVE}}}",
	}
	for i, a := range specs {
		for j, b := range specs {
			if got := peers(a).Equal(peers(b)); got != (i == j) {
				t.Errorf("%q equals %q: %v", a, b, got)
			}
		}
	}
}

// request is a request that Inbound is asked about.
type request struct {
	principal string
	port      uint16
	method    string // GET if empty
	path      string // / if empty
	header    string // "Name: value"
}

func (r request) view() *authz.Request {
	view := &authz.Request{
		Principal: r.principal, Source: netip.MustParseAddr("10.0.0.9"), Remote: netip.MustParseAddr("10.0.0.9"),
		Destination: netip.AddrPortFrom(netip.MustParseAddr("10.0.0.1"), r.port),
		Host:        "order-service", Method: "GET", Target: "/", Header: map[string][]string{},
	}
	if r.method != "" {
		view.Method = r.method
	}
	if r.path != "" {
		view.Target = r.path
	}
	if name, value, ok := strings.Cut(r.header, ": "); ok {
		view.Header.Add(name, value)
	}
	return view
}

func TestInbound_Authorize(t *testing.T) {
	const (
		web   = "cluster.local/ns/default/sa/web"
		other = "cluster.local/ns/other/sa/web"
	)
	strict := peerAuthentication("default", "p", "{mtls: {mode: STRICT}}")
	ports := peerAuthentication("default", "p", "{selector: {matchLabels: {app: order-service}}, mtls: {mode: PERMISSIVE}, "+
		"portLevelMtls: {8443: {mode: STRICT}, 9000: {mode: DISABLE}}}")
	open := peerAuthentication("default", "p", "{selector: {matchLabels: {app: order-service}}, mtls: {mode: DISABLE}, "+
		"portLevelMtls: {8443: {mode: PERMISSIVE}}}")
	notWeb := authorizationPolicy("default", "not", "{action: DENY, rules: [{from: [{source: {principals: ["+web+"]}}]}]}")
	fromWeb := authorizationPolicy("default", "web", "{rules: [{from: [{source: {principals: ["+web+"]}}]}]}")
	noPlaintext := authorizationPolicy("default", "plain", "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}")
	const claim = "{rules: [{when: [{key: 'request.headers[x-envoy-a]', values: [b]}]}]}"
	tests := []struct {
		name, documents string
		request         request
		allowed         bool
		by              string // the policy and rule that decided
	}{
		{"nothing is said", "", request{}, true, ""},
		{"strict, plaintext", strict, request{port: 80}, false, ""},
		{"strict, plaintext, allowed by a policy", strict + authorizationPolicy("default", "all", "{rules: [{}]}"), request{port: 80}, false, ""},
		{"strict, plaintext, denied by a policy", strict + noPlaintext, request{port: 80}, false, ""},
		{"strict, identity", strict, request{principal: web, port: 80}, true, ""},
		{"strict, identity, policy", strict + fromWeb, request{principal: web, port: 80}, true, "default/web 0"},
		{"strict, other identity, policy", strict + fromWeb, request{principal: other, port: 80}, false, ""},
		{"permissive, plaintext", ports, request{port: 80}, true, ""},
		{"permissive, plaintext, policy", ports + fromWeb, request{port: 80}, false, ""},
		{"permissive, plaintext denied", ports + noPlaintext, request{port: 80}, false, "default/plain 0"},
		{"strict port, plaintext", ports, request{port: 8443}, false, ""},
		{"strict port, identity", ports + fromWeb, request{principal: web, port: 8443}, true, "default/web 0"},
		{"disabled port, plaintext", ports, request{port: 9000}, true, ""},
		{"disabled port has no identities", ports + fromWeb, request{principal: web, port: 9000}, false, ""},
		{"disabled port, plaintext denied", ports + noPlaintext, request{principal: web, port: 9000}, false, "default/plain 0"},
		{"unknown port may be the strict one", ports, request{}, false, ""},
		{"unknown port may be one with identities", open + notWeb, request{principal: web}, false, "default/not 0"},
		{"unknown port, identity", ports + fromWeb, request{principal: web}, true, "default/web 0"},

		{"empty policy", authorizationPolicy("default", "nothing", "{}"), request{principal: web}, false, ""},
		{"rule for everything", authorizationPolicy("default", "all", "{rules: [{}]}"), request{}, true, "default/all 0"},
		{"DENY comes first", fromWeb + authorizationPolicy("default", "deny", "{action: DENY, rules: [{to: [{operation: {paths: [/admin*]}}]}]}"),
			request{principal: web, path: "//admin"}, false, "default/deny 0"},
		{"AUDIT decides nothing", authorizationPolicy("default", "log", "{action: AUDIT, rules: [{}]}"), request{}, true, ""},
		{"root namespace", authorizationPolicy("istio-system", "deny", "{action: DENY, rules: [{}]}"), request{}, false, "istio-system/deny 0"},
		{"root namespace, selector", authorizationPolicy("istio-system", "deny",
			"{selector: {matchLabels: {app: order-service}}, action: DENY, rules: [{}]}"), request{}, false, "istio-system/deny 0"},
		{"root namespace, other selector", authorizationPolicy("istio-system", "deny",
			"{selector: {matchLabels: {app: other}}, action: DENY, rules: [{}]}"), request{}, true, ""},
		{"other namespace", authorizationPolicy("other", "deny", "{action: DENY, rules: [{}]}"), request{}, true, ""},
		{"selector", authorizationPolicy("default", "deny", "{selector: {matchLabels: {app: order-service, version: v1}}, action: DENY, rules: [{}]}"),
			request{}, false, "default/deny 0"},
		{"selector of more", authorizationPolicy("default", "deny", "{selector: {matchLabels: {app: order-service, version: v2}}, action: DENY, rules: [{}]}"),
			request{}, true, ""},
		{"gateway's policy", authorizationPolicy("default", "deny", "{targetRefs: [{kind: Gateway, group: gateway.networking.k8s.io, name: g}], action: DENY, rules: [{}]}"),
			request{}, true, ""},

		{"service account of the policy's namespace", authorizationPolicy("default", "a", "{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}"),
			request{principal: web}, true, "default/a 0"},
		{"service account of another", authorizationPolicy("default", "a", "{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}"),
			request{principal: other}, false, ""},
		{"service account of the root namespace", authorizationPolicy("istio-system", "a", "{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}"),
			request{principal: web}, false, ""},
		{"service account in full", authorizationPolicy("default", "a", "{rules: [{from: [{source: {serviceAccounts: [other/web]}}]}]}"),
			request{principal: other}, true, "default/a 0"},
		{"service account in a condition", authorizationPolicy("default", "a", "{rules: [{when: [{key: source.serviceAccount, values: [web]}]}]}"),
			request{principal: web}, true, "default/a 0"},
		{"not service account", authorizationPolicy("default", "a", "{action: DENY, rules: [{from: [{source: {notServiceAccounts: [web]}}]}]}"),
			request{principal: other}, false, "default/a 0"},

		{"every source field", authorizationPolicy("default", "a", "{rules: [{from: [{source: {notPrincipals: ["+other+"], namespaces: [def*], "+
			"notNamespaces: [x], trustDomains: [cluster.local], notTrustDomains: [x], ipBlocks: [10.0.0.0/8], notIpBlocks: [10.0.0.8], "+
			"remoteIpBlocks: [10.0.0.9], notRemoteIpBlocks: [10.0.0.10/31]}}]}]}"), request{principal: web}, true, "default/a 0"},
		{"not its address", authorizationPolicy("default", "a", "{rules: [{from: [{source: {notIpBlocks: [10.0.0.9]}}]}]}"), request{}, false, ""},
		{"not its client's address", authorizationPolicy("default", "a", "{rules: [{from: [{source: {notRemoteIpBlocks: [10.0.0.8/31]}}]}]}"), request{}, false, ""},
		{"every operation field", authorizationPolicy("default", "a", "{rules: [{to: [{operation: {hosts: [ORDER-*], notHosts: [x], ports: ['80', '81'], "+
			"notPorts: ['82'], methods: [POST], notMethods: [GET], paths: ['/a/{*}'], notPaths: [/a/c]}}]}]}"),
			request{port: 81, method: "POST", path: "/a/b?c"}, true, "default/a 0"},
		{"not its port", authorizationPolicy("default", "a", "{rules: [{to: [{operation: {notPorts: ['81']}}]}]}"), request{port: 81}, false, ""},
		{"not its path", authorizationPolicy("default", "a", "{rules: [{to: [{operation: {notPaths: [/a/b]}}]}]}"), request{path: "/a/b"}, false, ""},
		{"second rule", authorizationPolicy("default", "a", "{rules: [{to: [{operation: {methods: [PUT]}}]}, {when: [{key: 'request.headers[x-a]', "+
			"values: [b*], notValues: [bc]}]}]}"), request{header: "X-A: bd"}, true, "default/a 1"},
		{"not its header", authorizationPolicy("default", "a", "{rules: [{when: [{key: 'request.headers[x-a]', values: [b*], notValues: [bc]}]}]}"),
			request{header: "X-A: bc"}, false, ""},
		{"what only the mesh asserts, from outside", authorizationPolicy("default", "a", claim), request{header: "X-Envoy-A: b"}, false, ""},
		{"what only the mesh asserts, with underscores", authorizationPolicy("default", "a",
			"{rules: [{when: [{key: 'request.headers[X_Request-ID]', values: [b]}]}]}"), request{header: "X_request-Id: b"}, false, ""},
		{"what only the mesh asserts, from inside", authorizationPolicy("default", "a", claim),
			request{principal: web, header: "X-Envoy-A: b"}, true, "default/a 0"},
		{"what only the mesh asserts, where nobody has an identity", ports + authorizationPolicy("default", "a", claim),
			request{principal: web, port: 9000, header: "X-Envoy-A: b"}, false, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := compile(t, tt.documents).Inbound()
			view := tt.request.view()
			d := in.Authorize(view)
			by := ""
			if d.Policy != "" {
				by = fmt.Sprintf("%s %d", d.Policy, d.Rule)
			} else if d.Rule != -1 {
				t.Errorf("rule %d of no policy", d.Rule)
			}
			if d.Allowed != tt.allowed || by != tt.by {
				t.Errorf("allowed %v by %q (%s), want %v by %q", d.Allowed, by, d.Reason, tt.allowed, tt.by)
			}
			if want := tt.request.view(); !reflect.DeepEqual(view, want) {
				t.Errorf("Authorize changed the request to %+v", view)
			}
		})
	}
}

// cluster.local stands for the trust domain of the workload wherever an identity is written in full.
func TestInbound_TrustDomain(t *testing.T) {
	const rule = "{rules: [{from: [{source: {principals: ['%s']}}]}]}"
	condition := "{rules: [{when: [{key: source.principal, %s: ['%s']}]}]}"
	tests := []struct {
		trustDomain, spec, principal string
		allowed                      bool
	}{
		{"", fmt.Sprintf(rule, "cluster.local/ns/a/sa/b"), "cluster.local/ns/a/sa/b", true},
		{"corp", fmt.Sprintf(rule, "cluster.local/ns/a/sa/b"), "corp/ns/a/sa/b", true},
		{"corp", fmt.Sprintf(rule, "cluster.local/ns/a/sa/b"), "cluster.local/ns/a/sa/b", false},
		{"corp", fmt.Sprintf(rule, "cluster.local/ns/a/sa/*"), "corp/ns/a/sa/b", true},
		{"corp", fmt.Sprintf(rule, "cluster.local/ns/*"), "corp/ns/a/sa/b", false},
		{"corp", fmt.Sprintf(rule, "*/ns/a/sa/b"), "corp/ns/a/sa/b", true},
		{"corp", fmt.Sprintf(rule, "other/ns/a/sa/b"), "other/ns/a/sa/b", true},
		{"corp", fmt.Sprintf(rule, "corp/ns/a/sa/b"), "corp/ns/a/sa/b", true},
		{"corp", fmt.Sprintf(condition, "values", "cluster.local/ns/a/sa/b"), "corp/ns/a/sa/b", true},
		{"corp", fmt.Sprintf(condition, "notValues", "cluster.local/ns/a/sa/b"), "corp/ns/a/sa/b", false},
	}
	for _, tt := range tests {
		w := workload
		w.TrustDomain = tt.trustDomain
		source := policy.Source{Name: "a.yaml", Data: []byte(authorizationPolicy("default", "a", tt.spec))}
		plan, findings := policy.Compile([]policy.Source{source}, w)
		if plan == nil {
			t.Fatal(findings)
		}
		if d := plan.Inbound().Authorize(request{principal: tt.principal}.view()); d.Allowed != tt.allowed {
			t.Errorf("in %q, %s for %s: allowed %v, want %v", tt.trustDomain, tt.spec, tt.principal, d.Allowed, tt.allowed)
		}
	}
}

func TestInbound_DryRun(t *testing.T) {
	for value, dry := range map[string]bool{"true": true, "1": true, "false": false} {
		in := compile(t, "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"+
			"metadata: {name: a, annotations: {istio.io/dry-run: '"+value+"'}}\nspec: {action: DENY, rules: [{}]}\n").Inbound()
		d := in.Authorize(request{}.view())
		if d.Allowed != dry || d.Shadow.Present != dry || dry && (d.Shadow.Allowed || d.Shadow.Policy != "default/a") {
			t.Errorf("dry-run %s: %+v", value, d)
		}
	}
}

// Which of two policies decided is told by their order in the documents, not by their names.
func TestInbound_Order(t *testing.T) {
	in := compile(t, authorizationPolicy("default", "z", "{rules: [{}]}")+authorizationPolicy("default", "a", "{rules: [{}]}")).Inbound()
	if d := in.Authorize(request{}.view()); d.Policy != "default/z" {
		t.Errorf("decided by %s, want default/z", d.Policy)
	}
}

func TestInbound_AuthorizeAllocatesNothing(t *testing.T) {
	documents := peerAuthentication("default", "p", "{mtls: {mode: %s}}") +
		authorizationPolicy("default", "a", "{rules: [{from: [{source: {principals: ['*']}}], to: [{operation: {methods: [GET]}}]}]}")
	for _, mode := range []string{"STRICT", "PERMISSIVE"} {
		in := compile(t, fmt.Sprintf(documents, mode)).Inbound()
		view := request{principal: "cluster.local/ns/default/sa/web", port: 80}.view()
		if n := testing.AllocsPerRun(100, func() { in.Authorize(view) }); n > 0 {
			t.Errorf("%s: %v allocations", mode, n)
		}
	}
}

// Mistakes come up in the set of every workload, also in policies that are about others.
func TestAuthorizationPolicy_OfOthers(t *testing.T) {
	source := policy.Source{Name: "a.yaml", Data: []byte(authorizationPolicy("elsewhere", "a",
		"{selector: {matchLabels: {app: x}}, rules: [{when: [{key: 'request.headers[a b]', values: [c]}]}]}"))}
	plan, findings := policy.Compile([]policy.Source{source}, workload)
	fields := []string{}
	for _, f := range findings {
		fields = append(fields, f.Field)
	}
	if plan != nil || !slices.Equal(fields, []string{"spec.rules[0].when[0]"}) {
		t.Errorf("plan %v, findings %v", plan, findings)
	}
}

// A process that was not told its labels, or wrong ones, is warned once: policies that select by them are not enforced.
func TestInbound_WorkloadWithoutLabels(t *testing.T) {
	const selects = "{selector: {matchLabels: {app: order-service}}%s}"
	access := authorizationPolicy("default", "b", fmt.Sprintf(selects, ", action: DENY, rules: [{}]"))
	peers := peerAuthentication("default", "a", fmt.Sprintf(selects, ", mtls: {mode: STRICT}"))
	for _, tt := range []struct {
		name, documents string
		labels          map[string]string
		want            string // the document
	}{
		{"no labels", peers + access, nil, "AuthorizationPolicy default/b"},
		{"PeerAuthentication alone", peers, nil, "PeerAuthentication default/a"},
		{"other labels", peers + access, map[string]string{"app": "other"}, "AuthorizationPolicy default/b"},
		{"other labels, PeerAuthentication alone", peers, map[string]string{"app": "other"}, "PeerAuthentication default/a"},
		{"other labels, and a policy without selector", peers + access + authorizationPolicy("default", "c", "{}"), map[string]string{"app": "other"}, ""},
		{"other labels, and a policy of the mesh", peers + access + peerAuthentication("istio-system", "c", "{}"), map[string]string{"app": "other"}, ""},
		{"these labels", peers + access, map[string]string{"app": "order-service"}, ""},
		{"other namespace", strings.ReplaceAll(access, "namespace: default", "namespace: other"), nil, "AuthorizationPolicy other/b"},
		{"without selector", authorizationPolicy("default", "b", "{}") + peerAuthentication("default", "a", "{}"), nil, ""},
	} {
		source := []policy.Source{{Name: "a.yaml", Data: []byte(tt.documents)}}
		_, findings := policy.Compile(source, policy.Workload{Labels: tt.labels})
		var got string
		for _, f := range findings {
			got += f.Kind + " " + f.Namespace + "/" + f.Name
		}
		if got != tt.want || findings.Err() != nil {
			t.Errorf("%s: %v, want a warning of %q", tt.name, findings, tt.want)
		}
		if r := policy.Check(source, policy.Workload{Labels: tt.labels}); r.Findings != nil {
			t.Errorf("%s: Check found %v", tt.name, r.Findings)
		}
	}
}

// A security document without a namespace is about default: a warning, and for a workload elsewhere an error.
func TestInbound_DocumentWithoutNamespace(t *testing.T) {
	for _, text := range []string{authorizationPolicy("default", "a", "{}"), peerAuthentication("default", "a", "{mtls: {mode: STRICT}}")} {
		source := []policy.Source{{Name: "a.yaml", Data: []byte(strings.Replace(text, ", namespace: default", "", 1))}}
		if strings.Contains(string(source[0].Data), "namespace") {
			t.Fatalf("the document has a namespace: %s", text)
		}
		for _, tt := range []struct {
			namespace string
			want      policy.Severity
		}{{"", policy.Warning}, {"default", policy.Warning}, {"shop", policy.Error}} {
			w := policy.Workload{Namespace: tt.namespace}
			plan, findings := policy.Compile(source, w)
			if len(findings) != 1 || findings[0].Severity != tt.want || findings[0].Field != "metadata.namespace" || (plan == nil) != (tt.want == policy.Error) {
				t.Errorf("namespace %q: plan %v, findings %v; want one %s of metadata.namespace", tt.namespace, plan, findings, tt.want)
			}
			if r := policy.Check(source, w); len(r.Findings) != 1 || r.Findings[0] != findings[0] {
				t.Errorf("namespace %q: Check found %v, want %v", tt.namespace, r.Findings, findings)
			}
		}
	}
}
