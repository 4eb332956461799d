package policy_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/nosidecar/mesh/policy"
)

// malformedBases are valid documents whose fields are malformed one after the other. They stand beside those that they refer to.
var malformedBases = map[string]string{
	"PeerAuthentication": `{apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: web, namespace: shop}, spec: {
		selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {"8080": {mode: PERMISSIVE}}}}`,
	"RequestAuthentication": `{apiVersion: security.istio.io/v1, kind: RequestAuthentication, metadata: {name: web, namespace: shop}, spec: {
		selector: {matchLabels: {app: web}}, jwtRules: [{issuer: "https://id.example", audiences: [shop], jwksUri: "https://id.example/keys", timeout: 5s,
		fromHeaders: [{name: x-token, prefix: "Token "}], fromParams: [token], fromCookies: [token], forwardOriginalToken: true,
		outputPayloadToHeader: x-payload, outputClaimToHeaders: [{header: x-user, claim: sub}], spaceDelimitedClaims: [groups]}]}}`,
	"service-intentions": `{Kind: service-intentions, Name: web, Sources: [{Name: api, Type: consul, Permissions: [{Action: allow, HTTP: {PathPrefix: /v1,
		Methods: [GET], Header: [{Name: x, Prefix: a, Invert: true, IgnoreCase: true}]}}]}, {Name: admin, Action: allow}]}`,
	"ServiceIntentions": `{apiVersion: consul.hashicorp.com/v1alpha1, kind: ServiceIntentions, metadata: {name: web}, spec: {destination: {name: web}, sources: [{name: api,
		permissions: [{action: allow, http: {pathPrefix: /v1, methods: [GET], header: [{name: x, prefix: a, invert: true, ignoreCase: true}]}}]}, {name: admin, action: allow}]}}`,
	"TrafficSplit": `{apiVersion: split.smi-spec.io/v1alpha4, kind: TrafficSplit, metadata: {name: web, namespace: shop}, spec: {service: web,
		backends: [{service: web-1, weight: 90}, {service: web-2, weight: 10}], matches: [{kind: HTTPRouteGroup, name: pages, apiGroup: specs.smi-spec.io}]}}`,
	"TrafficTarget": `{apiVersion: access.smi-spec.io/v1alpha3, kind: TrafficTarget, metadata: {name: web, namespace: shop}, spec: {
		destination: {kind: ServiceAccount, name: web, namespace: shop}, rules: [{kind: HTTPRouteGroup, name: pages, matches: [all]}, {kind: TCPRoute, name: ports}],
		sources: [{kind: ServiceAccount, name: api, namespace: shop}]}}`,
	"HTTPRouteGroup": `{apiVersion: specs.smi-spec.io/v1alpha4, kind: HTTPRouteGroup, metadata: {name: pages, namespace: shop}, spec: {matches: [
		{name: all, pathRegex: "/a.*", methods: [GET], headers: {x-user: ".+"}}]}}`,
	"TCPRoute": `{apiVersion: specs.smi-spec.io/v1alpha4, kind: TCPRoute, metadata: {name: ports, namespace: shop}, spec: {matches: {ports: [8080]}}}`,
}

// malformedRest are the SMI documents that others refer to.
var malformedRest = []string{"TrafficTarget", "HTTPRouteGroup", "TCPRoute"}

// meant are the changes, as "KIND PATH CHANGE", that leave a valid document, with the reason.
var meant = map[string]string{
	`\.matchLabels\.app(x unknown| "")$`:                                                               "keys and values of labels are free",
	`^(Peer|Request)Authentication spec ({}|null)$`:                                                    "nothing is set",
	`^PeerAuthentication spec\.(mtls|portLevelMtls\.8080) {}$`:                                         "it inherits",
	`^RequestAuthentication spec\.jwtRules \[\]$`:                                                      "no token is accepted or needed",
	`\.jwtRules\[0\]\.(audiences|from\w+|outputClaimToHeaders|spaceDelimitedClaims) \[\]$`:             "an empty list is none",
	`\.jwtRules\[0\]\.(fromHeaders\[0\]\.prefix|outputPayloadToHeader) ""$`:                            "an empty text is none",
	`\.jwtRules\[0\]\.(audiences|fromCookies|fromParams|spaceDelimitedClaims)\[0\] "no such\\nvalue"$`: "any text may be meant",
	`\.jwtRules\[0\]\.(issuer|fromHeaders\[0\]\.prefix|\w+\[0\]\.claim) "no such\\nvalue"$`:            "any text may be meant",

	`^TrafficSplit spec\.matches (\[\]|null)$`:                                                       "the split is of all requests",
	`^TrafficSplit spec\.matches\[0\]\.apiGroup (""|null)$`:                                          "there is one group",
	`^TrafficTarget spec\.destination\.namespace ""$`:                                                "it is that of the document",
	`^HTTPRouteGroup spec\.matches\[0\]\.headers {}$`:                                                "the match is of all headers",
	`^HTTPRouteGroup spec\.matches\[0\]\.headers\.x-user(x unknown| ""| "no such\\nvalue")$`:         "names of headers are free, and any text is an expression",
	`^HTTPRouteGroup spec\.matches\[0\]\.(name "no such\\nvalue"|pathRegex (""|"no such\\nvalue"))$`: "any text may be meant",
	`^TCPRoute spec\.matches\.ports \[\]$`:                                                           "the route is of all ports",

	`(?i)^service-?intentions (spec\.)?sources \[\]$`:                                                     "nobody is named",
	`(?i)^service-?intentions .*\.http\.(header|methods) (\[\]|null)$`:                                    "the permission is of all of them",
	`(?i)^service-?intentions .*\.http\.pathprefix (""|null)$`:                                            "the permission is of all paths",
	`(?i)^service-intentions sources\[0\]\.type (""|null)$`:                                               "there is one type",
	`(?i)^service-?intentions (spec\.destination|(spec\.)?sources\[\d\]|.*\.header\[0\])\.name (7|true)$`: "Consul reads numbers as text",
	`(?i)^service-?intentions .*\.header\[0\]\.prefix (7|true|\["no such value"\])$`:                      "Consul reads numbers as text, and a list of one as its element",
	`(?i)^service-?intentions .*\.header\[0\]\.(ignorecase|invert) (1|null)$`:                             "Consul reads 1 as true, and null as false",
}

// TestMalformedFields changes each field of the documents above: its name, its type, and its value to one that is out of range. Each change must be
// reported with the place of the field.
func TestMalformedFields(t *testing.T) {
	used := make(map[string]bool)
	isMeant := func(id string) (ok bool) {
		for pattern := range meant {
			if regexp.MustCompile(pattern).MatchString(id) {
				ok, used[pattern] = true, true
			}
		}
		return ok
	}
	for kind, text := range malformedBases {
		var base any
		if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "\t", " ")), &base); err != nil {
			t.Fatal(kind, err)
		}
		check := func(root any) policy.Findings {
			data, err := json.Marshal(root)
			if err != nil {
				t.Fatal(err)
			}
			sources := []policy.Source{{Name: "a.json", Data: data}}
			for _, other := range malformedRest {
				if other != kind {
					sources = append(sources, policy.Source{Name: other, Data: []byte(strings.ReplaceAll(malformedBases[other], "\t", " "))})
				}
			}
			return slices.DeleteFunc(policy.Check(sources, policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}}).Findings,
				func(f policy.Finding) bool { return f.File != "a.json" })
		}
		if findings := check(base); len(findings) > 0 {
			t.Errorf("%s: %v", kind, findings)
		}
		try := func(at, change, reportedAt string, root any) {
			id := kind + " " + at + " " + change
			findings := check(root)
			reported := slices.ContainsFunc(findings, func(f policy.Finding) bool {
				return f.Line > 0 && f.Field != "" && (strings.HasPrefix(f.Field, reportedAt) || strings.HasPrefix(at, f.Field))
			})
			if isMeant(id) == reported {
				t.Errorf("%s: findings %v", id, findings)
			}
		}
		root := base.(map[string]any)
		walkFields(root, "", func(at string, value any, set func(any), rename func(string) string) {
			if renamed := rename("x"); renamed != "" {
				try(renamed, "unknown", renamed, root)
				rename("")
			}
			for _, change := range changesOf(value) {
				set(change)
				data, _ := json.Marshal(change)
				try(at, string(data), at[:max(0, strings.LastIndexAny(at, ".["))], root) // an error may be about a field that goes with it
				set(value)
			}
		})
	}
	for pattern := range meant {
		if !used[pattern] {
			t.Errorf("no change is like %s", pattern)
		}
	}
}

// changesOf returns values that a field with this value should not have.
func changesOf(value any) []any {
	object, list := map[string]any{"no": "such"}, []any{"no such value"}
	switch value.(type) {
	case string:
		return []any{"", "no such\nvalue", 7, true, nil, object, list}
	case int:
		return []any{-1, 0.5, json.Number("9223372036854775808"), json.Number("1e400"), "no such value", true, nil, object, list}
	case bool:
		return []any{"no such value", 1, nil, object, list}
	case []any:
		return []any{[]any{}, []any{nil}, []any{""}, "no such value", 7, nil, object}
	default:
		return []any{map[string]any{}, "no such value", 7, nil, list}
	}
}

// walkFields calls visit for each field of a document below apiVersion, kind and metadata. rename gives the field another name, and returns its path,
// or the one that it had if the suffix is empty; it returns "" for elements of a list.
func walkFields(node any, at string, visit func(at string, value any, set func(any), rename func(suffix string) string)) {
	switch node := node.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(node)) {
			path := strings.TrimPrefix(at+"."+key, ".")
			if at == "" && slices.Contains([]string{"apiVersion", "kind", "metadata", "Kind", "Name"}, key) {
				continue
			}
			value := node[key]
			renamed := ""
			visit(path, value, func(v any) { node[key] = v }, func(suffix string) string {
				delete(node, renamed)
				if renamed = ""; suffix == "" {
					node[key] = value
					return path
				}
				delete(node, key)
				renamed = key + suffix
				node[renamed] = value
				return path + suffix
			})
			walkFields(value, path, visit)
		}
	case []any:
		for i, value := range node {
			path := fmt.Sprintf("%s[%s]", at, strconv.Itoa(i))
			visit(path, value, func(v any) { node[i] = v }, func(string) string { return "" })
			walkFields(value, path, visit)
		}
	}
}
