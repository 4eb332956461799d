package realservers

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbac "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	manager "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcprbac "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	matcher "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/protobuf/proto"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/realservers/servers"
)

// Generated intentions decide as the rules do that an agent makes of them for a sidecar. Where a path or a header has several
// readings, a request may be denied that the sidecar allows, but not the other way around.
func TestConsulIntentionsAgreeWithSidecars(t *testing.T) {
	for _, byDefault := range []string{"allow", "deny"} {
		t.Run("default "+byDefault, func(t *testing.T) {
			agent := servers.StartConsul(t, servers.ConsulConfig{Dev: true, Extra: map[string]any{"default_intention_policy": byDefault}})
			o := &oracle{t: t, agent: agent, client: agent.Client(), rng: rand.New(rand.NewPCG(1, 2))}
			o.w = policy.Workload{AllowByDefault: byDefault == "allow"}
			roots, _, err := o.client.Connect().CARoots(nil)
			if err != nil {
				t.Fatal(err)
			}
			o.w.TrustDomain = roots.TrustDomain
			for _, everywhere := range []string{"", `{"Name": "ops", "Action": "allow"}`, `{"Name": "ops", "Action": "deny"}, {"Name": "*", "Action": "allow"}`, `{"Name": "*", "Action": "deny"}`} {
				o.everywhere = nil
				if everywhere != "" {
					o.everywhere = o.put(`{"Kind": "service-intentions", "Name": "*", "Sources": [` + everywhere + `]}`)
				}
				for range 13 {
					o.compare(true)
				}
				for range 3 {
					o.compare(false)
				}
			}
			t.Logf("%d sets, %d requests, %d allowed, %d denied here alone", o.sets, o.requests, o.allowed, o.stricter)
			if o.allowed < o.requests/10 || o.allowed > o.requests*9/10 {
				t.Error("the sets test nothing")
			}
		})
	}
}

type oracle struct {
	t          *testing.T
	agent      *servers.Consul
	client     *api.Client
	rng        *rand.Rand
	w          policy.Workload
	everywhere []policy.Source

	sets, requests, allowed, stricter int
}

// put writes an entry and returns it as a source.
func (o *oracle) put(document string) []policy.Source {
	o.t.Helper()
	var entry json.RawMessage = []byte(document)
	var ok bool
	if _, err := o.client.Raw().Write("/v1/config", entry, &ok, nil); err != nil || !ok {
		o.t.Fatalf("%s: %v, %v", document, ok, err)
	}
	return []policy.Source{{Name: "entry.json", Data: entry}}
}

// compare generates the intentions of one more service, and requests.
func (o *oracle) compare(isHTTP bool) {
	o.t.Helper()
	o.sets++
	name := fmt.Sprintf("s%d", o.sets)
	protocol := "tcp"
	if isHTTP {
		protocol = "http"
	}
	sources := slices.Concat(o.everywhere, o.put(fmt.Sprintf(`{"Kind": "service-defaults", "Name": %q, "Protocol": %q}`, name, protocol)))
	if text := o.sources(isHTTP); text != "" {
		sources = append(sources, o.put(fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": [%s]}`, name, text))...)
	}
	for i := range sources {
		sources[i].Name = fmt.Sprintf("%d.json", i)
	}
	if len(sources) == 1 { // without intentions a feed yields an entry that names nobody
		sources = append(sources, policy.Source{Name: "none.json", Data: []byte(fmt.Sprintf(`{"Kind": "service-intentions", "Name": %q, "Sources": []}`, name))})
	}
	w := o.w
	w.Service = name
	plan, findings := policy.Compile(sources, w)
	if plan == nil {
		o.t.Fatalf("%+v: %v", sources, findings)
	}
	registration := &api.AgentServiceRegistration{Name: name, Port: 8080, Connect: &api.AgentServiceConnect{
		SidecarService: &api.AgentServiceRegistration{Port: 22000 + o.sets},
	}}
	if err := o.client.Agent().ServiceRegister(registration); err != nil {
		o.t.Fatal(err)
	}
	rules, checked := o.rules(name, isHTTP)
	if !checked && !o.w.AllowByDefault {
		o.t.Fatalf("%s: the sidecar checks nothing", name)
	}
	o.ask(plan, rules, isHTTP, sources)
}

// ask compares decisions.
func (o *oracle) ask(plan *policy.Plan, rules *rbac.RBAC, isHTTP bool, sources []policy.Source) {
	o.t.Helper()
	for _, from := range []string{"api", "db", "ops", "other", "Api"} {
		for _, r := range o.requestsOf(isHTTP) {
			peer := o.w.TrustDomain + "/ns/default/dc/" + []string{"dc1", "dc2"}[o.rng.IntN(2)] + "/svc/" + from
			view := authz.Request{Principal: peer, Method: r.method, Target: r.target, Header: r.header, Host: "web", L4: !isHTTP}
			got := plan.Inbound().Authorize(&view)
			want := allows(rules, &envoyRequest{peer: "spiffe://" + peer, method: r.method, path: r.path, header: r.header})
			o.requests++
			if got.Allowed {
				o.allowed++
			}
			switch {
			case got.Allowed == want:
			case r.odd && want:
				o.stricter++
			case from == "ops" && !o.w.AllowByDefault && want: // the one named by intentions for all services, which others hide here
				o.stricter++
			default:
				var all []string
				for _, s := range sources {
					all = append(all, string(s.Data))
				}
				o.t.Fatalf("%s %s from %s with %v: allowed %v (%s), and by the sidecar %v, by\n%s", r.method, r.target, from, r.header, got.Allowed, got.Reason, want, strings.Join(all, "\n"))
			}
		}
	}
}

type testRequest struct {
	method, target string
	path           string // as Envoy normalizes it
	header         http.Header
	odd            bool // there are several readings
}

func (o *oracle) requestsOf(isHTTP bool) (all []testRequest) {
	if !isHTTP {
		return []testRequest{{}}
	}
	paths := []testRequest{
		{target: "/"}, {target: "/v1"}, {target: "/v1/a?x=/admin"}, {target: "/v1x"}, {target: "/V1/a"}, {target: "/admin"}, {target: "/admin/b"},
		{target: "/v1/../admin", path: "/admin"}, {target: "/%76%31/a", path: "/v1/a"}, {target: "//admin", path: "//admin", odd: true},
		{target: "/v1/..%2fadmin", path: "/v1/..%2fadmin", odd: true}, {target: "/admin;x", path: "/admin;x", odd: true},
	}
	headers := []testRequest{
		{}, {header: http.Header{"X-Role": {"admin"}}}, {header: http.Header{"X-Role": {"ADMIN"}}}, {header: http.Header{"X-Role": {"administrator"}}},
		{header: http.Header{"X-Role": {"user"}, "X-Other": {"a"}}}, {header: http.Header{"X-Role": {""}}},
		{header: http.Header{"X-Role": {"user", "admin"}}, odd: true}, {header: http.Header{"X-Role": {"admin,user"}}, odd: true},
	}
	for _, p := range paths {
		for range 3 {
			h := headers[o.rng.IntN(len(headers))]
			r := testRequest{method: []string{"GET", "POST", "DELETE"}[o.rng.IntN(3)], target: p.target, path: p.path, header: h.header, odd: p.odd || h.odd}
			if r.path == "" {
				r.path, _, _ = strings.Cut(p.target, "?")
			}
			all = append(all, r)
		}
	}
	return all
}

// sources generates the sources of an entry.
func (o *oracle) sources(isHTTP bool) string {
	var all []string
	for _, name := range []string{"api", "db", "*"} {
		switch n := o.rng.IntN(6); {
		case n == 0:
		case n < 3 || !isHTTP:
			all = append(all, fmt.Sprintf(`{"Name": %q, "Action": %q}`, name, o.action()))
		default:
			var permissions []string
			for range 1 + o.rng.IntN(3) {
				permissions = append(permissions, fmt.Sprintf(`{"Action": %q, "HTTP": {%s}}`, o.action(), o.condition()))
			}
			all = append(all, fmt.Sprintf(`{"Name": %q, "Permissions": [%s]}`, name, strings.Join(permissions, ", ")))
		}
	}
	o.rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return strings.Join(all, ", ")
}

func (o *oracle) action() string { return []string{"allow", "deny"}[o.rng.IntN(2)] }

func (o *oracle) condition() string {
	var parts []string
	pick := func(list ...string) string { return list[o.rng.IntN(len(list))] }
	if path := pick("", "", `"PathExact": "/v1"`, `"PathExact": "/admin"`, `"PathPrefix": "/v1"`, `"PathPrefix": "/v1/"`, `"PathPrefix": "/"`, `"PathRegex": "/v[0-9](/.*)?"`, `"PathRegex": "/admin|/"`); path != "" {
		parts = append(parts, path)
	}
	if methods := pick("", "", `"Methods": ["GET"]`, `"Methods": ["POST", "DELETE"]`, `"Methods": ["get", "Post"]`); methods != "" {
		parts = append(parts, methods)
	}
	var headers []string
	for range o.rng.IntN(3) {
		kind := pick(`"Present": true`, `"Exact": "admin"`, `"Prefix": "adm"`, `"Suffix": "min"`, `"Contains": "dmi"`, `"Regex": "[a-z]+"`, `"Regex": "admin|user"`)
		if o.rng.IntN(2) == 0 {
			kind += `, "Invert": true`
		}
		if !strings.Contains(kind, "Present") && !strings.Contains(kind, "Regex") && o.rng.IntN(3) == 0 {
			kind += `, "IgnoreCase": true`
		}
		headers = append(headers, fmt.Sprintf(`{"Name": %q, %s}`, pick("x-role", "X-Other"), kind))
	}
	if headers != nil {
		parts = append(parts, `"Header": [`+strings.Join(headers, ", ")+`]`)
	}
	if parts == nil {
		return `"PathPrefix": "/v1/a"`
	}
	return strings.Join(parts, ", ")
}

// rules returns the rules by which the sidecar of a service decides about requests or connections, and whether there are any.
func (o *oracle) rules(name string, isHTTP bool) (rules *rbac.RBAC, ok bool) {
	o.t.Helper()
	fill := func(data []byte, into proto.Message) {
		if err := proto.Unmarshal(data, into); err != nil {
			o.t.Fatal(err)
		}
	}
	for at, data := range o.agent.XDS(o.t, name+"-sidecar-proxy", servers.XDSListener) {
		if !strings.HasPrefix(at, "public_listener:") {
			continue
		}
		var l listener.Listener
		fill(data, &l)
		for _, filter := range l.FilterChains[0].Filters {
			switch {
			case !isHTTP && filter.Name == "envoy.filters.network.rbac":
				var f tcprbac.RBAC
				fill(filter.GetTypedConfig().Value, &f)
				return f.Rules, true
			case isHTTP && filter.Name == "envoy.filters.network.http_connection_manager":
				var m manager.HttpConnectionManager
				fill(filter.GetTypedConfig().Value, &m)
				for _, filter := range m.HttpFilters {
					if filter.Name == "envoy.filters.http.rbac" {
						var f httprbac.RBAC
						fill(filter.GetTypedConfig().Value, &f)
						return f.Rules, true
					}
				}
			}
		}
		return nil, false
	}
	o.t.Fatalf("the sidecar of %s has no public listener", name)
	return nil, false
}

// envoyRequest is what Envoy's rules see.
type envoyRequest struct {
	peer, method, path string
	header             http.Header
}

// allows evaluates rules as Envoy does.
func allows(rules *rbac.RBAC, r *envoyRequest) bool {
	if rules == nil {
		return true
	}
	matched := false
	for _, p := range rules.Policies {
		matched = matched || slices.ContainsFunc(p.Permissions, r.permitted) && slices.ContainsFunc(p.Principals, r.isFrom)
	}
	return matched == (rules.Action == rbac.RBAC_ALLOW)
}

func (r *envoyRequest) permitted(p *rbac.Permission) bool {
	switch rule := p.Rule.(type) {
	case *rbac.Permission_Any:
		return rule.Any
	case *rbac.Permission_AndRules:
		return !slices.ContainsFunc(rule.AndRules.Rules, func(p *rbac.Permission) bool { return !r.permitted(p) })
	case *rbac.Permission_OrRules:
		return slices.ContainsFunc(rule.OrRules.Rules, r.permitted)
	case *rbac.Permission_NotRule:
		return !r.permitted(rule.NotRule)
	case *rbac.Permission_UrlPath:
		return matches(rule.UrlPath.GetPath(), r.path)
	case *rbac.Permission_Header:
		return r.has(rule.Header)
	}
	panic(fmt.Sprintf("a permission of the type %T", p.Rule))
}

func (r *envoyRequest) isFrom(p *rbac.Principal) bool {
	switch id := p.Identifier.(type) {
	case *rbac.Principal_Any:
		return id.Any
	case *rbac.Principal_AndIds:
		return !slices.ContainsFunc(id.AndIds.Ids, func(p *rbac.Principal) bool { return !r.isFrom(p) })
	case *rbac.Principal_OrIds:
		return slices.ContainsFunc(id.OrIds.Ids, r.isFrom)
	case *rbac.Principal_NotId:
		return !r.isFrom(id.NotId)
	case *rbac.Principal_Authenticated_:
		return matches(id.Authenticated.PrincipalName, r.peer)
	}
	panic(fmt.Sprintf("a principal of the type %T", p.Identifier))
}

func (r *envoyRequest) has(h *route.HeaderMatcher) bool {
	values := r.header[http.CanonicalHeaderKey(h.Name)]
	if h.Name == ":method" {
		values = []string{r.method}
	}
	switch m := h.HeaderMatchSpecifier.(type) {
	case *route.HeaderMatcher_PresentMatch:
		return (len(values) > 0) == m.PresentMatch != h.InvertMatch
	case *route.HeaderMatcher_StringMatch:
		return len(values) > 0 && matches(m.StringMatch, strings.Join(values, ",")) != h.InvertMatch
	}
	panic(fmt.Sprintf("a condition on a header of the type %T", h.HeaderMatchSpecifier))
}

func matches(m *matcher.StringMatcher, s string) bool {
	fold := func(s string) string {
		if m.IgnoreCase {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.MatchPattern.(type) {
	case *matcher.StringMatcher_Exact:
		return fold(s) == fold(p.Exact)
	case *matcher.StringMatcher_Prefix:
		return strings.HasPrefix(fold(s), fold(p.Prefix))
	case *matcher.StringMatcher_Suffix:
		return strings.HasSuffix(fold(s), fold(p.Suffix))
	case *matcher.StringMatcher_Contains:
		return strings.Contains(fold(s), fold(p.Contains))
	case *matcher.StringMatcher_SafeRegex:
		return regexp.MustCompile(`^(?:` + p.SafeRegex.Regex + `)$`).MatchString(s)
	}
	panic(fmt.Sprintf("a text of the type %T", m.MatchPattern))
}
