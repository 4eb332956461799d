package policy_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/internal/catalog"
)

// TestCheck_FieldsThatTheAPIServerDropped: an API server stores a document without the fields that its schema does not know, and what is left
// may allow anybody. kubectl keeps what was applied in an annotation.
func TestCheck_FieldsThatTheAPIServerDropped(t *testing.T) {
	const security, networking = "security.istio.io/v1", "networking.istio.io/v1"
	const target = `"sources":[{"kind":"ServiceAccount","name":"a","namespace":"shop"}],"rules":[{"kind":"TCPRoute","name":"a"}],"destination":{"kind":"ServiceAccount","name":"a"`
	for _, tt := range []struct {
		name, api, kind, written, stored string
		want                             string // how the only finding begins; "" for none
	}{
		{"rule with a misspelt from", security, "AuthorizationPolicy", `{"action":"ALLOW","rules":[{"form":[]}]}`, `{"action":"ALLOW","rules":[{}]}`,
			`spec.rules[0].form: error: the API server dropped this when the document was applied (unknown field "form", did you mean "from"?)`},
		{"misspelt selector", security, "AuthorizationPolicy", `{"selector":{"matchLabel":{"app":"a"}},"rules":[{}]}`, `{"selector":{},"rules":[{}]}`,
			"spec.selector.matchLabel: error: "},
		{"misspelt mode", security, "PeerAuthentication", `{"mtls":{"modes":"STRICT"}}`, `{"mtls":{}}`, "spec.mtls.modes: error: "},
		{"misspelt list", security, "RequestAuthentication", `{"jwtRule":[{"issuer":"https://a"}]}`, `{}`, "spec.jwtRule: error: "},
		{"route", networking, "VirtualService", `{"hosts":["a"],"http":[{"timeouts":"1s","route":[{"destination":{"host":"a"}}]}]}`,
			`{"hosts":["a"],"http":[{"route":[{"destination":{"host":"a"}}]}]}`, "spec.http[0].timeouts: warning: "},
		{"names of peers", networking, "DestinationRule", `{"host":"a","trafficPolicy":{"tls":{"mode":"SIMPLE","subjectAltName":["a"]}}}`,
			`{"host":"a","trafficPolicy":{"tls":{"mode":"SIMPLE"}}}`, "spec.trafficPolicy.tls.subjectAltName: error: "},
		{"field beside the spec", security, "PeerAuthentication", `{},"specs":{"mtls":{"mode":"STRICT"}}`, `{}`, "specs: error: "},
		{"rule with a null from", security, "AuthorizationPolicy", `{"action":"ALLOW","rules":[{"from":null}]}`, `{"action":"ALLOW","rules":[{}]}`,
			"spec.rules[0].from: warning: the API server dropped this when the document was applied (it has no value): "},
		{"null that others gave a value", security, "AuthorizationPolicy", `{"selector":null,"rules":[{}]}`, `{"selector":{},"rules":[{}]}`, ""},
		{"nothing dropped", security, "AuthorizationPolicy", `{"rules":[{"to":[{"operation":{"ports":["80"]}}]}]}`, `{"rules":[{"to":[{"operation":{"ports":["80"]}}]}]}`, ""},
		{"a known field was removed by others", security, "AuthorizationPolicy", `{"action":"DENY","rules":[{}]}`, `{"rules":[{}]}`, ""},
		{"port of an earlier version", "access.smi-spec.io/v1alpha3", "TrafficTarget", `{` + target + `,"port":80}}`, `{` + target + `}}`,
			"spec.destination.port: error: the API server dropped this when the document was applied (does not exist in v1alpha3: "},
		{"ports of a later version", "specs.smi-spec.io/v1alpha3", "TCPRoute", `{"matches":{"ports":[80]}}`, `{}`, "spec.matches: error: "},
		{"access policy of a later version", "policy.linkerd.io/v1beta2", "Server", `{"podSelector":{},"port":80,"accessPolicy":"deny"}`, `{"podSelector":{},"port":80}`,
			"spec.accessPolicy: error: "},
		{"mistake mended by others", "policy.linkerd.io/v1beta3", "Server", `{"podSelector":{},"port":0}`, `{"podSelector":{},"port":80}`, ""},
		{"mistake that is still there", "policy.linkerd.io/v1beta3", "Server", `{"port":80}`, `{"port":80}`, ""},
		{"another version of an API", "specs.smi-spec.io/x", "TCPRoute", `{"matches":{"ports":[80]}}`, `{}`, ""},
		{"the rule was removed by others", security, "AuthorizationPolicy", `{"rules":[{},{"form":[]}]}`, `{"rules":[{}]}`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			head := `"apiVersion":"` + tt.api + `","kind":"` + tt.kind + `",`
			written := `{` + head + `"metadata":{"annotations":{},"name":"a","namespace":"shop"},"spec":` + tt.written + "}\n"
			quoted, _ := json.Marshal(written)
			stored := func(annotation string) policy.Source {
				return policy.Source{Name: "a.json", Data: []byte(`{` + head + `"metadata":{"name":"a","namespace":"shop","annotations":{` + annotation + `}},"spec":` + tt.stored + `}`)}
			}
			var dropped policy.Findings
			with := policy.Check([]policy.Source{stored(`"kubectl.kubernetes.io/last-applied-configuration":` + string(quoted))}, policy.Workload{Namespace: "shop"})
			for _, f := range with.Findings {
				if strings.Contains(f.Message, "dropped") {
					dropped = append(dropped, f)
				}
			}
			prefix := "a.json:1: " + tt.kind + " shop/a: " + tt.want
			if tt.want == "" && dropped != nil || tt.want != "" && (len(dropped) != 1 || !strings.HasPrefix(dropped[0].String(), prefix)) {
				t.Errorf("findings:\n%v\nwant one that begins with\n%s", with.Findings, prefix)
			}
			// Another document's annotation says nothing about this one.
			other := strings.Replace(string(quoted), `\"name\":\"a\"`, `\"name\":\"b\"`, 1)
			if r := policy.Check([]policy.Source{stored(`"kubectl.kubernetes.io/last-applied-configuration":` + other)}, policy.Workload{Namespace: "shop"}); strings.Contains(r.Findings.Error(), "dropped") {
				t.Errorf("with the annotation of another document: %v", r.Findings)
			}
		})
	}
}

// TestCheck_DroppedHeaders: before v1alpha2 an HTTPRouteGroup had no headers, so that a match of more than headers is left.
func TestCheck_DroppedHeaders(t *testing.T) {
	document := func(annotation, match string) string {
		return `{"apiVersion":"specs.smi-spec.io/v1alpha1","kind":"HTTPRouteGroup","metadata":{"name":"a","namespace":"shop"` + annotation + `},"matches":[{"name":"a"` + match + "}]}"
	}
	written, _ := json.Marshal(document("", `,"headers":[{"a":"b"}]`))
	stored := document(`,"annotations":{"kubectl.kubernetes.io/last-applied-configuration":`+string(written)+"}", "")
	const want = "matches[0].headers: error: the API server dropped this"
	if r := policy.Check([]policy.Source{{Name: "a.json", Data: []byte(stored)}}, policy.Workload{Namespace: "shop"}); !strings.Contains(r.Findings.Error(), want) {
		t.Errorf("findings:\n%v\nwant %s", r.Findings, want)
	}
}

// TestCheck_DroppedFieldsOfEveryKind: there is no kind that is enforced, and whose dropped fields are not found.
func TestCheck_DroppedFieldsOfEveryKind(t *testing.T) {
	for group, api := range catalog.Groups() {
		for kind, state := range api.Kinds {
			if state != catalog.Enforced || group == "" { // the schemas of Kubernetes' own kinds have all fields
				continue
			}
			version := "v1"
			if versions := api.VersionsOf(kind); len(versions) > 0 {
				version = versions[len(versions)-1]
			}
			document := func(annotation, spec string) string {
				return `{"apiVersion":"` + group + "/" + version + `","kind":"` + kind + `","metadata":{"name":"a","namespace":"shop"` + annotation + `},"spec":` + spec + "}"
			}
			written, _ := json.Marshal(document("", `{"zzz":1}`))
			stored := document(`,"annotations":{"kubectl.kubernetes.io/last-applied-configuration":`+string(written)+"}", "{}")
			if r := policy.Check([]policy.Source{{Name: "a.json", Data: []byte(stored)}}, policy.Workload{Namespace: "shop"}); !strings.Contains(r.Findings.Error(), "spec.zzz") {
				t.Errorf("%s/%s: a field that was dropped is not found:\n%v", group, kind, r.Findings)
			}
		}
	}
}
