package policy_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// labelled takes an expression for the name of a label that endpoints must have.
type labelled struct{}

func (labelled) Compile(expression string, onlyPassing bool) (func(*discovery.Endpoint) bool, error) {
	return func(e *discovery.Endpoint) bool {
		_, has := e.Labels[expression]
		return has && !onlyPassing
	}, nil
}

// entriesOf compiles config entries, each a source of its own.
func entriesOf(t *testing.T, w policy.Workload, entries ...string) *policy.Plan {
	t.Helper()
	w.Filters = labelled{}
	plan, findings := policy.Compile(entrySources(entries...), w)
	if plan == nil {
		t.Fatal(findings)
	}
	return plan
}

func entrySources(entries ...string) (sources []policy.Source) {
	for i, entry := range entries {
		sources = append(sources, policy.Source{Name: fmt.Sprintf("%d.json", i), Data: []byte(entry)})
	}
	return sources
}

const allHTTP = `{"Kind": "proxy-defaults", "Config": {"protocol": "http"}}`

// shown says what a request gets: destinations with weights, the path, the timeout and the retries.
func shown(t *testing.T, plan *policy.Plan, method, url, header string) string {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if name, value, ok := strings.Cut(header, ": "); ok {
		req.Header.Set(name, value)
	}
	view := route.NewRequest(req)
	rule, match, ok := plan.Host(req.URL.Host).Routes.Match(&view)
	if !ok {
		return "nothing"
	}
	var parts []string
	for _, d := range rule.Route.Destinations {
		part := strings.ReplaceAll(d.Target.String(), ".default.svc.cluster.local", "")
		if len(rule.Route.Destinations) > 1 {
			part += fmt.Sprintf(" %d", d.Weight)
		}
		parts = append(parts, part)
	}
	text := strings.Join(parts, ", ")
	if err := rule.Backend(0).Rewrite(req, match); err != nil {
		t.Fatal(err)
	}
	if req.URL.Path != view.Path {
		text += " as " + req.URL.Path
	}
	if d := rule.Route.Timeout; d != 15*time.Second {
		text += " in " + d.String()
	}
	if c := rule.Retry.Config(); c.Retries > 0 {
		text += fmt.Sprintf(" %d times on %v", c.Retries, c.On)
	}
	return text
}

func TestConfigEntries_Routes(t *testing.T) {
	plan := entriesOf(t, policy.Workload{}, allHTTP,
		`{"Kind": "service-router", "Name": "web", "Routes": [
  {"Match": {"HTTP": {"PathExact": "/exact", "CaseInsensitive": true}}, "Destination": {"PrefixRewrite": "/other", "RequestTimeout": "-1s"}},
  {"Match": {"HTTP": {"PathPrefix": "/v1"}}, "Destination": {"Service": "api", "PrefixRewrite": "/", "RequestTimeout": 3000000000, "NumRetries": 4, "RetryOnConnectFailure": true}},
  {"Match": {"HTTP": {"PathExact": "/root"}}, "Destination": {"PrefixRewrite": "/", "NumRetries": 3}},
  {"Match": {"HTTP": {"PathRegex": "/[0-9]+"}}, "Destination": {"ServiceSubset": "v2", "RetryOnStatusCodes": [503]}},
  {"Match": {"HTTP": {"Header": [{"Name": "x-not", "Exact": "a", "Invert": true}]}}, "Destination": {"Service": "inverted"}},
  {"Match": {"HTTP": {"Header": [{"Name": "x-end", "Suffix": ".z"}]}}, "Destination": {"Service": "suffix"}},
  {"Match": {"HTTP": {"Header": [{"Name": "x-some", "Present": true}], "Methods": null}}, "Destination": {"Service": "present"}},
  {"Match": {"HTTP": {"QueryParam": [{"Name": "q", "Exact": "1"}], "Methods": ["put", "POST"]}}, "Destination": {"Service": "query"}}]}`,
		`{"Kind": "service-splitter", "Name": "web", "Splits": [{"Weight": 90, "ServiceSubset": "v1"}, {"Weight": 10, "Service": "split"}]}`,
		`{"Kind": "service-splitter", "Name": "split", "Splits": [{"Weight": 50}, {"Weight": 33.3, "Service": "api"}, {"Weight": 16.7, "Service": "gone"}]}`,
		`{"Kind": "service-resolver", "Name": "web", "Subsets": {"v1": {"Filter": "v1"}, "v2": {"Filter": "v2", "OnlyPassing": true}}, "RequestTimeout": "1s"}`,
		`{"Kind": "service-resolver", "Name": "gone", "Redirect": {"Service": "api", "Datacenter": "dc2"}}`,
		`{"Kind": "service-resolver", "Name": "api", "RequestTimeout": "7s", "DefaultSubset": "one", "Subsets": {"one": {}}}`,
		`{"Kind": "service-router", "Name": "api", "Routes": [{"Destination": {"Service": "never"}}]}`,
		`{"Kind": "service-resolver", "Name": "slow", "RequestTimeout": "7s"}`,
		`{"Kind": "service-defaults", "Name": "raw"}`,
	)
	for _, test := range []struct{ method, url, header, want string }{
		{"GET", "http://web/", "", "web subset v1 9000, split 500, api subset one 333, api.service.dc2.consul subset one 167"},
		{"GET", "http://web/Exact", "", "web subset v1 9000, split 500, api subset one 333, api.service.dc2.consul subset one 167 as /other in 0s"},
		{"GET", "http://web/v1", "", "api subset one as / in 3s 4 times on connect-failure"},
		{"GET", "http://web/v1/x", "", "api subset one as /x in 3s 4 times on connect-failure"},
		{"GET", "http://web/v1x", "", "api subset one as /x in 3s 4 times on connect-failure"},
		{"GET", "http://web/root", "", "web subset v1 9000, split 500, api subset one 333, api.service.dc2.consul subset one 167"},
		{"GET", "http://web/12", "", "web subset v2 1 times on 503"},
		{"GET", "http://web/", "X-Not: b", "inverted"},
		{"GET", "http://web/", "X-Not: a", "web subset v1 9000, split 500, api subset one 333, api.service.dc2.consul subset one 167"},
		{"GET", "http://web/", "X-End: a.z", "suffix"},
		{"GET", "http://web/", "X-Some: 1", "present"},
		{"PUT", "http://web/?q=1", "", "query"},
		{"PATCH", "http://web/?q=1", "", "web subset v1 9000, split 500, api subset one 333, api.service.dc2.consul subset one 167"},
		{"GET", "http://split/", "", "split 5000, api subset one 3330, api.service.dc2.consul subset one 1670"},
		{"GET", "http://gone/", "", "api.service.dc2.consul subset one in 7s"},
		{"GET", "http://slow/", "", "slow in 7s"},
		{"GET", "http://raw/", "", "raw in 0s"},
		{"GET", "http://inverted/", "", "inverted"},
		{"GET", "http://unnamed/", "", "unnamed"},
		{"GET", "http://web.service.consul/v1", "", "api subset one as / in 3s 4 times on connect-failure"},
		{"GET", "http://Web.virtual.consul./v1", "", "api subset one as / in 3s 4 times on connect-failure"},
		{"GET", "http://web.default.svc.cluster.local:8080/v1", "", "api subset one as / in 3s 4 times on connect-failure"},
	} {
		if got := shown(t, plan, test.method, test.url, test.header); got != test.want {
			t.Errorf("%s %s %s: %s, want %s", test.method, test.url, test.header, got, test.want)
		}
	}
}

func TestConfigEntries_OriginOfRoutes(t *testing.T) {
	plan := entriesOf(t, policy.Workload{}, allHTTP,
		"{\"Kind\": \"service-router\", \"Name\": \"web\", \"Routes\": [\n{\"Match\": {\"HTTP\": {\"PathPrefix\": \"/a\"}}},\n{\"Match\": {\"HTTP\": {\"PathPrefix\": \"/b\"}}}]}")
	h := plan.Host("web")
	if h.Document != "service-router default/web" || !h.Known || h.Routes.Len() != 3 {
		t.Fatalf("%+v with %d routes", h, h.Routes.Len())
	}
	for i, want := range []policy.Origin{
		{Document: h.Document, File: "1.json", Line: 2, Route: 0, Match: 0}, {Document: h.Document, File: "1.json", Line: 3, Route: 1, Match: 0},
		{Document: h.Document, File: "1.json", Line: 1, Route: -1, Match: -1},
	} {
		if got := h.Origin(h.Routes.Rule(i), want.Match); got != want {
			t.Errorf("route %d comes from %+v, want %+v", i, got, want)
		}
	}
	if got := plan.Host("unnamed"); got.Known || got.Routes.Len() != 1 || got.Origin(got.Routes.Rule(0), -1).Document != "" {
		t.Errorf("a service that no entry names has %+v", got)
	}
}

func TestConfigEntries_ClustersHaveTheDefaultsOfConsul(t *testing.T) {
	plan := entriesOf(t, policy.Workload{Service: "caller", Address: "10.0.0.1"}, allHTTP,
		`{"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "3s", "Subsets": {"v1": {"Filter": "v1"}}, "LoadBalancer": {"Policy": "maglev", "HashPolicies": [{"SourceIP": true}]}}`,
		`{"Kind": "service-defaults", "Name": "caller", "Protocol": "http", "UpstreamConfig": {"Defaults": {"Limits": {"MaxConnections": 7}, "PassiveHealthCheck": {"MaxFailures": 3, "Interval": "2s"}},
  "Overrides": [{"Name": "api", "ConnectTimeoutMs": 900, "Limits": {"MaxPendingRequests": 9}}, {"Name": "calm", "PassiveHealthCheck": {"EnforcingConsecutive5xx": 0, "MaxEjectionPercent": 0, "BaseEjectionTime": "9s"}}]}}`,
		`{"Kind": "service-defaults", "Name": "rpc", "Protocol": "grpc"}`,
	)
	cluster := func(host, subset string) policy.Cluster {
		return plan.Cluster(route.Target{Host: host, Subset: subset})
	}
	web := cluster("web", "")
	if c := web; c.Balancer.Algorithm != balancer.Maglev || c.Balancer.HashKey.SourceIP != "10.0.0.1" || c.Pool.ConnectTimeout != 3*time.Second || c.Pool.MaxConnections != 7 ||
		c.Pool.MaxRequests != 1024 || c.Pool.MaxPendingRequests != 1024 || !c.Eject || c.Outlier.Consecutive5xx != 3 || c.Outlier.Interval != 2*time.Second ||
		!c.Outlier.SuccessRate || c.RetryLimit.MaxRetries != 3 || !c.RetryBudget.Off || c.UpgradeHTTP2 || c.Balancer.PanicFraction != 0 || c.Balancer.Locality.Enabled {
		t.Errorf("web: %+v", c)
	}
	if c := cluster("web", "v1"); c.Missing || c.Filter.Text != "v1" || !c.Filter.Match(&discovery.Endpoint{Labels: map[string]string{"v1": ""}}) || c.Filter.Match(&discovery.Endpoint{}) {
		t.Errorf("web subset v1: %+v", c)
	}
	if c := cluster("web", "v2"); !c.Missing {
		t.Errorf("web subset v2: %+v", c)
	}
	// An override takes the place of whole parts of the defaults.
	if c := cluster("api", ""); c.Pool.MaxConnections != 1024 || c.Pool.MaxPendingRequests != 9 || c.Pool.ConnectTimeout != 900*time.Millisecond || c.Outlier.Consecutive5xx != 3 ||
		c.Balancer.Algorithm != balancer.RoundRobin {
		t.Errorf("api: %+v", c)
	}
	if c := cluster("calm", ""); c.Outlier.Consecutive5xx != -1 || c.Outlier.MaxEjectedFraction <= 0 || c.Outlier.MaxEjectedFraction > 1e-6 || c.Outlier.BaseEjection != 9*time.Second || c.Outlier.Interval != 0 {
		t.Errorf("calm: %+v", c)
	}
	if c := cluster("rpc", ""); !c.UpgradeHTTP2 {
		t.Errorf("rpc: %+v", c)
	}
	if c := cluster("other.shop.svc.cluster.local", ""); c.Pool.MaxConnections != 0 || c.Eject {
		t.Errorf("a service of another namespace: %+v", c)
	}
}

// What a caller says about a service holds for all that its chain leads to, and not for those services when they are called.
func TestConfigEntries_UpstreamOfAChain(t *testing.T) {
	plan := entriesOf(t, policy.Workload{Service: "caller"},
		`{"Kind": "service-resolver", "Name": "web", "Redirect": {"Service": "api"}}`,
		`{"Kind": "service-resolver", "Name": "api", "Failover": {"*": {"Service": "backup"}}}`,
		`{"Kind": "service-defaults", "Name": "caller", "UpstreamConfig": {"Overrides": [{"Name": "web", "Limits": {"MaxConnections": 5}}]}}`)
	to := plan.Host("web").Routes.Rule(0).Route.Destinations[0].Target
	if !strings.HasPrefix(to.Host, "api.") {
		t.Fatalf("web leads to %v", to)
	}
	c := plan.Cluster(to)
	if c.Pool.MaxConnections != 5 || len(c.Failover) != 2 || c.Failover[0] != to {
		t.Errorf("as a part of web: %+v", c)
	}
	if c := plan.Cluster(c.Failover[1]); c.Pool.MaxConnections != 5 || c.Missing {
		t.Errorf("the backup as a part of web: %+v", c)
	}
	if c := plan.Cluster(route.Target{Host: to.Host}); c.Pool.MaxConnections != 1024 {
		t.Errorf("by itself: %+v", c)
	}
}

func TestConfigEntries_FailoverInOrder(t *testing.T) {
	plan := entriesOf(t, policy.Workload{},
		`{"Kind": "service-resolver", "Name": "web", "Subsets": {"v1": {}, "v2": {}}, "DefaultSubset": "v1", "Failover": {
  "v1": {"Targets": [{"ServiceSubset": "v2"}, {"Service": "api"}, {"Datacenter": "dc2"}, {"ServiceSubset": "v1"}]}, "*": {"Service": "moved", "Datacenters": ["dc2", "dc3"]}}}`,
		`{"Kind": "service-resolver", "Name": "moved", "Redirect": {"Service": "api"}}`,
		`{"Kind": "service-resolver", "Name": "api", "Failover": {"*": {"Service": "never"}}}`)
	for subset, want := range map[string]string{
		"v1": "web subset v1, web subset v2, api, web.service.dc2.consul subset v1",
		"v2": "web subset v2, api.service.dc2.consul, api.service.dc3.consul",
		"":   "web subset v1, web subset v2, api, web.service.dc2.consul subset v1", // what is dialled without routes
	} {
		var list []string
		for _, target := range plan.Cluster(route.Target{Host: "web", Subset: subset}).Failover {
			list = append(list, strings.ReplaceAll(target.String(), ".default.svc.cluster.local", ""))
		}
		if got := strings.Join(list, ", "); got != want {
			t.Errorf("subset %q: %s, want %s", subset, got, want)
		}
	}
	if c := plan.Cluster(route.Target{Host: "web.service.dc2.consul", Subset: "v1"}); c.Missing || c.Pool.ConnectTimeout != 5*time.Second || !c.Eject {
		t.Errorf("in another datacenter: %+v", c)
	}
	if h := plan.Host("web.service.dc2.consul"); h.Service.Host != "web.service.dc2.consul" {
		t.Errorf("another datacenter is %+v", h.Service)
	}
}

// Two dialects would mean two sets of defaults.
// As in Consul's Envoy, calls that fail over are made as those to the service in whose place they go.
func TestConfigEntries_FailoverIsLedByItsResolver(t *testing.T) {
	plan := entriesOf(t, policy.Workload{Service: "caller"}, allHTTP,
		`{"Kind": "service-splitter", "Name": "front", "Splits": [{"Weight": 100, "Service": "web"}]}`,
		`{"Kind": "service-resolver", "Name": "web", "ConnectTimeout": "250ms", "LoadBalancer": {"Policy": "ring_hash", "HashPolicies": [{"Field": "header", "FieldValue": "x"}]}, "Failover": {"*": {"Service": "backup"}}}`,
		`{"Kind": "service-resolver", "Name": "backup", "ConnectTimeout": "3s", "LoadBalancer": {"Policy": "random"}, "DefaultSubset": "v1", "Subsets": {"v1": {"Filter": "v1"}}}`,
		`{"Kind": "service-resolver", "Name": "plain", "Failover": {"*": {"Service": "other"}}}`,
		`{"Kind": "service-defaults", "Name": "caller", "UpstreamConfig": {"Overrides": [{"Name": "front", "Limits": {"MaxConnections": 5}}]}}`)
	for _, caller := range []string{"web", "front"} {
		to := plan.Host(caller).Routes.Rule(0).Route.Destinations[0].Target
		web := plan.Cluster(to)
		if len(web.Failover) != 2 || web.Failover[0] != to {
			t.Fatalf("calls to %s go to %v", caller, web.Failover)
		}
		backup := plan.Cluster(web.Failover[1])
		if backup.Pool != web.Pool || !backup.Balancer.Equal(web.Balancer) || web.Balancer.Algorithm != balancer.RingHash {
			t.Errorf("calls to %s are made with %+v and %v, and then with %+v and %v", caller, web.Pool, web.Balancer.Algorithm, backup.Pool, backup.Balancer.Algorithm)
		}
		if backup.Missing || backup.Filter.Text != "v1" {
			t.Errorf("the backup of %s is %+v, want the subset v1", caller, backup)
		}
	}
	backup := plan.Cluster(plan.Host("backup").Routes.Rule(0).Route.Destinations[0].Target)
	if backup.Pool.ConnectTimeout != 3*time.Second || backup.Balancer.Algorithm != balancer.Random {
		t.Errorf("calls to the backup itself are made with %+v and %v", backup.Pool, backup.Balancer.Algorithm)
	}
	// What is the same has one state.
	if all := plan.Cluster(route.Target{Host: "plain.default.svc.cluster.local"}).Failover; len(all) != 2 || all[1] != (route.Target{Host: "other.default.svc.cluster.local"}) {
		t.Errorf("calls to plain fail over to %v", all)
	}
}

func TestConfigEntries_ServiceOfTwoDialects(t *testing.T) {
	const redirect = `{"Kind": "service-resolver", "Name": "web", "Redirect": {"Service": "api"}}`
	for _, other := range []string{
		"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}",
		"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: api}",
		"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: x}\nspec: {host: '*.svc.cluster.local'}",
		"apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: web.default.svc.cluster.local}\nspec: {routes: []}",
		"apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: x}\nspec: {service: web, backends: [{service: web, weight: 1}]}",
		"apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: x}\nspec: {hosts: [api.default.svc.cluster.local], location: MESH_INTERNAL, ports: [{number: 80, name: http}], resolution: STATIC, endpoints: [{address: 10.0.0.1}]}",
	} {
		sources := append(entrySources(redirect), policy.Source{Name: "other.yaml", Data: []byte(other)})
		plan, findings := policy.Compile(sources, policy.Workload{})
		if plan != nil || !strings.Contains(findings.Error(), "0.json:1: service-resolver default/web: Name: error: ") || !strings.Contains(findings.Error(), " is about, too (other.yaml:1)") {
			t.Errorf("%s\n%v", other, findings)
		}
	}
	// A VirtualService may lead to a service of Consul, and the defaults of Consul leave services to documents that name them.
	plan := entriesOf(t, policy.Workload{}, allHTTP, `{"Kind": "service-resolver", "Name": "api", "Subsets": {"v1": {}}}`,
		"apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\nspec: {hosts: [web], http: [{route: [{destination: {host: api, subset: v1}}]}]}")
	if h := plan.Host("web"); h.Document != "VirtualService default/x" {
		t.Errorf("web is routed by %s", h.Document)
	}
	if c := plan.Cluster(route.Target{Host: "api", Subset: "v1"}); c.Missing || !c.Eject {
		t.Errorf("api: %+v", c)
	}
}

func TestConfigEntries_TheSameTwice(t *testing.T) {
	const crd = "apiVersion: consul.hashicorp.com/v1alpha1\nkind: ServiceResolver\nmetadata: {name: web}\nspec: {connectTimeout: 1s}"
	plan, findings := policy.Compile(entrySources(`{"Kind": "service-resolver", "Name": "web"}`, crd), policy.Workload{})
	if plan != nil || !strings.Contains(findings.Error(), "service-resolver default/web is defined twice, first in 0.json:1") {
		t.Error(findings)
	}
	plan, findings = policy.Compile(entrySources(`{"Kind": "service-resolver", "Name": "web"}`, `{"Kind": "service-resolver", "Name": "Web"}`), policy.Workload{})
	if plan != nil || !strings.Contains(findings.Error(), "differ only in case") {
		t.Error(findings)
	}
}

func TestConfigEntries_FilterWithoutCompiler(t *testing.T) {
	plan, findings := policy.Compile(entrySources(`{"Kind": "service-resolver", "Name": "web", "Subsets": {"v1": {"Filter": "x"}}}`), policy.Workload{})
	if plan != nil || !strings.Contains(findings.Error(), "nothing compiles filters") {
		t.Error(findings)
	}
}

// A folder often has JSON that is no document.
func TestJSONThatIsNoDocument(t *testing.T) {
	checked := policy.Check([]policy.Source{{Name: "package.json", Data: []byte(`{"name": "x"}`)}, {Name: "a.yaml", Data: []byte(`{"name": "x"}`)}}, policy.Workload{})
	if len(checked.Findings) != 2 || checked.Findings[0].Severity != policy.Warning || checked.Findings[1].Severity != policy.Error {
		t.Error(checked.Findings)
	}
}
