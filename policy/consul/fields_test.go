package consul_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/route"
)

type object = map[string]any

// harmless are the fields that change nothing and are not told about, with the reason.
var harmless = map[string]string{
	"Meta.x":      "metadata of an entry has no meaning",
	"CreateIndex": "bookkeeping of Consul",
	"ModifyIndex": "bookkeeping of Consul",

	"mesh AllowEnablingPermissiveMutualTLS":         "it is about what Consul stores: permissive mode itself is refused",
	"service-intentions Sources.0.Precedence":       "it follows from the names, whatever is written",
	"service-intentions Sources.0.Type":             "there is one type, and another one is refused",
	"service-intentions Sources.0.Description":      "it is for people",
	"service-intentions Sources.0.LegacyID":         "bookkeeping of Consul",
	"service-intentions Sources.0.LegacyMeta.x":     "bookkeeping of Consul",
	"service-intentions Sources.0.LegacyCreateTime": "bookkeeping of Consul",
	"service-intentions Sources.0.LegacyUpdateTime": "bookkeeping of Consul",

	"service-resolver LoadBalancer.HashPolicies.0.Terminal": "it is about the policies that follow, and several are refused",
}

// bases are entries to which a field is added. Everything that a field needs is there.
var bases = map[string]string{
	"service-router": `{"Name": "web", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/v1", "Header": [{"Name": "x", "Exact": "a"}], "QueryParam": [{"Name": "q", "Exact": "a"}]}},
		"Destination": {"Service": "api", "RetryOn": ["reset"]}}]}`,
	"service-splitter": `{"Name": "web", "Splits": [{"Weight": 40}, {"Weight": 60, "Service": "api"}]}`,
	"service-resolver": `{"Name": "web", "Subsets": {"v1": {}, "v2": {"Filter": "Service.Meta.v == v2"}}}`,
	"service-defaults": `{"Name": "web", "Protocol": "http", "UpstreamConfig": {"Overrides": [{"Name": "api", "ConnectTimeoutMs": 9}]}}`,
	"proxy-defaults":   `{"Name": "global", "Config": {"protocol": "http"}}`,
	"mesh":             `{}`,
	"service-intentions": `{"Name": "web", "Sources": [{"Name": "api", "Permissions": [
		{"Action": "allow", "HTTP": {"PathPrefix": "/v1", "Header": [{"Name": "x", "Prefix": "a"}]}}]}]}`,
}

var entryTypes = map[string]any{
	"service-router": api.ServiceRouterConfigEntry{}, "service-splitter": api.ServiceSplitterConfigEntry{}, "service-resolver": api.ServiceResolverConfigEntry{},
	"service-defaults": api.ServiceConfigEntry{}, "proxy-defaults": api.ProxyConfigEntry{}, "mesh": api.MeshConfigEntry{},
	"service-intentions": api.ServiceIntentionsConfigEntry{},
}

// samples are values of fields, where those of the type will not do: the value at another path, or "PATH VALUE; PATH VALUE" in JSON
// where it needs others. A value of null removes what the base has.
var samples = map[string]string{
	"service-router Routes.0.Match.HTTP.PathExact":                 `"/a"; Routes.0.Match.HTTP.PathPrefix null`,
	"service-router Routes.0.Match.HTTP.PathPrefix":                `"/other"`,
	"service-router Routes.0.Match.HTTP.PathRegex":                 `"/[a-z]"; Routes.0.Match.HTTP.PathPrefix null`,
	"service-router Routes.0.Match.HTTP.Header.0.Present":          `true; Routes.0.Match.HTTP.Header.0.Exact null`,
	"service-router Routes.0.Match.HTTP.Header.0.Prefix":           `"b"; Routes.0.Match.HTTP.Header.0.Exact null`,
	"service-router Routes.0.Match.HTTP.Header.0.Suffix":           `"b"; Routes.0.Match.HTTP.Header.0.Exact null`,
	"service-router Routes.0.Match.HTTP.Header.0.Regex":            `"b"; Routes.0.Match.HTTP.Header.0.Exact null`,
	"service-router Routes.0.Match.HTTP.QueryParam.0.Present":      `true; Routes.0.Match.HTTP.QueryParam.0.Exact null`,
	"service-router Routes.0.Match.HTTP.QueryParam.0.Regex":        `"b"; Routes.0.Match.HTTP.QueryParam.0.Exact null`,
	"service-router Routes.0.Match.HTTP.Methods.0":                 `"PUT"`,
	"service-router Routes.0.Destination.ServiceSubset":            `"v1"; Routes.0.Destination.Service "web"`,
	"service-router Routes.0.Destination.PrefixRewrite":            `"/new"`,
	"service-router Routes.0.Destination.RetryOnStatusCodes.0":     `503`,
	"service-router Routes.0.Destination.RetryOn.0":                `"5xx"`,
	"service-splitter Splits.0.Weight":                             `30; Splits.1.Weight 70`,
	"service-splitter Splits.0.ServiceSubset":                      `"v1"`,
	"service-splitter Splits.0.Service":                            `"other"`,
	"service-resolver DefaultSubset":                               `"v1"`,
	"service-resolver Subsets.v1.Filter":                           `"Service.Meta.v == v1"`,
	"service-resolver Redirect.ServiceSubset":                      `"v1"; Redirect.Service "api"`,
	"service-resolver Redirect.Peer":                               `"p"; Redirect.Service "api"`,
	"service-resolver Redirect.SamenessGroup":                      `"g"; Redirect.Service "api"`,
	"service-resolver Redirect.Namespace":                          `"ns"; Redirect.Service "api"`,
	"service-resolver Redirect.Partition":                          `"p"; Redirect.Service "api"`,
	"service-resolver Failover.*.ServiceSubset":                    `"v2"`,
	"service-resolver Failover.*.Namespace":                        `"ns"; Failover.*.Service "api"`,
	"service-resolver Failover.*.Policy.Mode":                      `"sequential"; Failover.*.Service "api"`,
	"service-resolver Failover.*.Policy.Regions.0":                 `"r"; Failover.*.Service "api"`,
	"service-resolver Failover.*.SamenessGroup":                    `"g"; Failover.*.Service "api"`,
	"service-resolver Failover.*.Targets.0.ServiceSubset":          `"v2"`,
	"service-resolver Failover.*.Targets.0.Namespace":              `"ns"; Failover.*.Targets.0.Service "api"`,
	"service-resolver Failover.*.Targets.0.Partition":              `"p"; Failover.*.Targets.0.Service "api"`,
	"service-resolver LoadBalancer.Policy":                         `"random"`,
	"service-resolver LoadBalancer.RingHashConfig.MinimumRingSize": `7; LoadBalancer.RingHashConfig.MaximumRingSize 100; LoadBalancer.Policy "ring_hash"`,
	"service-resolver LoadBalancer.RingHashConfig.MaximumRingSize": `7; LoadBalancer.Policy "ring_hash"`,
	"service-resolver LoadBalancer.LeastRequestConfig.ChoiceCount": `7; LoadBalancer.Policy "least_request"`,
	"service-resolver LoadBalancer.HashPolicies.0.Field":           `"header"; LoadBalancer.HashPolicies.0.FieldValue "x"; LoadBalancer.Policy "maglev"`,
	"service-resolver LoadBalancer.HashPolicies.0.FieldValue":      `"y"; LoadBalancer.HashPolicies.0.Field "header"; LoadBalancer.Policy "maglev"`,
	"service-resolver LoadBalancer.HashPolicies.0.SourceIP":        `true; LoadBalancer.Policy "maglev"`,
	"service-resolver LoadBalancer.HashPolicies.0.Terminal":        `true; LoadBalancer.HashPolicies.0.SourceIP true; LoadBalancer.Policy "maglev"`,
	"service-resolver LoadBalancer.HashPolicies.0.CookieConfig.Session": `true; LoadBalancer.HashPolicies.0.Field "cookie"; LoadBalancer.HashPolicies.0.FieldValue "c";
		LoadBalancer.Policy "maglev"`,
	"service-resolver LoadBalancer.HashPolicies.0.CookieConfig.TTL": `"5s"; LoadBalancer.HashPolicies.0.Field "cookie"; LoadBalancer.HashPolicies.0.FieldValue "c";
		LoadBalancer.Policy "maglev"`,
	"service-resolver LoadBalancer.HashPolicies.0.CookieConfig.Path": `"/p"; LoadBalancer.HashPolicies.0.CookieConfig.TTL "5s"; LoadBalancer.HashPolicies.0.Field "cookie";
		LoadBalancer.HashPolicies.0.FieldValue "c"; LoadBalancer.Policy "maglev"`,
	"service-defaults Protocol":      `"grpc"`,
	"service-defaults MutualTLSMode": `"permissive"`,
	"service-defaults UpstreamConfig.Overrides.0.PassiveHealthCheck.EnforcingConsecutive5xx": `0`,
	"service-defaults UpstreamConfig.Defaults.PassiveHealthCheck.EnforcingConsecutive5xx":    `0`,
	"proxy-defaults MutualTLSMode":                                      `"permissive"`,
	"service-intentions Sources.0.Action":                               `"allow"; Sources.0.Permissions null`,
	"service-intentions Sources.0.Type":                                 `"consul"`,
	"service-intentions Sources.0.Name":                                 `"other"`,
	"service-intentions Sources.0.LegacyCreateTime":                     `"2020-01-01T00:00:00Z"`,
	"service-intentions Sources.0.LegacyUpdateTime":                     `"2020-01-01T00:00:00Z"`,
	"service-intentions Sources.0.Permissions.0.Action":                 `"deny"`,
	"service-intentions Sources.0.Permissions.0.HTTP.PathPrefix":        `"/other"`,
	"service-intentions Sources.0.Permissions.0.HTTP.PathExact":         `"/v1"; Sources.0.Permissions.0.HTTP.PathPrefix null`,
	"service-intentions Sources.0.Permissions.0.HTTP.PathRegex":         `"/v."; Sources.0.Permissions.0.HTTP.PathPrefix null`,
	"service-intentions Sources.0.Permissions.0.HTTP.Methods.0":         `"PUT"`,
	"service-intentions Sources.0.Permissions.0.HTTP.Header.0.Present":  `true; Sources.0.Permissions.0.HTTP.Header.0.Prefix null`,
	"service-intentions Sources.0.Permissions.0.HTTP.Header.0.Exact":    `"b"; Sources.0.Permissions.0.HTTP.Header.0.Prefix null`,
	"service-intentions Sources.0.Permissions.0.HTTP.Header.0.Prefix":   `"b"`,
	"service-intentions Sources.0.Permissions.0.HTTP.Header.0.Suffix":   `"b"; Sources.0.Permissions.0.HTTP.Header.0.Prefix null`,
	"service-intentions Sources.0.Permissions.0.HTTP.Header.0.Contains": `"b"; Sources.0.Permissions.0.HTTP.Header.0.Prefix null`,
	"service-intentions Sources.0.Permissions.0.HTTP.Header.0.Regex":    `"b"; Sources.0.Permissions.0.HTTP.Header.0.Prefix null`,
}

// TestFields sets each field that an entry of the client of Consul has, one after the other. It must change what is enforced, or be
// an error or a warning that names it, or be in the list of what is harmless. A field of a newer client fails here until somebody has
// decided about it.
func TestFields(t *testing.T) {
	unused := maps.Clone(harmless)
	for kind, entry := range entryTypes {
		t.Run(kind, func(t *testing.T) {
			base, findings := enforced(t, kind, nil)
			if base == "" {
				t.Fatalf("the base: %v", findings)
			}
			for _, path := range fieldsOf(reflect.TypeOf(entry), "") {
				if path == "Kind" || path == "Name" {
					continue
				}
				sample := samples[kind+" "+path]
				if sample == "" {
					sample = sampleOf(typeAt(reflect.TypeOf(entry), path))
				}
				all := changes(t, path, sample)
				got, findings := enforced(t, kind, all)
				delete(all, path)
				without, _ := enforced(t, kind, all)
				without = cmp.Or(without, base) // the others may need it
				named := slices.ContainsFunc(findings, func(f policy.Finding) bool {
					return strings.HasPrefix(path+".", dotted(f.Field)+".") && !strings.Contains(f.Message, "unknown field")
				})
				key := path
				if harmless[key] == "" {
					key = kind + " " + path
				}
				switch isHarmless := harmless[key] != ""; {
				case named:
				case got == "":
					t.Errorf("%s: refused without being named: %v", path, findings)
				case got == without && !isHarmless:
					t.Errorf("%s: it is neither enforced nor told about", path)
				case got != without && isHarmless:
					t.Errorf("%s: it is enforced, and in the list of what is harmless", path)
				}
				delete(unused, key)
			}
		})
	}
	for key := range unused {
		t.Errorf("%q is in the list of what is harmless, and there is no such field", key)
	}
}

// TestFieldsAsServersWriteThem has all fields with their zero values, as servers answer.
func TestFieldsAsServersWriteThem(t *testing.T) {
	for kind, entry := range entryTypes {
		all := reflect.New(reflect.TypeOf(entry)).Interface()
		if err := json.Unmarshal([]byte(bases[kind]), all); err != nil {
			t.Fatal(err)
		}
		var fields object
		data, err := json.Marshal(all)
		if err == nil {
			err = json.Unmarshal(data, &fields)
		}
		if err != nil {
			t.Fatal(err)
		}
		if text, findings := enforcedOf(t, kind, fields); text == "" || len(findings) > 0 {
			t.Errorf("%s: %v", data, findings)
		}
	}
}

// dotted writes the field of a finding as a path of this test.
func dotted(field string) string {
	return strings.NewReplacer(`["`, ".", `"]`, "", "[", ".", "]", "").Replace(field)
}

var durations = reflect.TypeFor[time.Duration]()

// fieldsOf returns the paths of all values in a type. Lists have one element, and maps one key.
func fieldsOf(t reflect.Type, at string) (paths []string) {
	switch {
	case t.Kind() == reflect.Pointer:
		return fieldsOf(t.Elem(), at)
	case t.Kind() == reflect.Slice:
		return fieldsOf(t.Elem(), at+".0")
	case t.Kind() == reflect.Map:
		return fieldsOf(t.Elem(), at+"."+keyOf(at))
	case t.Kind() != reflect.Struct || t == reflect.TypeFor[time.Time]():
		return []string{at}
	}
	for f := range t.Fields() {
		paths = append(paths, fieldsOf(f.Type, strings.TrimPrefix(at+"."+f.Name, "."))...)
	}
	return paths
}

func keyOf(at string) string {
	switch at {
	case "Subsets":
		return "v1"
	case "Failover":
		return "*"
	}
	return "x"
}

func typeAt(t reflect.Type, path string) reflect.Type {
	for name := range strings.SplitSeq(path, ".") {
		for t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		switch t.Kind() {
		case reflect.Struct:
			f, _ := t.FieldByName(name)
			t = f.Type
		default:
			t = t.Elem()
		}
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t
}

// sampleOf returns a value of a type.
func sampleOf(t reflect.Type) string {
	switch {
	case t == durations:
		return `"7s"`
	case t.Kind() == reflect.Bool:
		return "true"
	case t.Kind() == reflect.String || t.Kind() == reflect.Interface:
		return `"other"`
	}
	return "7"
}

// changes returns what is to be set, by path.
func changes(t *testing.T, path, sample string) map[string]any {
	all := make(map[string]any)
	for i, part := range strings.Split(sample, ";") {
		part = strings.TrimSpace(part)
		if i > 0 {
			path, part, _ = strings.Cut(part, " ")
		}
		var v any
		if err := json.Unmarshal([]byte(part), &v); err != nil {
			t.Fatalf("%s: %v", part, err)
		}
		all[path] = v
	}
	return all
}

// set returns a value with another one at a path.
func set(in any, path []string, v any) any {
	if len(path) == 0 {
		return v
	}
	if i, err := strconv.Atoi(path[0]); err == nil {
		list, _ := in.([]any)
		for len(list) <= i {
			list = append(list, nil)
		}
		list[i] = set(list[i], path[1:], v)
		return list
	}
	fields, _ := in.(object)
	if fields == nil {
		fields = object{}
	}
	if fields[path[0]] = set(fields[path[0]], path[1:], v); fields[path[0]] == nil {
		delete(fields, path[0])
	}
	return fields
}

func enforced(t *testing.T, kind string, changes map[string]any) (string, policy.Findings) {
	t.Helper()
	var fields object
	if err := json.Unmarshal([]byte(bases[kind]), &fields); err != nil {
		t.Fatal(err)
	}
	for path, v := range changes {
		fields = set(fields, strings.Split(path, "."), v).(object)
	}
	return enforcedOf(t, kind, fields)
}

// enforcedOf returns what an entry comes to, among others that it may refer to, as text, and the findings about it. The text is empty
// if it is refused.
func enforcedOf(t *testing.T, kind string, fields object) (string, policy.Findings) {
	t.Helper()
	fields["Kind"] = kind
	data, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	sources := []policy.Source{{Name: "it.json", Data: data}}
	add := func(text string) {
		sources = append(sources, policy.Source{Name: fmt.Sprintf("%d.json", len(sources)), Data: []byte(text)})
	}
	if kind != "proxy-defaults" {
		add(`{"Kind": "proxy-defaults", "Config": {"protocol": "http"}}`)
	}
	if kind != "service-resolver" {
		add(`{"Kind": "service-resolver", "Name": "web", "Subsets": {"v1": {}}}`)
	}
	add(`{"Kind": "service-resolver", "Name": "api", "Subsets": {"v1": {}}}`)
	checked := policy.Check(sources, policy.Workload{Service: "web", TrustDomain: "td", Filters: consul.Filters{}})
	var about policy.Findings
	for _, f := range checked.Findings {
		if f.File == "it.json" {
			about = append(about, f)
		}
	}
	plan, _ := policy.Compile(sources, policy.Workload{Service: "web", TrustDomain: "td", Filters: consul.Filters{}})
	if plan == nil {
		return "", about
	}
	var b strings.Builder
	seen := make(map[route.Target]bool)
	var cluster func(target route.Target)
	cluster = func(target route.Target) {
		if seen[target] {
			return
		}
		seen[target] = true
		c := plan.Cluster(target)
		c.Filter.Match = nil // the text tells
		fmt.Fprintf(&b, "%v: %+v\n", target, c)
		for _, next := range c.Failover {
			cluster(next)
		}
	}
	for _, host := range []string{"web", "api", "other"} {
		routes := plan.Host(host).Routes
		for i := range routes.Len() {
			r := routes.Rule(i).Route
			fmt.Fprintf(&b, "%s %d: %+v retries %+v\n", host, i, r, r.Retry)
			for _, d := range r.Destinations {
				cluster(d.Target)
			}
		}
	}
	for _, subset := range []string{"v1", "v2"} {
		cluster(route.Target{Host: "web.default.svc.cluster.local", Subset: subset})
	}
	for _, peer := range []string{"api", "other"} {
		for _, method := range []string{"GET", "PUT"} {
			for _, target := range []string{"/v1", "/v1/x", "/v2", "/other"} {
				for _, header := range []string{"", "a", "b", "ab", "xb", "xbx", "A"} {
					view := authz.Request{Principal: "td/ns/default/dc/dc1/svc/" + peer, Method: method, Target: target, Host: "web", Header: http.Header{}}
					for _, name := range []string{"X", "Other"} {
						if header != "" {
							view.Header.Set(name, header)
						}
						fmt.Fprintf(&b, "%t", plan.Inbound().Authorize(&view).Allowed)
					}
				}
			}
		}
	}
	fmt.Fprintf(&b, " mode %v", plan.Inbound().Mode(0))
	return b.String(), about
}
