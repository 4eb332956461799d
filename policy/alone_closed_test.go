package policy_test

import (
	"encoding/binary"
	"fmt"
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
		f := newFeed(t)
		f.takesFile(head + "spec: [\n")
		if d := f.asked("/"); d.Allowed {
			t.Errorf("it denies nothing:\n%s", head)
		}
	}
	f := newFeed(t)
	f.takesFile(api + "metadata:\n  name: x\n  namespace: depot # theirs\n  labels:\n    namespace: shop\nspec: [\n")
	f.refused("AuthorizationPolicy depot/x: nothing")
	f.allows("/")
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
		f := newFeed(t)
		f.workload.Service = "web"
		f.takesFile(text)
		if d := f.asked("/"); d.Allowed {
			t.Errorf("it denies nothing: %.200q\n%v", text, f.findings)
		}
	}
	for _, text := range []string{
		"{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {namespace: depot}, spec: {}}",
		"{apiVersion: security.istio.io/v1, metadata: {name: x, namespace: depot}, spec: {}}",
		"{apiVersion: consul.hashicorp.com/v2, kind: ServiceIntentions, metadata: {name: web, namespace: shop}, spec: {destination: {name: other}}}",
		"{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceRooter, metadata: {name: web, namespace: shop}, spec: {}}",
	} {
		f := newFeed(t)
		f.workload.Service = "web"
		f.takesFile(text)
		if d := f.asked("/"); !d.Allowed {
			t.Errorf("it denies everything, although it is about others: %s\n%v", text, f.findings)
		}
	}
	f := newFeed(t)
	f.takesFile("{kind: DestinationRule, metadata: {name: a, namespace: shop}, spec: {host: a, trafficPolicy: {tls: {mode: SIMPLE}}}}")
	if got := f.plan.Cluster(route.Target{Host: "a"}).Closed; got != "DestinationRule shop/a" {
		t.Errorf("a DestinationRule without an apiVersion closes its host as %q", got)
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
		f := newFeed(t)
		f.takesFile("{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, " + text + "}\n---\n" +
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
		f := newFeed(t)
		f.takesFile("{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: a, namespace: shop}, " + spec + "}")
		if got := f.plan.Cluster(route.Target{Host: "a"}).Closed; got != "DestinationRule shop/a" {
			t.Errorf("%s: its host is closed as %q", spec, got)
		}
	}
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
			f := newFeed(t)
			f.takesFile("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\n" + text)
			if got := f.plan.Cluster(route.Target{Host: "a"}).Closed; got != "DestinationRule shop/a" {
				t.Errorf("its host is closed as %q\n%v", got, f.findings)
			}
		})
	}
}

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
		{"{name: other, name: web}", true},
	} {
		f := newFeed(t)
		f.workload.Service = "web"
		f.takesFile(intentions(test.destination, "{name: api}"))
		if d := f.asked("/"); d.Allowed == test.denies {
			t.Errorf("%s: %+v, want a denial: %t", test.destination, d, test.denies)
		}
	}
	f := newFeed(t)
	f.workload.Service = "web"
	f.takesFile(intentions("{name: web}", "[{name: api, action: allow}]"))
	f.refused()
	f.takesFile(intentions("{name: web}", "{name: api}"))
	f.refused("service-intentions default/web: last good")
}
