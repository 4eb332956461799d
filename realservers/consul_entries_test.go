package realservers

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	envoy "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	entries "github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/realservers/servers"
)

const entrySets = 100

// object is a part of an entry.
type object = map[string]any

// TestConsulEntries writes generated sets of config entries to an agent. What is made of each must be the discovery chain that the
// agent compiles, and the routes that it sends to a sidecar; and what the agent refuses must be refused.
func TestConsulEntries(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{Dev: true})
	client := consulClient(t, agent, nil)
	rng := rand.New(rand.NewPCG(17, 4))
	sources := map[string]policy.Source{}
	store := func(entry object) error {
		if _, err := client.Raw().Write("/v1/config", entry, nil, nil); err != nil {
			return err
		}
		data, err := json.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("%s/%s.json", entry["Kind"], entry["Name"])
		sources[name] = policy.Source{Name: name, Data: data}
		return nil
	}
	if err := store(object{"Kind": "proxy-defaults", "Name": "global", "Config": object{"protocol": "http"}}); err != nil {
		t.Fatal(err)
	}
	compile := func(more ...policy.Source) (*policy.Plan, policy.Findings) {
		all := slices.Clone(more)
		for _, s := range sources {
			all = append(all, s)
		}
		return policy.Compile(all, policy.Workload{Service: "front", Filters: entries.Filters{}})
	}
	refused := 0
	for set := range entrySets {
		g := generator{Rand: rng, set: set}
		for _, entry := range g.entries() {
			err := store(entry)
			if err == nil {
				continue
			}
			refused++
			data, _ := json.Marshal(entry)
			if plan, _ := compile(policy.Source{Name: "refused.json", Data: data}); plan != nil {
				t.Errorf("the agent refuses %s: %v", data, err)
			}
		}
	}
	plan, findings := compile()
	if plan == nil {
		t.Fatalf("the agent takes what is refused here:\n%v", findings.Err())
	}
	t.Logf("%d entries, and %d that are refused", len(sources), refused)
	if refused < 5 || len(sources) < 3*entrySets {
		t.Errorf("%d entries and %d that are refused say little", len(sources), refused)
	}
	var upstreams []string
	for set := range entrySets {
		for _, letter := range []string{"a", "b", "c"} {
			name := fmt.Sprintf("%s%d", letter, set)
			want, plain := agentsChain(t, client, name)
			if got := ourChain(plan, name); got != want {
				t.Errorf("the chain of %s is\n%s\nwant\n%s", name, got, want)
			}
			if !plain {
				upstreams = append(upstreams, name)
			}
		}
	}
	if t.Failed() {
		return
	}
	t.Logf("%d services have routes", len(upstreams))
	routes := agentsRoutes(t, agent, client, upstreams)
	for _, name := range upstreams {
		if got, want := ourRoutes(plan, name), routes[name]; got != want {
			t.Errorf("the routes of %s are\n%s\nwant\n%s", name, got, want)
		}
	}
}

// generator makes a set of entries about three services of its own.
type generator struct {
	*rand.Rand
	set int
}

func (g *generator) name() string { return fmt.Sprintf("%c%d", 'a'+rune(g.IntN(3)), g.set) }

func (g *generator) maybe(percent int) bool { return g.IntN(100) < percent }

func pick[T any](g *generator, list ...T) T { return list[g.IntN(len(list))] }

func (g *generator) entries() (list []object) {
	for _, letter := range []string{"a", "b", "c"} {
		if g.maybe(75) {
			list = append(list, g.resolver(fmt.Sprintf("%s%d", letter, g.set)))
		}
	}
	for _, letter := range []string{"c", "b", "a"} {
		if g.maybe(50) {
			list = append(list, g.splitter(fmt.Sprintf("%s%d", letter, g.set)))
		}
	}
	for _, letter := range []string{"a", "b"} {
		if g.maybe(70) {
			list = append(list, g.router(fmt.Sprintf("%s%d", letter, g.set)))
		}
	}
	return list
}

func (g *generator) resolver(name string) object {
	e := object{"Kind": "service-resolver", "Name": name}
	if g.maybe(25) {
		r := object{"Service": g.name()}
		if g.maybe(30) {
			r["ServiceSubset"] = pick(g, "v1", "v2")
		}
		if g.maybe(20) {
			r["Datacenter"] = "dc2"
		}
		e["Redirect"] = r
		return e
	}
	if g.maybe(70) {
		e["Subsets"] = object{"v1": object{"Filter": "Service.Meta.version == v1"}, "v2": object{"OnlyPassing": true}}
		if g.maybe(30) {
			e["DefaultSubset"] = pick(g, "v1", "v2")
		}
	}
	if g.maybe(40) {
		f := object{}
		switch g.IntN(3) {
		case 0:
			f["Service"] = g.name()
			if g.maybe(40) {
				f["ServiceSubset"] = "v1"
			}
		case 1:
			f["Datacenters"] = []string{"dc2", "dc3"}
		default:
			f["Targets"] = []object{{"Service": g.name()}, {"Datacenter": "dc2"}, {"Service": g.name(), "ServiceSubset": "v2"}}
		}
		e["Failover"] = object{pick(g, "*", "v1"): f}
	}
	if g.maybe(40) {
		e["ConnectTimeout"] = pick(g, "3s", "250ms")
	}
	if g.maybe(40) {
		e["RequestTimeout"] = pick(g, "7s", "1m30s")
	}
	if g.maybe(30) {
		e["LoadBalancer"] = object{"Policy": pick(g, "random", "least_request", "maglev")}
	}
	return e
}

func (g *generator) splitter(name string) object {
	weights := pick(g, []float64{100}, []float64{90, 10}, []float64{33.33, 33.33, 33.34}, []float64{99.99, 0.01}, []float64{50, 50, 0}, []float64{60.5, 39.6})
	var splits []object
	for i, w := range weights {
		s := object{"Weight": w}
		if i > 0 || g.maybe(30) {
			s["Service"] = g.name()
		}
		if g.maybe(40) {
			s["ServiceSubset"] = pick(g, "v1", "v2")
		}
		if g.maybe(30) {
			s["RequestHeaders"] = g.modifiers()
		}
		if g.maybe(30) {
			s["ResponseHeaders"] = g.modifiers()
		}
		splits = append(splits, s)
	}
	return object{"Kind": "service-splitter", "Name": name, "Splits": splits}
}

func (g *generator) modifiers() object {
	m := object{"Set": object{}, "Add": object{}}
	m[pick(g, "Set", "Add")] = object{pick(g, "x-a", "x-b"): pick(g, "1", "2")}
	if g.maybe(40) {
		m["Remove"] = []string{pick(g, "x-c", "x-d")}
	}
	return m
}

func (g *generator) router(name string) object {
	var routes []object
	for range 1 + g.IntN(4) {
		r := object{}
		match := object{}
		rewritable := false
		switch g.IntN(4) {
		case 0:
			match["PathExact"], rewritable = pick(g, "/a", "/a/b"), true
		case 1:
			match["PathPrefix"], rewritable = pick(g, "/v1", "/v1/", "/v1.x", "/"), true
		case 2:
			match["PathRegex"] = pick(g, "/[0-9]+", "(?i)/x.*")
		}
		if g.maybe(20) && match["PathRegex"] == nil {
			match["CaseInsensitive"] = true
		}
		if g.maybe(50) {
			h := object{"Name": pick(g, "x-user", "X-Tier")}
			switch g.IntN(5) {
			case 0:
				h["Present"] = true
			case 1:
				h["Exact"] = "gold"
			case 2:
				h["Prefix"] = "go"
			case 3:
				h["Suffix"] = ".ld"
			default:
				h["Regex"] = "go.*d|x"
			}
			if g.maybe(40) {
				h["Invert"] = true
			}
			match["Header"] = []object{h}
		}
		if g.maybe(30) {
			match["QueryParam"] = []object{pick(g, object{"Name": "q", "Present": true}, object{"Name": "q", "Exact": "1"}, object{"Name": "q", "Regex": "[0-9]"})}
		}
		if g.maybe(30) {
			match["Methods"] = pick(g, []string{"get"}, []string{"PUT", "POST"})
		}
		if len(match) > 0 {
			r["Match"] = object{"HTTP": match}
		}
		if g.maybe(80) {
			r["Destination"] = g.destination(rewritable)
		}
		routes = append(routes, r)
	}
	return object{"Kind": "service-router", "Name": name, "Routes": routes}
}

func (g *generator) destination(rewritable bool) object {
	d := object{}
	if g.maybe(60) {
		d["Service"] = g.name()
	}
	if g.maybe(30) {
		d["ServiceSubset"] = pick(g, "v1", "v2")
	}
	if g.maybe(40) && (rewritable || g.maybe(5)) {
		d["PrefixRewrite"] = pick(g, "/", "/new", "/new/")
	}
	if g.maybe(40) {
		d["RequestTimeout"] = pick[any](g, "3s", "-1s", 1_500_000_000, "0s")
	}
	if g.maybe(40) {
		d["NumRetries"] = g.IntN(4)
	}
	if g.maybe(30) {
		d["RetryOn"] = pick(g, []string{"5xx"}, []string{"gateway-error", "reset"}, []string{"unavailable", "cancelled"})
	}
	if g.maybe(20) {
		d["RetryOnConnectFailure"] = true
	}
	if g.maybe(20) {
		d["RetryOnStatusCodes"] = []int{409, 503}
	}
	if g.maybe(30) {
		d["RequestHeaders"] = g.modifiers()
	}
	if g.maybe(30) {
		d["ResponseHeaders"] = g.modifiers()
	}
	return d
}

// ourTarget names a target as both sides are compared.
func ourTarget(target route.Target) string {
	name := strings.TrimSuffix(target.Host, ".default.svc.cluster.local")
	if service, dc, ok := strings.Cut(strings.TrimSuffix(name, ".consul"), ".service."); ok {
		name = service + "@" + dc
	}
	if subset, _, _ := strings.Cut(target.Subset, "~"); subset != "" { // what follows says in whose place
		name = subset + "." + name
	}
	return name
}

// agentsTarget names a target by its parts: [SUBSET.]SERVICE.NAMESPACE[.PARTITION].DC.
func agentsTarget(parts []string, tail int) string {
	dc := parts[len(parts)-1]
	name := strings.Join(parts[:len(parts)-tail], ".")
	if dc != "dc1" {
		name += "@" + dc
	}
	return name
}

// ourChain writes down where the calls to a service go.
func ourChain(plan *policy.Plan, name string) string {
	routes := plan.Host(name + ".default.svc.cluster.local").Routes
	var b strings.Builder
	for i := range routes.Len() {
		for _, d := range routes.Rule(i).Route.Destinations {
			c := plan.Cluster(d.Target)
			var failover []string
			for _, target := range c.Failover {
				if target != d.Target {
					failover = append(failover, ourTarget(target))
				}
			}
			fmt.Fprintf(&b, "%d: %s %d in %v, else %v\n", i, ourTarget(d.Target), d.Weight, c.Pool.ConnectTimeout, failover)
		}
	}
	return b.String()
}

// compiledChain is the part of a discovery chain that is compared.
type compiledChain struct {
	Chain struct {
		Default   bool // no entry says anything about it: there are no routes
		StartNode string
		Nodes     map[string]struct {
			Type   string
			Routes []struct{ NextNode string }
			Splits []struct {
				Weight   float32
				NextNode string
			}
			Resolver struct {
				Target         string
				ConnectTimeout string
				Failover       *struct{ Targets []string }
			}
		}
	}
}

func agentsChain(t *testing.T, client *api.Client, name string) (text string, plain bool) {
	t.Helper()
	var c compiledChain
	if _, err := client.Raw().Query("/v1/discovery-chain/"+name, &c, nil); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	end := func(leg int, node string, weight float32) {
		r := c.Chain.Nodes[node].Resolver
		target := func(id string) string { return agentsTarget(strings.Split(id, "."), 3) }
		var failover []string
		if r.Failover != nil {
			for _, id := range r.Failover.Targets {
				if text := target(id); id != r.Target && !slices.Contains(failover, text) { // once is enough
					failover = append(failover, text)
				}
			}
		}
		timeout, _ := time.ParseDuration(r.ConnectTimeout)
		fmt.Fprintf(&b, "%d: %s %d in %v, else %v\n", leg, target(r.Target), int(weight*100), timeout, failover)
	}
	lead := func(leg int, node string) {
		if n := c.Chain.Nodes[node]; n.Type == "splitter" {
			for _, s := range n.Splits {
				end(leg, s.NextNode, s.Weight)
			}
			return
		}
		end(leg, node, 100)
	}
	if start := c.Chain.Nodes[c.Chain.StartNode]; start.Type == "router" {
		for i, r := range start.Routes {
			lead(i, r.NextNode)
		}
	} else {
		lead(0, c.Chain.StartNode)
	}
	return b.String(), c.Chain.Default
}

// shownOps writes operations on headers down, sorted: Consul keeps them in maps.
func shownOps(set, add []route.Header, remove []string) string {
	var list []string
	for _, h := range set {
		list = append(list, "set "+h.Name+"="+h.Value)
	}
	for _, h := range add {
		list = append(list, "add "+h.Name+"="+h.Value)
	}
	for _, name := range remove {
		list = append(list, "remove "+name)
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

func shownMatch(m route.StringMatch) string {
	text := [...]string{"any", "exact", "prefix", "regex", "present"}[m.Kind] + " " + m.Value
	if m.IgnoreCase {
		text += " in any case"
	}
	return text
}

// ourRoutes writes the routes of a service down.
func ourRoutes(plan *policy.Plan, name string) string {
	routes := plan.Host(name + ".default.svc.cluster.local").Routes
	var b strings.Builder
	for i := range routes.Len() {
		r := routes.Rule(i).Route
		match := route.Match{}
		if len(r.Matches) > 0 {
			match = r.Matches[0]
		}
		if match.URI.Kind == route.Any {
			match.URI = route.StringMatch{Kind: route.Prefix, Value: "/"}
		}
		if match.URI.Kind == route.Prefix && match.URI.Value == "/" {
			match.URI.IgnoreCase = false // a slash is a slash in any case
		}
		conditions := []string{"path " + shownMatch(match.URI)}
		for _, h := range match.Headers {
			conditions = append(conditions, h.Key+" "+shownMatch(h.Value))
		}
		for _, h := range match.WithoutHeaders {
			conditions = append(conditions, "not "+h.Key+" "+shownMatch(h.Value))
		}
		if match.Method.Kind != route.Any {
			conditions = append(conditions, ":method "+shownMatch(match.Method))
		}
		for _, q := range match.Query {
			conditions = append(conditions, "?"+q.Key+" "+shownMatch(q.Value))
		}
		var to []string
		for _, d := range r.Destinations {
			to = append(to, fmt.Sprintf("%s %d [%s] [%s]", ourTarget(d.Target), d.Weight, shownOps(d.Headers.Request.Set, d.Headers.Request.Add, d.Headers.Request.Remove),
				shownOps(d.Headers.Response.Set, d.Headers.Response.Add, d.Headers.Response.Remove)))
		}
		retries := ""
		if r.Retry.Retries > 0 {
			on := strings.Split(r.Retry.On.String(), ",")
			slices.Sort(on)
			retries = fmt.Sprint(r.Retry.Retries, on)
		}
		writeRoute(&b, conditions, to, r.Timeout, retries, r.Rewrite,
			shownOps(r.Headers.Request.Set, r.Headers.Request.Add, r.Headers.Request.Remove), shownOps(r.Headers.Response.Set, r.Headers.Response.Add, r.Headers.Response.Remove))
	}
	return b.String()
}

func writeRoute(b *strings.Builder, conditions, to []string, timeout time.Duration, retries string, rewrite route.Rewrite, request, response string) {
	slices.Sort(conditions)
	fmt.Fprintf(b, "%s -> %s in %v, retries %s, path %q %q %q, [%s] [%s]\n", strings.Join(conditions, ", "), strings.Join(to, " + "), timeout, retries,
		rewrite.URI, rewrite.Pattern, rewrite.Substitution, request, response)
}

// agentsRoutes returns the routes that the agent sends to a sidecar, written down as ourRoutes does.
func agentsRoutes(t *testing.T, agent *servers.Consul, client *api.Client, upstreams []string) map[string]string {
	t.Helper()
	_, configs := sidecar(t, agent, client, upstreams, len(upstreams))
	found := make(map[string]string)
	for name, config := range configs {
		found[name] = agentsRoute(config)
	}
	return found
}

func agentsRoute(config *envoy.RouteConfiguration) string {
	var b strings.Builder
	for _, r := range config.VirtualHosts[0].Routes {
		action := r.GetRoute()
		timeout := 15 * time.Second
		if action.Timeout != nil {
			timeout = action.Timeout.AsDuration()
		}
		var to []string
		target := func(cluster string, weight uint32, request, response string) {
			name, _, _ := strings.Cut(cluster, ".internal.")
			if _, rest, custom := strings.Cut(name, "~"); custom {
				name = rest
			}
			to = append(to, fmt.Sprintf("%s %d [%s] [%s]", agentsTarget(strings.Split(name, "."), 2), weight, request, response))
		}
		if split := action.GetWeightedClusters(); split != nil {
			for _, c := range split.Clusters {
				target(c.Name, c.Weight.GetValue(), agentsOps(c.RequestHeadersToAdd, c.RequestHeadersToRemove), agentsOps(c.ResponseHeadersToAdd, c.ResponseHeadersToRemove))
			}
		} else {
			target(action.GetCluster(), 100_00, "", "")
		}
		retries := ""
		if p := action.RetryPolicy; p != nil && p.RetryOn != "" {
			on := strings.Split(p.RetryOn, ",")
			on = slices.DeleteFunc(on, func(s string) bool { return s == "retriable-status-codes" })
			for _, code := range p.RetriableStatusCodes {
				on = append(on, fmt.Sprint(code))
			}
			slices.Sort(on)
			retries = fmt.Sprint(max(1, p.NumRetries.GetValue()), on)
		}
		rewrite := route.Rewrite{URI: action.PrefixRewrite}
		if re := action.RegexRewrite; re != nil {
			rewrite.Pattern, rewrite.Substitution = re.Pattern.Regex, re.Substitution
			// With an exact path, Consul takes the prefix that is not there for empty: the path stays as it is.
			if r.Match.GetPath() != "" {
				rewrite = route.Rewrite{}
			}
		}
		writeRoute(&b, agentsConditions(r.Match), to, timeout, retries, rewrite,
			agentsOps(r.RequestHeadersToAdd, r.RequestHeadersToRemove), agentsOps(r.ResponseHeadersToAdd, r.ResponseHeadersToRemove))
	}
	return b.String()
}

func agentsConditions(m *envoy.RouteMatch) (conditions []string) {
	fold := m.CaseSensitive != nil && !m.CaseSensitive.Value
	switch {
	case m.GetPath() != "":
		conditions = append(conditions, "path "+shownMatch(route.StringMatch{Kind: route.Exact, Value: m.GetPath(), IgnoreCase: fold}))
	case m.GetSafeRegex() != nil:
		conditions = append(conditions, "path "+shownMatch(route.StringMatch{Kind: route.Regex, Value: m.GetSafeRegex().Regex}))
	default:
		conditions = append(conditions, "path "+shownMatch(route.StringMatch{Kind: route.Prefix, Value: m.GetPrefix(), IgnoreCase: fold && m.GetPrefix() != "/"}))
	}
	for _, h := range m.Headers {
		var value route.StringMatch
		switch s := h.GetStringMatch(); {
		case h.GetPresentMatch():
			value.Kind = route.Present
		case s.GetSafeRegex() != nil:
			value = route.StringMatch{Kind: route.Regex, Value: s.GetSafeRegex().Regex}
		case s.GetPrefix() != "":
			value = route.StringMatch{Kind: route.Prefix, Value: s.GetPrefix()}
		case s.GetSuffix() != "":
			value = route.StringMatch{Kind: route.Regex, Value: "(?s:.*)" + regexp.QuoteMeta(s.GetSuffix())}
		default:
			value = route.StringMatch{Kind: route.Exact, Value: s.GetExact()}
		}
		if !h.InvertMatch {
			conditions = append(conditions, h.Name+" "+shownMatch(value))
			continue
		}
		conditions = append(conditions, "not "+h.Name+" "+shownMatch(value))
		if value.Kind != route.Present { // a header that is absent has no value to invert
			conditions = append(conditions, h.Name+" "+shownMatch(route.StringMatch{Kind: route.Present}))
		}
	}
	for _, q := range m.QueryParameters {
		value := route.StringMatch{Kind: route.Present}
		if s := q.GetStringMatch(); s.GetSafeRegex() != nil {
			value = route.StringMatch{Kind: route.Regex, Value: s.GetSafeRegex().Regex}
		} else if s != nil {
			value = route.StringMatch{Kind: route.Exact, Value: s.GetExact()}
		}
		conditions = append(conditions, "?"+q.Name+" "+shownMatch(value))
	}
	return conditions
}

func agentsOps(options []*core.HeaderValueOption, remove []string) string {
	var set, add []route.Header
	for _, o := range options {
		h := route.Header{Name: o.Header.Key, Value: o.Header.Value}
		if o.AppendAction == core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD {
			set = append(set, h)
		} else {
			add = append(add, h)
		}
	}
	// What is added and then set is set.
	add = slices.DeleteFunc(add, func(h route.Header) bool {
		return slices.ContainsFunc(set, func(s route.Header) bool { return http.CanonicalHeaderKey(s.Name) == http.CanonicalHeaderKey(h.Name) })
	})
	return shownOps(set, add, remove)
}

// A change of an entry reaches a process, and a token that may not read entries is no reason to drop them.
func TestConsulEntries_Live(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{Dev: true, ACL: "deny"})
	client := consulClient(t, agent, nil)
	write := func(entry object) {
		t.Helper()
		if _, err := client.Raw().Write("/v1/config", entry, nil, nil); err != nil {
			t.Fatal(err)
		}
	}
	write(object{"Kind": "proxy-defaults", "Name": "global", "Config": object{"protocol": "http"}})
	write(object{"Kind": "service-router", "Name": "web", "Routes": []object{{"Destination": object{"Service": "api"}}}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	step := 0
	for sources, err := range (&entries.Feed{Client: client}).Watch(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		plan, findings := policy.Compile(sources, policy.Workload{Filters: entries.Filters{}})
		if plan == nil {
			t.Fatal(findings)
		}
		text := ourChain(plan, "web")
		switch {
		case step == 0 && strings.HasPrefix(text, "0: api 10000"):
			write(object{"Kind": "service-splitter", "Name": "web", "Splits": []object{{"Weight": 30, "Service": "web"}, {"Weight": 70, "Service": "api"}}})
			write(object{"Kind": "service-router", "Name": "web", "Routes": []object{}})
			step = 1
		case step == 1 && strings.HasPrefix(text, "0: web 3000") && strings.Contains(text, "0: api 7000"):
			step = 2
		}
		if step == 2 {
			break
		}
	}
	if step != 2 {
		t.Errorf("the changes came up to step %d", step)
	}
	stranger := consulClient(t, agent, &api.Config{Token: ""})
	for sources, err := range (&entries.Feed{Client: stranger}).Watch(ctx) {
		if err == nil || !strings.Contains(err.Error(), "denied") {
			t.Errorf("without a token: %v, %v", sources, err)
		}
		break
	}
}
