package consul_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
)

// filters takes every expression but one.
type filters struct{}

func (filters) Compile(expression string, _ bool) (func(*discovery.Endpoint) bool, error) {
	if expression == "bad" {
		return nil, fmt.Errorf("there is no selector bad")
	}
	return func(*discovery.Endpoint) bool { return true }, nil
}

const (
	httpDefaults = `{"Kind": "proxy-defaults", "Config": {"protocol": "http"}}`
	router       = `{"Kind": "service-router", "Name": "web", "Routes": [%s]}`
	route        = `{"Kind": "service-router", "Name": "web", "Routes": [{"Match": {"HTTP": {"PathPrefix": "/v1"}}, "Destination": {%s}}]}`
	match        = `{"Kind": "service-router", "Name": "web", "Routes": [{"Match": {"HTTP": {%s}}}]}`
	splitter     = `{"Kind": "service-splitter", "Name": "web", "Splits": [%s]}`
	resolver     = `{"Kind": "service-resolver", "Name": "web", %s}`
	defaults     = `{"Kind": "service-defaults", "Name": "web", "Protocol": "http", %s}`
	upstream     = `{"Kind": "service-defaults", "Name": "web", "Protocol": "http", "UpstreamConfig": {"Defaults": {%s}}}`
)

// TestRules has a document with a mistake, or with something that has no effect, for every rule.
func TestRules(t *testing.T) {
	for _, test := range []struct {
		name, entry, others string
		want                string // severity: field: message; empty for nothing
	}{
		{"nothing wrong", fmt.Sprintf(route, `"Service": "api", "PrefixRewrite": "/", "NumRetries": 2, "RetryOn": ["5xx", "reset"], "RetryOnStatusCodes": [503]`), "", ""},
		{"unknown kind", `{"Kind": "service-ruter", "Name": "web"}`, "", `error: Kind: unknown kind "service-ruter" of Consul's config entries, did you mean "service-router"?`},
		{"kind in lower case", `{"kind": "service-ruter", "name": "web"}`, "", `error: kind: unknown kind "service-ruter"`},
		{"kind that is not enforced", `{"Kind": "sameness-group", "Name": "web"}`, "", `error: Kind: sameness-group is not enforced yet: name the services to fail over to in Failover of a service-resolver`},
		{"unknown field", `{"Kind": "service-router", "Name": "web", "Route": []}`, "", `error: Route: unknown field "Route", did you mean "Routes"?`},
		{"no name", `{"Kind": "service-router", "Routes": []}`, "", `error: Name: missing`},
		{"name with a dot", `{"Kind": "service-resolver", "Name": "a.b"}`, "", `error: Name: "a.b" cannot be the name`},
		{"namespace", `{"Kind": "service-router", "Name": "web", "Namespace": "shop"}`, "", `error: Namespace: "shop": only the namespace default`},
		{"namespace default", `{"Kind": "service-router", "Name": "web", "Namespace": "default", "Partition": "default"}`, "", ``},
		{"partition", `{"Kind": "service-router", "Name": "web", "Partition": "shop"}`, "", `error: Partition: "shop": only the partition default`},
		{"name of proxy-defaults", `{"Kind": "proxy-defaults", "Name": "web"}`, "", `error: Name: "web": there is one entry of this kind, which is called "global"`},

		{"two paths", fmt.Sprintf(match, `"PathExact": "/a", "PathPrefix": "/b"`), "", `error: Routes[0].Match.HTTP: PathExact, PathPrefix and PathRegex exclude`},
		{"path without slash", fmt.Sprintf(match, `"PathExact": "a"`), "", `error: Routes[0].Match.HTTP.PathExact: "a" does not start with a slash`},
		{"prefix without slash", fmt.Sprintf(match, `"path_prefix": "a"`), "", `error: Routes[0].Match.HTTP.path_prefix: "a" does not start with a slash`},
		{"regular expression of a path", fmt.Sprintf(match, `"PathRegex": "("`), "", `error: Routes[0].Match.HTTP.PathRegex: error parsing regexp`},
		{"regular expression of a header", fmt.Sprintf(match, `"Header": [{"Name": "x", "Regex": "["}]`), "", `error: Routes[0].Match.HTTP.Header[0].Regex: error parsing regexp`},
		{"regular expression of a parameter", fmt.Sprintf(match, `"QueryParam": [{"Name": "x", "Regex": "["}]`), "", `error: Routes[0].Match.HTTP.QueryParam[0].Regex: error parsing regexp`},
		{"case of a regular expression", fmt.Sprintf(match, `"PathRegex": "/a", "CaseInsensitive": true`), "", `warning: Routes[0].Match.HTTP.CaseInsensitive: has no effect on PathRegex`},
		{"header without name", fmt.Sprintf(match, `"Header": [{"Exact": "x"}]`), "", `error: Routes[0].Match.HTTP.Header[0].Name: missing`},
		{"header with two matchers", fmt.Sprintf(match, `"Header": [{"Name": "x", "Exact": "x", "Present": true}]`), "", `error: Routes[0].Match.HTTP.Header[0]: must have exactly one`},
		{"header with no matcher", fmt.Sprintf(match, `"Header": [{"Name": "x"}]`), "", `error: Routes[0].Match.HTTP.Header[0]: must have exactly one`},
		{"name of a header", fmt.Sprintf(match, `"Header": [{"Name": "x y", "Present": true}]`), "", `error: Routes[0].Match.HTTP.Header: cannot be enforced: "x y" is not a header name`},
		{"parameter with no matcher", fmt.Sprintf(match, `"QueryParam": [{"Name": "x"}]`), "", `error: Routes[0].Match.HTTP.QueryParam[0]: must have exactly one`},
		{"parameter without name", fmt.Sprintf(match, `"QueryParam": [{"Exact": "x"}]`), "", `error: Routes[0].Match.HTTP.QueryParam[0].Name: missing`},
		{"method", fmt.Sprintf(match, `"Methods": ["FETCH"]`), "", `error: Routes[0].Match.HTTP.Methods[0]: "FETCH" is not a method`},
		{"method twice", fmt.Sprintf(match, `"Methods": ["GET", "get"]`), "", `error: Routes[0].Match.HTTP.Methods[1]: GET is there twice`},
		{"never reached", fmt.Sprintf(router, `{}, {"Match": {"HTTP": {"PathPrefix": "/a"}}}`), "", `warning: Routes[1]: never reached: Routes[0] takes every request`},
		{"rewrite without path", fmt.Sprintf(router, `{"Destination": {"PrefixRewrite": "/a"}}`), "", `error: Routes[0].Destination.PrefixRewrite: needs PathPrefix or PathExact`},
		{"rewrite of a whole path", fmt.Sprintf(router, `{"Match": {"HTTP": {"PathExact": "/a"}}, "Destination": {"PrefixRewrite": "/"}}`), "", `warning: Routes[0].Destination.PrefixRewrite: has no effect: with PathExact`},
		{"rewrite without slash", fmt.Sprintf(route, `"PrefixRewrite": "a"`), "", `error: Routes[0].Destination.PrefixRewrite: cannot be enforced: "a" does not start with a slash`},
		{"namespace of a destination", fmt.Sprintf(route, `"Namespace": "shop"`), "", `error: Routes[0].Destination.Namespace: "shop"`},
		{"service of a destination", fmt.Sprintf(route, `"Service": "a/b"`), "", `error: Routes[0].Destination.Service: "a/b" cannot be the name`},
		{"idle timeout", fmt.Sprintf(route, `"IdleTimeout": "5s"`), "", `warning: Routes[0].Destination.IdleTimeout: no timeout ends a stream`},
		{"retries of nothing", fmt.Sprintf(route, `"NumRetries": 3`), "", `warning: Routes[0].Destination.NumRetries: has no effect`},
		{"condition", fmt.Sprintf(route, `"RetryOn": ["sometimes"]`), "", `error: Routes[0].Destination.RetryOn[0]: "sometimes" is not a condition`},
		{"status", fmt.Sprintf(route, `"RetryOnStatusCodes": [5]`), "", `error: Routes[0].Destination.RetryOnStatusCodes[0]: 5 is not a status code`},
		{"added and set", fmt.Sprintf(route, `"RequestHeaders": {"Add": {"x": "1"}, "Set": {"x": "2"}}`), "", `warning: Routes[0].Destination.RequestHeaders.Add.x: has no effect`},
		{"command in a header", fmt.Sprintf(route, `"RequestHeaders": {"Set": {"x": "%NO_SUCH%"}}`), "", `error: Routes[0].Destination.RequestHeaders: cannot be enforced`},
		{"subset of a destination", fmt.Sprintf(route, `"ServiceSubset": "v1"`), "", `error: Routes[0].Destination: cannot be enforced: no service-resolver entry of web has the subset v1`},
		{"protocol of a router", fmt.Sprintf(router, ``), `{"Kind": "service-defaults", "Name": "web"}`, `error: : cannot be enforced: the protocol of web is tcp`},
		{"protocols that differ", fmt.Sprintf(route, `"Service": "api"`), `{"Kind": "service-defaults", "Name": "api", "Protocol": "grpc"}`, `error: Routes[0].Destination: cannot be enforced: the protocol of api is grpc, and that of web is http`},

		{"no splits", fmt.Sprintf(splitter, ``), "", `error: Splits: missing`},
		{"sum", fmt.Sprintf(splitter, `{"Weight": 50}, {"Weight": 49.98, "Service": "api"}`), "", `error: Splits: the weights are 99.98 together: they must be 100`},
		{"rounded to the sum", fmt.Sprintf(splitter, `{"Weight": 50.004}, {"Weight": 49.996, "Service": "api"}`), "", ``},
		{"negative", fmt.Sprintf(splitter, `{"Weight": 110}, {"Weight": -10, "Service": "api"}`), "", `error: Splits[0].Weight: 110 is out of range`},
		{"the same twice", fmt.Sprintf(splitter, `{"Weight": 50}, {"Weight": 50, "Service": "web"}`), "", `error: Splits[1]: goes to the same as Splits[0]`},
		{"subset of a split", fmt.Sprintf(splitter, `{"Weight": 50}, {"Weight": 50, "ServiceSubset": "v1"}`), "", `error: Splits[1]: cannot be enforced: no service-resolver entry of web has the subset v1`},
		{"circle of splitters", fmt.Sprintf(splitter, `{"Weight": 100, "Service": "api"}`), `{"Kind": "service-splitter", "Name": "api", "Splits": [{"Weight": 100, "Service": "web"}]}`, `error: Splits[0]: leads in a circle`},
		{"protocol of a splitter", fmt.Sprintf(splitter, `{"Weight": 100}`), `{"Kind": "service-defaults", "Name": "web"}`, `error: : cannot be enforced: the protocol of web is tcp`},

		{"name of a subset", fmt.Sprintf(resolver, `"Subsets": {"V1": {}}`), "", `error: Subsets.V1: "V1" is not the name of a subset`},
		{"filter", fmt.Sprintf(resolver, `"Subsets": {"v1": {"Filter": "bad"}}`), "", `error: Subsets.v1.Filter: there is no selector bad`},
		{"default subset", fmt.Sprintf(resolver, `"DefaultSubset": "v1"`), "", `error: DefaultSubset: "v1" is none of the Subsets`},
		{"empty redirect", fmt.Sprintf(resolver, `"Redirect": {}`), "", `error: Redirect: must say something`},
		{"redirect to a peer", fmt.Sprintf(resolver, `"Redirect": {"Service": "api", "Peer": "east"}`), "", `error: Redirect.Peer: peers are not enforced yet`},
		{"redirect to a sameness group", fmt.Sprintf(resolver, `"Redirect": {"Service": "api", "SamenessGroup": "all"}`), "", `error: Redirect.SamenessGroup: needs Consul Enterprise`},
		{"redirect and failover", fmt.Sprintf(resolver, `"Redirect": {"Service": "api"}, "Failover": {"*": {"Service": "api"}}`), "", `error: Redirect: excludes Failover`},
		{"redirect in a circle", fmt.Sprintf(resolver, `"Redirect": {"Service": "api"}`), `{"Kind": "service-resolver", "Name": "api", "Redirect": {"Service": "web"}}`, `error: Redirect: leads in a circle`},
		{"redirect to a subset that is not there", fmt.Sprintf(resolver, `"Redirect": {"Service": "api", "ServiceSubset": "v1"}`), "", `error: Redirect: cannot be enforced: no service-resolver entry of api has the subset v1`},
		{"empty failover", fmt.Sprintf(resolver, `"Failover": {"*": {}}`), "", `error: Failover["*"]: must say something`},
		{"failover of a subset that is not there", fmt.Sprintf(resolver, `"Failover": {"v1": {"Service": "api"}}`), "", `error: Failover.v1: "v1" is none of the Subsets`},
		{"failover to a subset that is not there", fmt.Sprintf(resolver, `"Failover": {"*": {"Service": "api", "ServiceSubset": "v1"}}`), "", `error: Failover["*"]: cannot be enforced: no service-resolver entry of api has the subset v1`},
		{"targets and datacenters", fmt.Sprintf(resolver, `"Failover": {"*": {"Datacenters": ["dc2"], "Targets": [{"Service": "api"}]}}`), "", `error: Failover["*"].Targets: excludes`},
		{"failover to a peer", fmt.Sprintf(resolver, `"Failover": {"*": {"Targets": [{"Peer": "east"}]}}`), "", `error: Failover["*"].Targets[0].Peer: peers are not enforced yet`},
		{"policy of failover", fmt.Sprintf(resolver, `"Failover": {"*": {"Service": "api", "Policy": {"Mode": "sequential"}}}`), "", `error: Failover["*"].Policy: needs Consul Enterprise`},
		{"timeout", fmt.Sprintf(resolver, `"ConnectTimeout": "-1s"`), "", `error: ConnectTimeout: must not be negative`},
		{"request timeout", fmt.Sprintf(resolver, `"RequestTimeout": "-1s"`), "", `error: RequestTimeout: must not be negative`},
		{"locality", fmt.Sprintf(resolver, `"PrioritizeByLocality": {"Mode": "failover"}`), "", `error: PrioritizeByLocality: needs Consul Enterprise`},
		{"policy", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "best"}`), "", `error: LoadBalancer.Policy: "best" is not a policy`},
		{"half a ring", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "ring_hash", "RingHashConfig": {"MinimumRingSize": 100}}`), "", `error: LoadBalancer.RingHashConfig.MaximumRingSize: must be set`},
		{"ring of another policy", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "maglev", "RingHashConfig": {"MaximumRingSize": 100}}`), "", `error: LoadBalancer.RingHashConfig: is for the policy ring_hash`},
		{"choices", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "least_request", "LeastRequestConfig": {"ChoiceCount": 1}}`), "", `error: LoadBalancer.LeastRequestConfig.ChoiceCount: must be at least 2`},
		{"hash without hashing", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "random", "HashPolicies": [{"SourceIP": true}]}`), "", `error: LoadBalancer.HashPolicies: are for the policies`},
		{"two keys", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "maglev", "HashPolicies": [{"SourceIP": true}, {"Field": "header", "FieldValue": "x"}]}`), "", `error: LoadBalancer.HashPolicies: a key of several parts is not enforced`},
		{"field of a key", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "maglev", "HashPolicies": [{"Field": "body", "FieldValue": "x"}]}`), "", `error: LoadBalancer.HashPolicies[0].Field: "body" is not a field`},
		{"cookie of a header", fmt.Sprintf(resolver, `"LoadBalancer": {"Policy": "maglev", "HashPolicies": [{"Field": "header", "FieldValue": "x", "CookieConfig": {"Session": true}}]}`), "", `error: LoadBalancer.HashPolicies[0].CookieConfig: is for the field cookie`},

		{"protocol", `{"Kind": "service-defaults", "Name": "web", "Protocol": "udp"}`, "", `error: Protocol: "udp" is not a protocol`},
		{"as a server writes it", fmt.Sprintf(defaults, `"TransparentProxy": {}, "MeshGateway": {}, "Expose": {}, "CreateIndex": 7, "ModifyIndex": 7, "Hash": 12345678901234567890`), "", ``},
		{"gateway", fmt.Sprintf(defaults, `"MeshGateway": {"Mode": "local"}`), "", `warning: MeshGateway: calls go to the instances`},
		{"destination", fmt.Sprintf(defaults, `"Destination": {"Addresses": ["example.com"], "Port": 443}`), "", `error: Destination: destinations outside of Consul are not enforced`},
		{"external SNI", fmt.Sprintf(defaults, `"ExternalSNI": "example.com"`), "", `error: ExternalSNI: `},
		{"extensions", fmt.Sprintf(defaults, `"EnvoyExtensions": [{"Name": "builtin/lua"}]`), "", `error: EnvoyExtensions: there is no Envoy`},
		{"rate limit", fmt.Sprintf(defaults, `"RateLimits": {"InstanceLevel": {"RequestsPerSecond": 1}}`), "", `error: RateLimits: needs Consul Enterprise`},
		{"of others", `{"Kind": "service-defaults", "Name": "api", "Protocol": "http", "MaxInboundConnections": 5, "LocalRequestTimeoutMs": 5, "MutualTLSMode": "permissive"}`, "", ``},
		{"connections to itself", fmt.Sprintf(defaults, `"MaxInboundConnections": 5`), "", `error: MaxInboundConnections: is not enforced`},
		{"time of its requests", fmt.Sprintf(defaults, `"LocalRequestTimeoutMs": 5`), "", `error: LocalRequestTimeoutMs: is not enforced`},
		{"plaintext to itself", fmt.Sprintf(defaults, `"MutualTLSMode": "permissive"`), "", `error: MutualTLSMode: permissive is not enforced`},
		{"TLS mode", fmt.Sprintf(defaults, `"MutualTLSMode": "maybe"`), "", `error: MutualTLSMode: "maybe" is not a mode`},
		{"limit of nothing", fmt.Sprintf(upstream, `"Limits": {"MaxConnections": 0}`), "", `error: UpstreamConfig.Defaults.Limits.MaxConnections: 0 forbids everything`},
		{"share of ejections", fmt.Sprintf(upstream, `"PassiveHealthCheck": {"EnforcingConsecutive5xx": 50}`), "", `error: UpstreamConfig.Defaults.PassiveHealthCheck.EnforcingConsecutive5xx: 50: a share`},
		{"percentage", fmt.Sprintf(upstream, `"PassiveHealthCheck": {"MaxEjectionPercent": 101}`), "", `error: UpstreamConfig.Defaults.PassiveHealthCheck.MaxEjectionPercent: 101 is out of range`},
		{"named defaults", fmt.Sprintf(upstream, `"Name": "api"`), "", `error: UpstreamConfig.Defaults.Name: must not be set`},
		{"override without name", fmt.Sprintf(defaults, `"UpstreamConfig": {"Overrides": [{"ConnectTimeoutMs": 5}]}`), "", `error: UpstreamConfig.Overrides[0].Name: missing`},
		{"override twice", fmt.Sprintf(defaults, `"UpstreamConfig": {"Overrides": [{"Name": "api", "ConnectTimeoutMs": 5}, {"Name": "api", "Limits": {"MaxConnections": 5}}]}`), "", `error: UpstreamConfig.Overrides[1].Name: "api" is there twice, first in UpstreamConfig.Overrides[0]`},
		{"listener", fmt.Sprintf(upstream, `"EnvoyListenerJSON": "{}"`), "", `error: UpstreamConfig.Defaults.EnvoyListenerJSON: there is no Envoy`},
		{"configuration of Envoy", `{"Kind": "proxy-defaults", "Name": "global", "Config": {"envoy_stats_flush_interval": "5s", "protocol": "http"}}`, "-", `warning: Config.envoy_stats_flush_interval: has no effect`},
		{"connections in the configuration of Envoy", `{"Kind": "proxy-defaults", "Config": {"protocol": "http", "Max_Inbound_Connections": 5}}`, "-", `error: Config.Max_Inbound_Connections: is not enforced`},
		{"time of requests in the configuration of Envoy", `{"Kind": "proxy-defaults", "Config": {"protocol": "http", "local_request_timeout_ms": 5000}}`, "-", `error: Config.local_request_timeout_ms: is not enforced`},
		{"idle time in the configuration of Envoy", `{"Kind": "proxy-defaults", "Config": {"protocol": "http", "local_idle_timeout_ms": "5000"}}`, "-", `error: Config.local_idle_timeout_ms: is not enforced`},
		{"no time in the configuration of Envoy", `{"Kind": "proxy-defaults", "Config": {"protocol": "http", "local_request_timeout_ms": 0}}`, "-", ``},
		{"listener in the configuration of Envoy", `{"Kind": "proxy-defaults", "Config": {"protocol": "http", "envoy_public_listener_json": "{}"}}`, "-", `error: Config.envoy_public_listener_json: there is no Envoy`},
		{"plaintext to all", `{"Kind": "proxy-defaults", "MutualTLSMode": "permissive"}`, "-", `error: MutualTLSMode: permissive is not enforced`},
		{"balance of connections", fmt.Sprintf(defaults, `"BalanceInboundConnections": "exact_balance"`), "", `warning: BalanceInboundConnections: there are no threads`},
		{"time to connect to itself", fmt.Sprintf(defaults, `"LocalConnectTimeoutMs": 5`), "", `warning: LocalConnectTimeoutMs: there is no proxy`},
		{"exposed paths", fmt.Sprintf(defaults, `"Expose": {"Paths": [{"Path": "/health"}]}`), "", `warning: Expose: there is no proxy`},
		{"transparent proxy", fmt.Sprintf(defaults, `"TransparentProxy": {"DialedDirectly": true}`), "", `warning: TransparentProxy: there is no proxy`},
		{"normalization of paths", `{"Kind": "mesh", "HTTP": {"Incoming": {"RequestNormalization": {"InsecureDisablePathNormalization": true}}}}`, "", `error: HTTP.Incoming.RequestNormalization: how paths are normalized`},
		{"header of the peer", `{"Kind": "mesh", "HTTP": {"SanitizeXForwardedClientCert": true}}`, "", `error: HTTP.SanitizeXForwardedClientCert: x-forwarded-client-cert is appended to`},
		{"upstream of a peer", fmt.Sprintf(defaults, `"UpstreamConfig": {"Overrides": [{"Name": "api", "Peer": "east"}]}`), "", `error: UpstreamConfig.Overrides[0].Peer: peers are not enforced yet`},
		{"protocol of an upstream", fmt.Sprintf(upstream, `"Protocol": "grpc"`), "", `error: UpstreamConfig.Defaults.Protocol: an upstream has the protocol of its own`},
		{"gateway failures", fmt.Sprintf(upstream, `"PassiveHealthCheck": {"ConsecutiveGatewayFailure": 3}`), "", `error: UpstreamConfig.Defaults.PassiveHealthCheck.ConsecutiveGatewayFailure: not in Consul 1.22`},
		{"mesh", `{"Kind": "mesh", "TransparentProxy": {"MeshDestinationsOnly": false}}`, "", ``},
		{"TLS of the mesh", `{"Kind": "mesh", "TLS": {"Incoming": {"TLSMinVersion": "TLSv1_3"}}}`, "", `error: TLS: versions and cipher suites`},

		{"object of Kubernetes", "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceRouter\nmetadata: {name: web}\nspec: {routes: [{match: {http: {pathExact: a}}}]}", "", `error: spec.routes[0].match.http.pathExact: "a" does not start with a slash`},
		{"object that is not enforced", "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ExportedServices\nmetadata: {name: web}", "", `error: kind: ExportedServices is not enforced yet: remove it`},
		{"object of no kind", "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceRuter\nmetadata: {name: web}", "", `error: kind: unknown kind "ServiceRuter" of consul.hashicorp.com, did you mean "ServiceRouter"?`},
	} {
		t.Run(test.name, func(t *testing.T) {
			sources := []policy.Source{{Name: "a.json", Data: []byte(test.entry)}}
			if test.others != "" && test.others != "-" {
				sources = append(sources, policy.Source{Name: "b.json", Data: []byte(test.others)})
			}
			if test.others != "-" && !strings.Contains(test.entry, "proxy-defaults") {
				sources = append(sources, policy.Source{Name: "c.json", Data: []byte(httpDefaults)})
			}
			checked := policy.Check(sources, policy.Workload{Service: "web", Filters: filters{}})
			var got []string
			for _, f := range checked.Findings {
				if f.File == "a.json" {
					got = append(got, fmt.Sprintf("%s: %s: %s", f.Severity, f.Field, f.Message))
				}
			}
			switch {
			case test.want == "" && len(checked.Findings) > 0:
				t.Errorf("findings: %v", checked.Findings)
			case test.want != "" && (len(got) == 0 || !strings.HasPrefix(got[0], test.want)):
				t.Errorf("findings: %v, want %s", checked.Findings, test.want)
			}
		})
	}
}

// Findings about keys of a map must not change their order from one run to the next.
func TestRules_Order(t *testing.T) {
	sources := []policy.Source{
		{Name: "proxy.json", Data: []byte(`{"Kind": "proxy-defaults", "Config": {"protocol": "http", "a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1}}`)},
		{Name: "router.json", Data: fmt.Appendf(nil, route, `"RequestHeaders": {"Add": {"a": "1", "b": "1", "c": "1", "d": "1", "e": "1"},
			"Set": {"a": "2", "b": "2", "c": "2", "d": "2", "e": "2"}}`)},
		{Name: "intentions.json", Data: []byte(`{"Kind": "service-intentions", "Name": "web", "Sources": [{"Name": "api", "Permissions": [
			{"Action": "deny", "HTTP": {"PathExact": "a", "PathPrefix": "b", "PathRegex": "("}}]}]}`)},
	}
	first := policy.Check(sources, policy.Workload{Service: "web", Filters: filters{}}).Findings
	if len(first) != 6+5+3 {
		t.Fatalf("%d findings, want 14:\n%v", len(first), first)
	}
	for range 20 {
		if again := policy.Check(sources, policy.Workload{Service: "web", Filters: filters{}}).Findings; again.Error() != first.Error() {
			t.Fatalf("findings:\n%v\nthen:\n%v", first, again)
		}
	}
}

// What a service does for itself counts for whoever may be an instance of it.
func TestRules_ServiceNotKnown(t *testing.T) {
	for entry, want := range map[string]string{
		fmt.Sprintf(defaults, `"MaxInboundConnections": 5`):                                        "MaxInboundConnections",
		fmt.Sprintf(defaults, `"LocalRequestTimeoutMs": 5`):                                        "LocalRequestTimeoutMs",
		fmt.Sprintf(defaults, `"MutualTLSMode": "permissive"`):                                     "MutualTLSMode",
		`{"Kind": "proxy-defaults", "Config": {"protocol": "http", "max_inbound_connections": 5}}`: "Config.max_inbound_connections",
	} {
		checked := policy.Check([]policy.Source{{Name: "a.json", Data: []byte(entry)}}, policy.Workload{Filters: filters{}})
		if len(checked.Findings) != 1 || checked.Findings[0].Severity != policy.Warning || checked.Findings[0].Field != want ||
			!strings.Contains(checked.Findings[0].Message, "It is not known whether") {
			t.Errorf("%s: %v, want a warning about %s", entry, checked.Findings, want)
		}
	}
}

// A few entries that lead to each other must not take a process hours, or its memory.
func TestRules_Bounds(t *testing.T) {
	list := func(n int, format string) string {
		all := make([]string, n)
		for i := range all {
			all[i] = fmt.Sprintf(format, i)
		}
		return strings.Join(all, ", ")
	}
	// 1,000 shares, each to a service of its own.
	wide := `{"Kind": "service-splitter", "Name": "wide", "Splits": [` + list(1_000, `{"Weight": 0.1, "Service": "s%d"}`) + `]}`
	routed := func(name string, n int) string {
		return fmt.Sprintf(`{"Kind": "service-router", "Name": %q, "Routes": [%s]}`, name, list(n, `{"Match": {"HTTP": {"PathPrefix": "/%d"}}, "Destination": {"Service": "wide"}}`))
	}
	row := func(format string, n int) (entries []string) {
		for i := range n {
			entries = append(entries, fmt.Sprintf(format, i, i+1))
		}
		return entries
	}
	const splits, redirects = `{"Kind": "service-splitter", "Name": "x%d", "Splits": [{"Weight": 100, "Service": "x%d"}]}`, `{"Kind": "service-resolver", "Name": "x%d", "Redirect": {"Service": "x%d"}}`
	for name, test := range map[string]struct {
		entries []string
		want    string // "" for nothing
	}{
		"splitters one after the other":          {row(splits, 100), ""},
		"too many splitters one after the other": {row(splits, 101), "Splits[0]: cannot be enforced: it leads through more than 100 splitters"},
		"redirects one after the other":          {row(redirects, 99), ""},
		"too many redirects one after the other": {row(redirects, 101), "Redirect: cannot be enforced: it leads through more than 100 redirects"},
		"many shares":                            {[]string{wide, routed("web", 19)}, ""},
		"too many shares of one service":         {[]string{wide, routed("web", 21)}, "Routes[20].Destination: cannot be enforced: the routes up to here divide the calls into more than 20000 shares"},
		"too many shares of several services":    {[]string{wide, routed("a", 19), routed("b", 19), routed("c", 19), routed("d", 19), routed("e", 19), routed("f", 19)}, "Name: cannot be enforced: routers and splitters up to here divide the calls to services into more than 100000 shares"},
	} {
		t.Run(name, func(t *testing.T) {
			sources := []policy.Source{{Name: "http.json", Data: []byte(httpDefaults)}}
			for i, entry := range test.entries {
				sources = append(sources, policy.Source{Name: fmt.Sprintf("%d.json", i), Data: []byte(entry)})
			}
			text := policy.Check(sources, policy.Workload{Service: "web"}).Findings.Err()
			if (text == nil) != (test.want == "") || text != nil && !strings.Contains(text.Error(), strings.Replace(test.want, ": ", ": error: ", 1)) {
				t.Errorf("%.500v, want %s", text, test.want)
			}
		})
	}
}
