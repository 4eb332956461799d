package policy_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

const connectDomain = "11111111-2222-3333-4444-555555555555.consul"

// ofWeb is a process of the service web whose identity comes from Connect.
var ofWeb = policy.Workload{Service: "web", TrustDomain: connectDomain}

// requestOf is a request from a service of Connect.
func requestOf(from, method, target string, header ...string) *authz.Request {
	r := &authz.Request{
		Principal: connectDomain + "/ns/default/dc/dc1/svc/" + from, Method: method, Target: target, Host: "web", Header: http.Header{},
		Destination: netip.MustParseAddrPort("10.0.0.1:80"),
	}
	if from == "" {
		r.Principal = ""
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// intentionsOf compiles documents without a warning.
func intentionsOf(t *testing.T, w policy.Workload, documents ...string) *policy.Plan {
	t.Helper()
	plan, findings := policy.Compile(entrySources(documents...), w)
	if plan == nil || len(findings) > 0 {
		t.Fatal(findings)
	}
	return plan
}

func TestPrecedenceOfIntentions(t *testing.T) {
	// From the one that counts least to the one that counts most. Each allows if the one before denies.
	levels := []string{
		`{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "*", "Action": %q}]}`,
		`{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "api", "Action": %q, "Precedence": 99}]}`,
		`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "*", "Action": %q}]}`,
		`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Action": %q}]}`,
	}
	names := []string{"service-intentions/*", "service-intentions/*", "service-intentions/web", "service-intentions/web"}
	for i, level := range levels {
		for _, allow := range []bool{true, false} {
			action := map[bool]string{true: "allow", false: "deny"}
			documents := []string{fmt.Sprintf(level, action[allow])}
			if i > 0 { // one that counts less says the opposite, before and after it
				other := fmt.Sprintf(levels[i-1], action[!allow])
				if names[i-1] == names[i] { // it is in the same entry
					from := other[strings.Index(other, "[")+1 : strings.LastIndex(other, "]")]
					documents[0] = strings.Replace(documents[0], "[", "["+from+", ", 1)
				} else {
					documents = []string{other, documents[0]}
				}
			}
			got := intentionsOf(t, ofWeb, documents...).Inbound().Authorize(requestOf("api", "GET", "/"))
			if got.Allowed != allow || got.Policy != names[i] {
				t.Errorf("%s: allowed %v by %s %d (%s), want %v by %s", documents, got.Allowed, got.Policy, got.Rule, got.Reason, allow, names[i])
			}
		}
	}
}

func TestDefaultOfIntentions(t *testing.T) {
	allowing := ofWeb
	allowing.AllowByDefault = true
	mine := `{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Permissions": [{"Action": "deny", "HTTP": {"PathPrefix": "/admin"}}]}]}`
	for _, tt := range []struct {
		name     string
		w        policy.Workload
		document string
		request  *authz.Request
		want     bool
	}{
		{"not named, deny", ofWeb, mine, requestOf("db", "GET", "/"), false},
		{"not named, allow", allowing, mine, requestOf("db", "GET", "/"), true},
		{"no permission matches, deny", ofWeb, mine, requestOf("api", "GET", "/"), false},
		{"no permission matches, allow", allowing, mine, requestOf("api", "GET", "/"), true},
		{"a permission denies, allow", allowing, mine, requestOf("api", "GET", "/admin/x"), false},
		{"a live service that no intention names", ofWeb, `{"Kind": "service-intentions", "Name": "web", "Sources": []}`, requestOf("api", "GET", "/"), false},
		{"intentions of others alone", ofWeb, `{"Kind": "service-intentions", "Name": "db", "Sources": [{"Name": "*", "Action": "allow"}]}`, requestOf("api", "GET", "/"), false},
		{"the default is for peers of Connect", allowing, mine, requestOf("", "GET", "/"), false},
		{"names have a case", allowing, `{"Kind": "service-intentions", "Name": "Web", "Sources": [{"Name": "*", "Action": "deny"}]}`, requestOf("api", "GET", "/"), true},
		{"no intentions", ofWeb, `{"Kind": "service-defaults", "Name": "web", "Protocol": "http"}`, requestOf("api", "GET", "/"), true},
	} {
		if got := intentionsOf(t, tt.w, tt.document).Inbound().Authorize(tt.request); got.Allowed != tt.want {
			t.Errorf("%s: allowed %v (%s), want %v", tt.name, got.Allowed, got.Reason, tt.want)
		}
	}
}

// The sidecars of Consul do so, though the order of intentions says otherwise.
// Consul stores methods in upper case, whatever case they are written in.
func TestMethodsOfIntentions(t *testing.T) {
	w := ofWeb
	w.AllowByDefault = true
	plan := intentionsOf(t, w, `{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Permissions": [{"Action": "deny", "HTTP": {"Methods": ["get", "Put"]}}]}]}`)
	for method, want := range map[string]bool{"GET": false, "PUT": false, "POST": true} {
		if got := plan.Inbound().Authorize(requestOf("api", method, "/")); got.Allowed != want {
			t.Errorf("%s: allowed %t (%s), want %t", method, got.Allowed, got.Reason, want)
		}
	}
}

func TestIntentionOfACallerForAllServicesIsNotHidden(t *testing.T) {
	mine := `{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "*", "Action": %q}]}`
	everywhere := `{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "api", "Action": %q}]}`
	for _, tt := range []struct {
		mine, everywhere string
		allowByDefault   bool
		want             bool
	}{
		{"allow", "deny", true, false},
		{"allow", "deny", false, true},
		{"deny", "allow", true, false},
		{"deny", "allow", false, false}, // sidecars allow
	} {
		w := ofWeb
		w.AllowByDefault = tt.allowByDefault
		in := intentionsOf(t, w, fmt.Sprintf(mine, tt.mine), fmt.Sprintf(everywhere, tt.everywhere)).Inbound()
		if got := in.Authorize(requestOf("api", "GET", "/")); got.Allowed != tt.want {
			t.Errorf("%+v: allowed %v", tt, got.Allowed)
		}
	}
}

// A process of which it is not known whom it serves must not serve everybody.
func TestIntentionsOfAServiceThatIsNotKnown(t *testing.T) {
	all := `{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "*", "Action": "allow"}]}`
	plan, findings := policy.Compile(entrySources(all), policy.Workload{TrustDomain: connectDomain, AllowByDefault: true})
	if plan == nil || len(findings) != 1 || !strings.Contains(findings[0].Message, "WithWorkload") || findings[0].Severity != policy.Warning {
		t.Fatalf("findings: %v", findings)
	}
	if got := plan.Inbound().Authorize(requestOf("api", "GET", "/")); got.Allowed {
		t.Errorf("allowed: %s", got.Reason)
	}
	if report := policy.Check(entrySources(all), policy.Workload{}); len(report.Findings) > 0 {
		t.Errorf("a check of documents for nobody in particular: %v", report.Findings)
	}
}

func TestFormsOfIntentions(t *testing.T) {
	for name, document := range map[string]string{
		"as Consul's API writes it": `{"Kind": "service-intentions", "Name": "web", "Partition": "default", "Namespace": "default", "Hash": 1, "CreateIndex": 2, "ModifyIndex": 2, "Meta": {"a": "b"},
			"Sources": [{"Name": "api", "Type": "consul", "Precedence": 9, "Description": "x", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/v1/", "Methods": ["GET"], "Header": [{"Name": "x-a", "Contains": "B", "IgnoreCase": true}]}}]}]}`,
		"in snake case": `{"kind": "service-intentions", "name": "web", "sources": [{"name": "api", "permissions": [{"action": "allow", "http": {"path_prefix": "/v1/", "methods": ["GET"], "header": [{"name": "x-a", "contains": "B", "ignore_case": "true"}]}}]}]}`,
		"as an object of Kubernetes": `
apiVersion: consul.hashicorp.com/v1alpha1
kind: ServiceIntentions
metadata: {name: callers-of-web}
spec:
  destination: {name: web}
  sources:
  - name: api
    permissions:
    - action: allow
      http: {pathPrefix: /v1/, methods: [GET], header: [{name: x-a, contains: B, ignoreCase: true}]}
`,
	} {
		in := intentionsOf(t, ofWeb, document).Inbound()
		for request, want := range map[*authz.Request]bool{
			requestOf("api", "GET", "/v1/x", "x-a", "abc"): true,
			requestOf("api", "GET", "/v1/x", "x-a", "ac"):  false,
			requestOf("api", "GET", "/v1/x"):               false,
			requestOf("api", "PUT", "/v1/x", "x-a", "abc"): false,
			requestOf("api", "GET", "/v2/x", "x-a", "abc"): false,
			requestOf("db", "GET", "/v1/x", "x-a", "abc"):  false,
		} {
			if got := in.Authorize(request); got.Allowed != want {
				t.Errorf("%s: %s %s from %s with %v: allowed %v, want %v", name, request.Method, request.Target, request.Principal, request.Header, got.Allowed, want)
			}
		}
	}
}

func TestIntentionsThatAreRefused(t *testing.T) {
	for _, tt := range []struct{ document, field, message string }{
		{`{"Kind": "service-intentions", "Name": "web"}`, "Sources", "missing"},
		{`{"Kind": "service-intentions", "Sources": []}`, "Name", "missing"},
		{`{"Kind": "service-intentions", "Name": "web*", "Sources": []}`, "Name", "star"},
		{`{"Kind": "service-intentions", "Name": "web", "Namespace": "other", "Sources": []}`, "Namespace", "Enterprise"},
		{`{"Kind": "service-intentions", "Name": "web", "JWT": {"Providers": [{"Name": "okta"}]}, "Sources": []}`, "JWT", "not verified"},
		{`{"Kind": "service-intentions", "Name": "web", "Sauces": []}`, "Sauces", "unknown field"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Action": "allow"}]}`, "Sources[0].Name", "missing"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "ap*", "Action": "allow"}]}`, "Sources[0].Name", "star"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "a b", "Action": "deny"}]}`, "Sources[0].Name", "no service"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Namespace": "other", "Action": "allow"}]}`, "Sources[0].Namespace", "Enterprise"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Partition": "other", "Action": "allow"}]}`, "Sources[0].Partition", "Enterprise"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Peer": "other", "Action": "allow"}]}`, "Sources[0].Peer", "clusters"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "SamenessGroup": "other", "Action": "allow"}]}`, "Sources[0].SamenessGroup", "Enterprise"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Type": "vault", "Action": "allow"}]}`, "Sources[0].Type", "consul"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api"}]}`, "Sources[0].Action", "missing"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Action": "Allow"}]}`, "Sources[0].Action", "allow or deny"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Action": "allow"}, {"Name": "api", "Action": "deny"}]}`, "Sources[1].Name", "twice"},
		{`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Action": "allow", "Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/"}}]}]}`, "Sources[0].Action", "does not go with"},
		{`{"Kind": "service-intentions", "Name": "*", "Sources": [{"Name": "api", "Permissions": [{"Action": "allow", "HTTP": {"PathExact": "/"}}]}]}`, "Sources[0].Permissions", "for all services"},
	} {
		refused(t, tt.document, tt.field, tt.message)
	}
	for _, tt := range []struct{ permission, field, message string }{
		{`{"Action": "allow"}`, ".HTTP", "missing"},
		{`{"HTTP": {"PathExact": "/"}}`, ".Action", "missing"},
		{`{"Action": "audit", "HTTP": {"PathExact": "/"}}`, ".Action", "allow or deny"},
		{`{"Action": "deny", "HTTP": {"PathExact": "/"}, "JWT": {"Providers": [{"Name": "okta"}]}}`, ".JWT", "not verified"},
		{`{"Action": "deny", "HTTP": {"PathExact": "/a", "PathPrefix": "/b"}}`, ".HTTP", "at most one"},
		{`{"Action": "deny", "HTTP": {"PathExact": "a"}}`, ".HTTP.PathExact", "slash"},
		{`{"Action": "deny", "HTTP": {"PathPrefix": "/a/../b"}}`, ".HTTP.PathPrefix", "dot segments"},
		{`{"Action": "deny", "HTTP": {"PathRegex": "/a("}}`, ".HTTP.PathRegex", "missing closing"},
		{`{"Action": "deny", "HTTP": {"PathRegex": "(?!a)"}}`, ".HTTP.PathRegex", "invalid"},
		{`{"Action": "deny", "HTTP": {"Methods": ["GET", "a b"]}}`, ".HTTP.Methods[1]", "not a method"},
		{`{"Action": "deny", "HTTP": {"Methods": ["GET", "FETCH"]}}`, ".HTTP.Methods[1]", `"FETCH" is not a method`},
		{`{"Action": "deny", "HTTP": {"Methods": ["GET", "get"]}}`, ".HTTP.Methods[1]", "GET is there twice"},
		{`{"Action": "deny", "HTTP": {"Header": [{"Name": "a", "Present": true}, {"Name": "b", "Regex": "["}]}}`, ".HTTP.Header[1]", "missing closing"},
		{`{"Action": "deny", "HTTP": {"Header": [{"Name": "a"}]}}`, ".HTTP.Header[0]", "exactly one"},
		{`{"Action": "deny", "HTTP": {"Header": [{"Name": "a", "Exact": "b", "Suffix": "c"}]}}`, ".HTTP.Header[0]", "exactly one"},
		{`{"Action": "deny", "HTTP": {"Header": [{"Name": "a", "Regex": "b", "IgnoreCase": true}]}}`, ".HTTP.Header[0]", "IgnoreCase"},
		{`{"Action": "deny", "HTTP": {"Header": [{"Name": ":path", "Exact": "/"}]}}`, ".HTTP.Header[0]", "not the name"},
		{`{"Action": "deny", "HTTP": {"Host": "a"}}`, ".HTTP.Host", "unknown field"},
	} {
		refused(t, `{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Permissions": [`+tt.permission+`]}]}`, "Sources[0].Permissions[0]"+tt.field, tt.message)
	}
}

// refused checks that a document has one error, in a field.
func refused(t *testing.T, document, field, message string) {
	t.Helper()
	plan, findings := policy.Compile(entrySources(document), ofWeb)
	if plan != nil || len(findings) != 1 || findings[0].Field != field || findings[0].Line != 1 ||
		!strings.Contains(strings.ToLower(findings[0].Message), strings.ToLower(message)) {
		t.Errorf("%s: %v, want an error in %s that says %q", document, findings, field, message)
	}
}

func TestPermissionsOfServicesWithoutRequests(t *testing.T) {
	permissions := `{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "db", "Action": "allow"}, {"Name": "api", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}]}`
	for protocol, want := range map[string]bool{"http": true, "http2": true, "grpc": true, "tcp": false, "": false} {
		defaults := `{"Kind": "service-defaults", "Name": "web"}`
		if protocol != "" {
			defaults = fmt.Sprintf(`{"Kind": "service-defaults", "Name": "web", "Protocol": %q}`, protocol)
		}
		plan, findings := policy.Compile(entrySources(defaults, permissions), ofWeb)
		if (plan != nil) != want || !want && (len(findings) != 1 || findings[0].Field != "Sources[1].Permissions" || findings[0].File != "1.json") {
			t.Errorf("%q: %v, want accepted %v", protocol, findings, want)
		}
	}
	raw := &authz.Request{L4: true, Destination: netip.MustParseAddrPort("10.0.0.1:80")}
	in := intentionsOf(t, ofWeb, permissions).Inbound()
	for from, want := range map[string]bool{"db": true, "api": false, "other": false} {
		raw.Principal = requestOf(from, "", "").Principal
		if got := in.Authorize(raw); got.Allowed != want {
			t.Errorf("a raw connection from %s: allowed %v (%s), want %v", from, got.Allowed, got.Reason, want)
		}
	}
}

func TestIntentionsBesideAuthorizationPolicies(t *testing.T) {
	intentions := `{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Action": "allow"}, {"Name": "old", "Action": "deny"}]}`
	deny := `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-delete, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {methods: [DELETE]}}]}]}
`
	in := intentionsOf(t, ofWeb, deny, intentions).Inbound()
	for request, want := range map[*authz.Request]string{
		requestOf("api", "GET", "/"):    "allowed by service-intentions/web 0",
		requestOf("api", "DELETE", "/"): "denied by default/no-delete 0",
		requestOf("old", "GET", "/"):    "denied by service-intentions/web 1",
		requestOf("db", "GET", "/"):     "denied by  -1",
	} {
		d := in.Authorize(request)
		if got := fmt.Sprintf("%s by %s %d", map[bool]string{true: "allowed", false: "denied"}[d.Allowed], d.Policy, d.Rule); got != want {
			t.Errorf("%s from %s: %s, want %s", request.Method, request.Principal, got, want)
		}
	}
}
