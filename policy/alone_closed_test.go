package policy_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

func (f *feed) takesFile(text string) {
	f.t.Helper()
	f.takes(policy.Source{Name: "x.yaml", Alone: true, Data: []byte(text)})
}

// ofFile returns a feed of a file, for an instance of the service web.
func ofFile(t *testing.T, text string) *feed {
	t.Helper()
	f := newFeed(t)
	f.workload.Service = "web"
	f.takesFile(text)
	return f
}

// closes checks which document closes hosts, and that no other of the hosts a to d is closed.
func (f *feed) closes(document string, hosts ...string) {
	f.t.Helper()
	for _, host := range []string{"a", "b", "c", "d"} {
		want := ""
		if slices.Contains(hosts, host) {
			want = document
		}
		if got := f.closed(host); got != want {
			f.t.Errorf("%s is closed by %q, want %q:\n%v", host, got, want, f.findings)
		}
	}
}

// TestAlone_HeadThatMayBeMisread: a security document that is no YAML is about another namespace only if that is certain.
func TestAlone_HeadThatMayBeMisread(t *testing.T) {
	const api = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n"
	for _, head := range []string{
		api + "metadata:\n  name: x\n  namespace: shop # ours\n",
		api + "metadata:\n  name: x\n  namespace: shop\n  labels:\n    namespace: depot\n",
		api + "metadata:\n  name: x\n  \"namespace\": shop\n",
		api + "metadata:\n  name: x\n  namespace: >-\n    shop\n",
		api + "metadata:\n  name: x\n  namespace: *ours\n",
		api + "metadata:\n  name: x\n  namespace: depot\n  namespace: shop\n",
		api + "metadata:\n  name: x\n? namespace\n",
		"kind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: shop\n",
	} {
		f := ofFile(t, head+"spec: [\n")
		if d := f.asked("/"); d.Allowed {
			t.Errorf("it denies nothing:\n%s", head)
		}
	}
	f := ofFile(t, api+"metadata:\n  name: x\n  namespace: depot # theirs\n  labels:\n    namespace: shop\nspec: [\n")
	f.refused("AuthorizationPolicy depot/x: nothing")
	f.allows("/")
}

// TestAlone_LargeDocument: a document that is too large is about another namespace only if that is certain, just as a smaller one.
func TestAlone_LargeDocument(t *testing.T) {
	const (
		head   = `{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", `
		ours   = `"metadata": {"name": "x", "namespace": "shop"}`
		theirs = `"metadata": {"name": "x", "namespace": "depot"}`
		lines  = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: depot\n"
	)
	apart := strings.NewReplacer(`, "`, "\n,\n\"", `metadata": {`, "metadata\":\n {\n ")
	for _, test := range []struct {
		name, text string
		denies     bool
	}{
		{"ours", head + ours + `, "spec": "LARGE"}`, true},
		{"theirs", head + theirs + `, "spec": "LARGE"}`, false},
		{"theirs, in lines", lines + "spec: LARGE\n", false},
		{"two metadata", head + ours + `, ` + theirs + `, "spec": "LARGE"}`, true},
		{"two metadata, on several lines", apart.Replace(head+theirs) + ", " + ours + `, "spec": "LARGE"}`, true},
		{"two namespaces", head + `"metadata": {"name": "x", "namespace": "shop", "namespace": "depot"}, "spec": "LARGE"}`, true},
		{"two kinds", head + `"kind": "Gateway", ` + theirs + `, "spec": "LARGE"}`, true},
		{"two specs", head + theirs + `, "spec": {}, "spec": "LARGE"}`, true},
		{"two specs, in lines", lines + "spec:\nspec: LARGE\n", true},
		{"text after it", head + theirs + `, "spec": "LARGE"}, {` + ours + `}`, true},
		{"a line break of YAML 1.1", "# the old one:\rmetadata: {name: x, namespace: shop}\n" + lines + "spec: LARGE\n", true},
	} {
		for size, filler := range map[string]string{"small": "x", "large": strings.Repeat("x", 1<<20)} {
			f := ofFile(t, strings.ReplaceAll(test.text, "LARGE", filler))
			if d := f.asked("/"); d.Allowed == test.denies {
				t.Errorf("%s, %s: allowed %t, want %t\n%v", test.name, size, d.Allowed, !test.denies, f.findings)
			}
		}
	}
}

// TestAlone_ProtectionWithWrongHead: what would protect denies also if its apiVersion, kind, name or namespace is wrong or missing.
func TestAlone_ProtectionWithWrongHead(t *testing.T) {
	for _, text := range []string{
		"{kind: AuthorizationPolicy, metadata: {name: x, namespace: shop}, spec: {}}",
		"{apiVersion: networking.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, namespace: shop}, spec: {}}",
		"{apiVersion: security.isto.io/v1, kind: PeerAuthentication, metadata: {name: x, namespace: shop}, spec: {}}",
		"{apiVersion: security.istio.io/v1, metadata: {name: x, namespace: shop}, spec: {}}",
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, namespace: [shop]}, spec: {}}",
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x}, spec: {}}",
		"{apiVersion: security.istio.io/v1, kind: AuthorisationPolicy, metadata: {name: x, namespace: shop}, spec: {}}",
		"{apiVersion: consul.hashicorp.com/v2, kind: ServiceIntentions, metadata: {name: who-may, namespace: consul}, spec: {destination: {name: web}}}",
		"{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceIntention, metadata: {name: who-may, namespace: consul}, spec: {destination: {name: web}}}",
		"{kind: ServiceIntentions, metadata: {name: who-may, namespace: consul}, spec: {destination: {name: web}}}",
		"{Kind: service-intention, Name: web, Sources: []}",
		"apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceIntentions\nmetadata:\n  name: who-may\nspec: [\n",
		`{"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "x", "namespace": "shop", "Namespace": "depot"}, "spec": {}, "x": "` +
			strings.Repeat("x", 1<<20) + `"}`,
		"{apiVersion: v1, kind: List, items: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: shop}, spec: {}}]}",
		"{apiVersion: v1, kind: List, items: [{apiVersion: security.istio.io/v1, metadata: {name: x, namespace: shop}, spec: {}}]}",
		"{apiVersion: v1, kind: List, metadata: {name: x}, items: {kind: AuthorizationPolicy}}",
		"Kind: service-intentions\nName: web\nSources: [\n",
		strings.Repeat("{\n---\n", 101) + "{ AuthorizationPolicy",
		inUTF16("apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: shop}\nspec: {}\n"),
	} {
		f := ofFile(t, text)
		if d := f.asked("/"); d.Allowed {
			t.Errorf("it denies nothing: %.200q\n%v", text, f.findings)
		}
	}
	for _, text := range []string{
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: depot}, spec: {}}",
		"{apiVersion: security.istio.io/v1, metadata: {name: x, namespace: depot}, spec: {}}",
		"{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceRooter, metadata: {name: web, namespace: shop}, spec: {}}",
	} {
		f := ofFile(t, text)
		if d := f.asked("/"); !d.Allowed {
			t.Errorf("it denies everything, although it is about others: %s\n%v", text, f.findings)
		}
	}
}

// TestAlone_FieldThatIsThereTwice: what a document says twice is no reason to deny nothing.
func TestAlone_FieldThatIsThereTwice(t *testing.T) {
	for _, text := range []string{
		"metadata: {name: x, namespace: shop}, spec: {selector: {matchLabels: {app: other}}, selector: {matchLabels: {app: web}}}",
		"metadata: {name: x, namespace: shop}, spec: {selector: {matchLabels: {app: other}, matchLabels: {app: web}}}",
		"metadata: {name: x, namespace: shop}, spec: {action: AUDIT, action: DENY}",
		"metadata: {name: x, namespace: shop}, spec: {action: AUDIT}, spec: {action: DENY}",
		"metadata: {name: x, namespace: depot, namespace: shop}, spec: {}",
		"metadata: {name: x, namespace: depot}, metadata: {name: x, namespace: shop}, spec: {}",
		"metadata: {name: x, namespace: shop, annotations: {istio.io/dry-run: 'true', istio.io/dry-run: 'false'}}, spec: {form: []}",
		"metadata: {name: x, namespace: shop}, spec: {selector: {matchLabels: {app: web}}, targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: x}], form: []}",
		"metadata: {name: x, namespace: shop}, spec: {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, kind: Service, name: web}]}",
		"metadata: {name: x, namespace: shop}, spec: {targetRef: {group: gateway.networking.k8s.io, kind: Gateway, name: x}, targetRefs: {kind: Service, name: web}}",
	} {
		f := ofFile(t, "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, "+text+"}\n---\n"+
			"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: all, namespace: shop}, spec: {rules: [{}]}}")
		if d := f.asked("/"); d.Allowed {
			t.Errorf("it denies nothing: %s\n%v", text, f.findings)
		}
	}
	for _, spec := range []string{
		"spec: {host: a, exportTo: [depot], exportTo: [shop], trafficPolicy: {tls: {mode: SIMPLE}}}",
		"spec: {host: a, trafficPolicy: {tls: {mode: DISABLE, mode: SIMPLE}}}",
		"spec: {host: a, trafficPolicy: {tls: {mode: DISABLE}, tls: {mode: SIMPLE}}}",
		"spec: {host: a, trafficPolicy: {tls: {mode: DISABLE}}, trafficPolicy: {tls: {mode: SIMPLE}}}",
		"spec: {host: a}, spec: {host: a, trafficPolicy: {tls: {mode: SIMPLE}}}",
	} {
		ofFile(t, "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: a, namespace: shop}, "+spec+"}").closes("DestinationRule shop/a", "a")
	}
}

// TestAlone_RuleThatMayBeAboutSeveralHosts: a refused DestinationRule with tls closes all hosts that it may be about.
func TestAlone_RuleThatMayBeAboutSeveralHosts(t *testing.T) {
	const (
		api = "apiVersion: networking.istio.io/v1, kind: DestinationRule, "
		in  = "metadata: {name: a, namespace: shop}, "
		tls = "trafficPolicy: {tls: {mode: SIMPLE}}"
	)
	for _, test := range []struct {
		text  string
		hosts string
	}{
		{api + in + "spec: {host: a, host: b, " + tls + "}", "a b"},
		{api + in + "spec: {host: a, " + tls + "}, spec: {host: b}", "a b"},
		{api + in + "spec: {host: [a, b], " + tls + "}", "a b"},
		{api + in + "spec: {host: {name: a, host: b}, " + tls + "}", "b"},
		{api + in + "spec: {hosts: [a], " + tls + "}", ""},
		{api + in + "spec: {host: a, host: b}", ""},
		{api + "metadata: {name: a, namespace: [shop]}, spec: {host: a, " + tls + "}", "a"},
		{api + "metadata: {name: a, namespace: depot, namespace: shop}, spec: {host: a, " + tls + "}", "a"},
		{api + "metadata: {name: a, namespace: Shop}, spec: {host: a, " + tls + "}", "a"},
		{api + "metadata: {name: a, namespace: depot}, spec: {host: a, wrong: 1, " + tls + "}", ""},
		{api + "metadata: {name: a, namespace: depot}, spec: {host: a.shop.svc.cluster.local, wrong: 1, " + tls + "}", ""},
		{api + in + "spec: {host: a, wrong: 1, exportTo: [Shop], " + tls + "}", "a"},
		{"kind: DestinationRule, " + in + "spec: {host: a, " + tls + "}", "a"},
		{"apiVersion: networking.istio.io/v1, " + in + "spec: {host: a, " + tls + "}", "a"},
		{"apiVersion: networking.istio.io/v1, metadata: {name: a, namespace: depot}, spec: {host: a.shop.svc.cluster.local, " + tls + "}", ""},
		{"apiVersion: networking.istio.io/v1, kind: DestinationRul, " + in + "spec: {host: a, " + tls + "}", "a"},
		{"apiVersion: networking.istio.io/v1, kind: Gatevay, " + in + "spec: {host: a}", ""},
		{"apiVersion: v1, kind: List, items: {" + api + in + "spec: {host: a, " + tls + "}}", "a"},
		{"apiVersion: v1, kind: List, items: [[{" + api + in + "spec: {host: a, " + tls + "}}]]", "a"},
	} {
		f := ofFile(t, "{"+test.text+"}")
		for _, host := range []string{"a", "b"} {
			if got, want := f.closed(host) != "", strings.Contains(test.hosts, host); got != want {
				t.Errorf("%s: calls to %s fail: %t, want %t\n%v", test.text, host, got, want, f.findings)
			}
		}
	}
}

// TestAlone_ServiceEntryThatSecuresCloses: without a ServiceEntry that has its hosts in the mesh, or names for their certificates, calls to them would
// not be secured. It closes nothing that another ServiceEntry is about.
func TestAlone_ServiceEntryThatSecuresCloses(t *testing.T) {
	entry := func(name, spec string) object {
		return object{kind: "ServiceEntry", name: name, spec: "{ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC, endpoints: [{address: 10.0.0.1}], " + spec + "}"}
	}
	const inside, wrong = "location: MESH_INTERNAL, ", "wrong: 1, "
	for _, test := range []struct {
		spec   string
		closes bool
	}{
		{wrong + inside + "hosts: [x.example, a.example]", true},
		{wrong + "location: MESH_EXTERNAL, subjectAltNames: [y.example], hosts: [a.example]", true},
		{wrong + "location: [MESH_EXTERNAL], hosts: [a.example]", true},
		{"location: MESH_EXTERNAL, location: MESH_INTERNAL, hosts: [a.example]", true},
		{wrong + inside + "hosts: a.example", true},
		{wrong + inside + "hosts: ['*.example']", true},
		{wrong + inside + "exportTo: ['*'], hosts: [a.example]", true},
		{wrong + inside + "exportTo: [depot], hosts: [a.example]", false},
		{wrong + "location: MESH_EXTERNAL, hosts: [a.example]", false},
		{wrong + "hosts: [a.example]", false},
	} {
		f := newFeed(t)
		f.yields(entry("x", test.spec))
		if got := f.closed("a.example") != ""; got != test.closes {
			t.Errorf("%s: calls to a.example fail: %t, want %t\n%v", test.spec, got, test.closes, f.findings)
		}
	}
	f := newFeed(t)
	f.yields(entry("x", wrong+inside+"hosts: [a.example, b.example]"), entry("y", inside+"hosts: [a.example]"))
	f.refused("ServiceEntry shop/x: denial")
	if f.closed("a.example") != "" || f.closed("b.example") != "ServiceEntry shop/x" {
		t.Errorf("a.example is closed by %q, and b.example by %q, want the host that no other ServiceEntry is about", f.closed("a.example"), f.closed("b.example"))
	}
}

// TestAlone_UnreadableRuleCloses: a DestinationRule that is no YAML closes the hosts that it names, if it may secure the calls to them.
func TestAlone_UnreadableRuleCloses(t *testing.T) {
	const head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata:\n  name: a\n  namespace: shop\n"
	ofFile(t, head+"spec:\n  host: a\n  trafficPolicy:\n    tls: {mode: SIMPLE\n").closes("DestinationRule shop/a", "a")
	ofFile(t, head+"spec:\n  host: a\n  trafficPolicy:\n    loadBalancer: {simple: RANDOM\n").closes("")
	ofFile(t, strings.Replace(head, "shop", "depot", 1)+"spec:\n  host: a.shop.svc.cluster.local\n  trafficPolicy:\n    tls: {mode: SIMPLE\n").closes("")
	ofFile(t, "{"+head+"spec:\n  host: \"a\"\n  'host': b.shop.svc.cluster.local\n  tls:").closes("the document at x.yaml:1", "a", "b")
	ofFile(t, inUTF16(head+"spec: {host: a, trafficPolicy: {tls: {mode: SIMPLE}}}\n")).closes("the document at x.yaml:1", "a")
	ofFile(t, "kind: VirtualService\nspec: [{host: a, tls: b\n").closes("")

	f := newFeed(t) // while the last good rule is in force, nothing is closed
	good := head + "spec:\n  host: a\n  trafficPolicy: {tls: {mode: SIMPLE}}\n"
	f.takesFile(good)
	f.takesFile("{" + good)
	f.closes("")
	if c := f.plan.Cluster(route.Target{Host: "a"}); c.TLS.Mode != policy.TLSSimple {
		t.Errorf("the cluster is %+v, want the last good rule", c)
	}
}

// TestAlone_ListThatIsNone: documents in what is meant to be a List, and is none, protect all the same.
func TestAlone_ListThatIsNone(t *testing.T) {
	const item = "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, namespace: shop}, spec: {}}"
	for _, text := range []string{
		"{apiVersion: networking.istio.io/v1, kind: List, items: [" + item + "]}",
		"{apiVersion: example.com/v1, kind: List, items: [" + item + "]}",
		"{apiVersion: v1, kind: list, items: [" + item + "]}",
		"{apiVersion: v1, kind: Lists, items: [" + item + "]}",
		"{apiVersion: v1, kind: List, items: [[" + item + "]]}",
		"{apiVersion: v1, kind: List, items: [&x [a], AuthorizationPolicy, *x]}",
	} {
		if f := ofFile(t, text); f.asked("/").Allowed {
			t.Errorf("it denies nothing: %s\n%v", text, f.findings)
		}
	}
	for _, text := range []string{
		"{apiVersion: v1, kind: List, items: [a, {apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, namespace: shop}, spec: {rules: [{}]}}]}",
		"{apiVersion: networking.istio.io/v1, kind: List, items: []}",
	} {
		ofFile(t, text).allows("/")
	}
}

// TestAlone_ListOfOneKind: the answer of an API server, saved in a file, stands for its items, which need not repeat their kind.
func TestAlone_ListOfOneKind(t *testing.T) {
	const deny = "metadata: {name: x, namespace: shop}, spec: {action: DENY, rules: [{to: [{operation: {paths: [/private]}}]}]}"
	for _, text := range []string{
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, metadata: {resourceVersion: '7'}, items: [{" + deny + "}]}",
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, items: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, " + deny + "}]}",
		"{apiVersion: v1, kind: AuthorizationPolicyList, items: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, " + deny + "}]}",
		"{apiVersion: example.com/v1, kind: BundleList, items: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, " + deny + "}]}",
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, items: [{kind: , " + deny + "}]}",
		"{apiVersion: v1, kind: List, items: [{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, items: [{" + deny + "}]}]}",
	} {
		f := ofFile(t, text)
		f.refused()
		f.allows("/")
		if f.asked("/private").Allowed {
			t.Errorf("it denies nothing: %s\n%v", text, f.findings)
		}
		f.takesFile(strings.Replace(text, "action: DENY", "action: DENIED", 1)) // the last good version stays
		f.refused("AuthorizationPolicy shop/x: last good")
		f.allows("/")
		if f.asked("/private").Allowed {
			t.Errorf("the last good version denies nothing: %s\n%v", text, f.findings)
		}
		f.takesFile("# nothing\n")
		f.allows("/private")
	}
	for _, text := range []string{
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, items: [a, {" + deny + "}]}",
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, item: [{" + deny + "}]}",
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, items: {a: {" + deny + "}}}",
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicyList, items: [{kind: AuthPolicy, " + deny + "}]}",
		"{apiVersion: security.istio.io/v9, kind: AuthorizationPolicyList, items: [{" + deny + "}]}",
	} {
		if f := ofFile(t, text); f.asked("/private").Allowed {
			t.Errorf("it denies nothing: %s\n%v", text, f.findings)
		}
	}
	f := ofFile(t, "{apiVersion: example.com/v1, kind: AllowList, items: [a, b]}") // no list of documents
	f.refused()
	f.allows("/")
}

// TestAlone_PeerAuthenticationIsForNoGateway: a PeerAuthentication has no targetRefs, so nothing says that it is about gateways alone.
func TestAlone_PeerAuthenticationIsForNoGateway(t *testing.T) {
	f := newFeed(t)
	f.yields(object{kind: "PeerAuthentication", name: "x", spec: "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: edge}], mtls: {mode: STRICT}}"})
	f.denies("PeerAuthentication shop/x")
}

// TestAlone_LineBetweenDocumentsThatIsMissing: what the second document would have protected is closed, whatever the first one is.
func TestAlone_LineBetweenDocumentsThatIsMissing(t *testing.T) {
	const access = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: x, namespace: shop}\nspec: {}\n"
	const rule = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x, namespace: shop}\n" +
		"spec: {host: a, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}}}\n"
	for _, first := range []string{
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x, namespace: depot}\n",
		"apiVersion: v1\nkind: Service\nmetadata: {name: x, namespace: depot}\nspec: {ports: [{port: 80}]}\n",
		"apiVersion: v1\nkind: List\nitems: []\n",
	} {
		if f := ofFile(t, first+access); f.asked("/").Allowed {
			t.Errorf("it denies nothing:\n%s%v", first, f.findings)
		}
		f := ofFile(t, first+rule)
		f.allows("/")
		if f.closed("a") == "" {
			t.Errorf("it closes nothing:\n%s%v", first, f.findings)
		}
	}
}

// TestAlone_AnnotationsOfLinkerd: a restriction that is not enforced denies the workloads it is about.
func TestAlone_AnnotationsOfLinkerd(t *testing.T) {
	const (
		deny  = "annotations: {config.linkerd.io/default-inbound-policy: deny}"
		ports = "annotations: {config.linkerd.io/proxy-require-identity-inbound-ports: '80'}"
	)
	for _, test := range []struct {
		document string
		denies   bool
	}{
		{"{apiVersion: v1, kind: Namespace, metadata: {name: shop, " + deny + "}}", true},
		{"{apiVersion: v1, kind: Namespace, metadata: {name: depot, " + deny + "}}", false},
		{"{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: shop, labels: {app: web}, " + ports + "}}", true},
		{"{apiVersion: v1, kind: Pod, metadata: {name: x, namespace: depot, " + ports + "}}", false},
		{"{apiVersion: apps/v1, kind: Deployment, metadata: {name: x, namespace: shop}, spec: {template: {metadata: {labels: {app: web, v: '1'}, " + deny + "}}}}", true},
		{"{apiVersion: apps/v1, kind: Deployment, metadata: {name: x, namespace: shop}, spec: {template: {metadata: {" + deny + "}}}}", true},
		{"{apiVersion: apps/v1, kind: Deployment, metadata: {name: x, namespace: shop}, spec: {template: {metadata: {labels: {app: db}, " + deny + "}}}}", false},
		{"{apiVersion: batch/v1, kind: CronJob, metadata: {name: x, namespace: shop}, spec: {jobTemplate: {spec: {template: {metadata: {" + deny + "}}}}}}", true},
		{"{apiVersion: argoproj.io/v1alpha1, kind: Rollout, metadata: {name: x, namespace: shop}, spec: {template: {metadata: {" + ports + "}}}}", true},
		{"{apiVersion: apps/v1, kind: Deployment, metadata: {name: x, namespace: shop}, spec: {template: {metadata: {annotations: {linkerd.io/inject: enabled}}}}}", false},
	} {
		f := ofFile(t, test.document)
		if d := f.asked("/"); d.Allowed == test.denies {
			t.Errorf("%s: allowed %t, want %t\n%v", test.document, d.Allowed, !test.denies, f.findings)
		}
	}
}

// TestAlone_NamespaceThatIsNone: what is no name of a namespace may be meant to be that of this process.
func TestAlone_NamespaceThatIsNone(t *testing.T) {
	for _, namespace := range []string{"Shop", "'shop '", "shop.", "''"} {
		f := ofFile(t, "{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: x, namespace: "+namespace+"}, spec: {rules: [{}]}}")
		if f.asked("/").Allowed {
			t.Errorf("in the namespace %s it denies nothing:\n%v", namespace, f.findings)
		}
	}
}

// TestAlone_RefusedIntentionsLeaveTheDefault: intentions about another service have the default apply to this one. Also if they are refused:
// nobody is allowed because of a mistake.
func TestAlone_RefusedIntentionsLeaveTheDefault(t *testing.T) {
	for _, text := range []string{
		"{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceIntentions, metadata: {name: x}, spec: {destination: {name: other}, sources: [{name: api, action: allow}]}}",
		"{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceIntentions, metadata: {name: x}, spec: {destination: {name: other}, sources: {}}}",
		"{apiVersion: consul.hashicorp.com/v2, kind: ServiceIntentions, metadata: {name: x}, spec: {destination: {name: other}}}",
		"{kind: ServiceIntentions, metadata: {name: x}, spec: {destination: {name: other}}}",
		"{Kind: service-intentions, Name: other, Sources: [{Name: api, Action: perhaps}]}",
		"{Kind: service-intention, Name: other, Sources: []}",
	} {
		if ofFile(t, text).asked("/", api).Allowed {
			t.Errorf("everybody is allowed by %s", text)
		}
		f := newFeed(t)
		f.workload.Service, f.workload.AllowByDefault = "web", true
		f.takesFile(text)
		if d := f.asked("/", api); !d.Allowed {
			t.Errorf("the default is to allow, but by %s it is denied: %s", text, d.Reason)
		}
	}
	ofFile(t, "{Kind: service-resolver, Name: other, Wrong: 1}").allows("/")
}

// TestAlone_TwoVersionsOfOnePolicy: of one object in two versions, which two feeds may have for a while, both are in force. A uid that was copied
// from a policy does not take it out of force.
func TestAlone_TwoVersionsOfOnePolicy(t *testing.T) {
	forbids := func(path string, created int) policy.Source {
		return object{kind: "AuthorizationPolicy", name: "x", uid: 1, created: created, spec: "{action: DENY, rules: [{to: [{operation: {paths: [" + path + "]}}]}]}"}.source()
	}
	f := newFeed(t)
	for range 2 {
		f.takes(forbids("/new", 1), forbids("/old", 2))
		f.refused()
		f.says("is there in another version, too")
		f.allows("/")
		if f.asked("/new").Allowed || f.asked("/old").Allowed {
			t.Error("one of the two versions is not in force")
		}
	}
	f.takes(forbids("/new", 1), forbids("/new", 1))
	f.refused("AuthorizationPolicy shop/x: nothing")
	f.allows("/old")
}

// TestAlone_AliasesHideNoTLS: a refused DestinationRule closes its host also if its tls stands elsewhere in the document.
func TestAlone_AliasesHideNoTLS(t *testing.T) {
	deep := "x0: &x0 {n: 1}\n"
	for i := range 12 { // 4^12 fields, none of them tls
		deep += fmt.Sprintf("x%d: &x%d {a: *x%d, b: *x%d, c: *x%d, d: *x%d}\n", i+1, i+1, i, i, i, i)
	}
	for name, text := range map[string]string{
		"the whole policy": "x: &p {tls: {mode: SIMPLE}, wrong: 1}\nspec: {host: a, trafficPolicy: *p}",
		"in a list":        "x: &p [{port: {number: 80}, tls: {mode: SIMPLE}, wrong: 1}]\nspec: {host: a, trafficPolicy: {portLevelSettings: *p}}",
		"too many to tell": deep + "spec: {host: a, trafficPolicy: *x12}",
	} {
		t.Run(name, func(t *testing.T) {
			ofFile(t, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\n"+text).closes("DestinationRule shop/a", "a")
		})
	}
}

// api is the identity of the service api.
const api = "cluster.local/ns/default/dc/dc1/svc/api"

func inUTF16(text string) string {
	data := []byte{0xFF, 0xFE}
	for _, unit := range utf16.Encode([]rune(text)) {
		data = binary.LittleEndian.AppendUint16(data, unit)
	}
	return string(data)
}

// TestAlone_ListThatCannotBeReadKeepsItsDocuments also if the List has a name.
func TestAlone_ListThatCannotBeReadKeepsItsDocuments(t *testing.T) {
	f := newFeed(t)
	const list = "{apiVersion: v1, kind: List, metadata: {name: all}, items: "
	f.takesFile(list + "[{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: a, namespace: shop}, spec: " + answering("a", 201) + "}]}")
	f.refused()
	f.takesFile(list + "{}}")
	if got := f.status("a"); got != 201 {
		t.Errorf("the host answers %d, want 201 of the last good version", got)
	}
}

// TestAlone_SecondOfOneNameDeniesForGood: the last good version of the first document is not one of the second.
func TestAlone_SecondOfOneNameDeniesForGood(t *testing.T) {
	f := newFeed(t)
	first := object{kind: "AuthorizationPolicy", name: "x", created: 1, spec: "{rules: [{}]}"}
	second := object{kind: "AuthorizationPolicy", name: "x", created: 2, spec: "{action: DENY, rules: [{to: [{operation: {paths: [/admin]}}]}]}"}
	for range 3 {
		f.yields(first, second)
		f.refused("AuthorizationPolicy shop/x: denial")
		f.denies("AuthorizationPolicy shop/x")
	}
}

// TestAlone_ServiceIntentionsAreOfTheirDestination: the name of the object says nothing about whom it protects.
func TestAlone_ServiceIntentionsAreOfTheirDestination(t *testing.T) {
	intentions := func(destination, sources string) string {
		return "{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceIntentions, metadata: {name: who-may, uid: a}, spec: {destination: " + destination + ", sources: " + sources + "}}"
	}
	for _, test := range []struct {
		destination string
		denies      bool
	}{
		{"{name: web}", true}, {"{name: '*'}", true}, {"{name: [web]}", true}, {"[web]", true}, {"{name: other}", false},
		{"{name: other, name: web}", true}, {"{Name: other, name: web}", true}, {"{name: other}, Destination: {name: web}", true},
	} {
		f := newFeed(t)
		f.workload.Service, f.workload.AllowByDefault = "web", true
		f.takesFile(intentions(test.destination, "{name: api}"))
		if d := f.asked("/", api); d.Allowed == test.denies {
			t.Errorf("%s: %+v, want a denial: %t", test.destination, d, test.denies)
		}
	}
	f := newFeed(t)
	f.workload.Service, f.workload.AllowByDefault = "web", true
	f.takesFile("{Kind: service-intentions, Name: other, name: web, Sources: [{Name: api, Action: deny}]}")
	if f.asked("/", api).Allowed {
		t.Errorf("intentions with two names deny nothing:\n%v", f.findings)
	}
	f = ofFile(t, intentions("{name: web}", "[{name: api, action: allow}]"))
	f.refused()
	f.takesFile(intentions("{name: web}", "{name: api}"))
	f.refused("service-intentions default/web: last good")
}
