package realservers

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	clusters "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	envoy "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	manager "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	ads "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	semantic "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/hashicorp/consul/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	entries "github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/realservers/servers"
)

const clusterSets = 150

// TestConsulClusters writes generated entries about how calls are made: by the caller (its upstreams) and by the called (protocol,
// balancing, time to connect, failover). What is made of them must be what the agent tells the sidecar of the caller about its
// clusters, and about the keys of hashes in its routes.
func TestConsulClusters(t *testing.T) {
	leak.Check(t)
	agent := servers.StartConsul(t, servers.ConsulConfig{Dev: true})
	client := consulClient(t, agent, nil)
	g := &generator{Rand: rand.New(rand.NewPCG(5, 8))}
	var sources []policy.Source
	store := func(entry object) {
		t.Helper()
		data, err := json.Marshal(entry)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Raw().Write("/v1/config", entry, nil, nil); err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		sources = append(sources, policy.Source{Name: fmt.Sprintf("%d.json", len(sources)), Data: data})
	}
	store(object{"Kind": "proxy-defaults", "Name": "global", "Config": object{"protocol": "http"}})
	var names []string
	protocols := make(map[string]string)
	var overrides []object
	for i := range clusterSets {
		name := fmt.Sprintf("s%d", i)
		names = append(names, name)
		protocols[name] = "http"
		if g.maybe(50) {
			protocols[name] = pick(g, "http", "http2", "grpc")
			store(object{"Kind": "service-defaults", "Name": name, "Protocol": protocols[name]})
		}
		if g.maybe(50) {
			overrides = append(overrides, g.upstream(name))
		}
	}
	for _, protocol := range []string{"http", "http2", "grpc"} {
		name := "f-" + protocol
		store(object{"Kind": "service-defaults", "Name": name, "Protocol": protocol})
		overrides = append(overrides, g.upstream(name))
		store(g.balancing(name, ""))
	}
	store(object{"Kind": "service-defaults", "Name": "front", "Protocol": "http",
		"UpstreamConfig": object{"Defaults": g.upstream(""), "Overrides": overrides}})
	store(object{"Kind": "service-intentions", "Name": "front", "Sources": []object{{"Name": "web", "Permissions": []object{{"Action": "allow", "HTTP": object{"PathPrefix": "/v1"}}}}}})
	for _, name := range names {
		if g.maybe(80) {
			store(g.balancing(name, "f-"+protocols[name]))
		}
	}
	plan, findings := policy.Compile(sources, policy.Workload{Service: "front", Filters: entries.Filters{}, Address: "10.1.2.3"})
	if plan == nil {
		t.Fatalf("the agent takes what is refused here:\n%v", findings.Err())
	}
	routed := 0
	for _, name := range names {
		if _, plain := agentsChain(t, client, name); !plain {
			routed++
		}
	}
	sent, routes := sidecar(t, agent, client, names, routed)
	compared := make(map[string]int)
	for _, name := range names {
		got, want := ourCalls(plan, name), agentsCalls(sent, routes[name], name)
		if got != want {
			t.Errorf("calls to %s are made with\n%sand by the sidecar with\n%s", name, got, want)
		}
		compared[strings.ReplaceAll(want, name, "")]++
	}
	for name := range agentsFilters(t, agent, "front-sidecar-proxy") {
		if enforcedFilters[name] == "" {
			t.Errorf("the sidecar has the filter %s, which nothing here takes the place of", name)
		}
	}
	t.Logf("%d entries, %d services, %d ways to call one", len(sources), len(names), len(compared))
	if len(compared) < clusterSets/2 {
		t.Errorf("%d ways to call %d services say little", len(compared), len(names))
	}
}

// enforcedFilters are the filters that the agent may give to a sidecar for entries that are not refused here, and what takes
// their place.
var enforcedFilters = map[string]string{
	"envoy.filters.http.rbac":                       "intentions",
	"envoy.filters.http.header_to_metadata":         "tells intentions the peer, whom the connection tells here",
	"envoy.filters.http.router":                     "the mesh",
	"envoy.filters.http.grpc_stats":                 "metrics",
	"envoy.filters.http.grpc_http1_bridge":          "meshgrpc speaks HTTP/2",
	"envoy.filters.network.rbac":                    "intentions",
	"envoy.filters.network.tcp_proxy":               "raw connections",
	"envoy.filters.network.http_connection_manager": "the mesh",
}

// agentsFilters returns the filters in the listeners of a sidecar.
func agentsFilters(t *testing.T, agent *servers.Consul, proxy string) map[string]bool {
	t.Helper()
	found := make(map[string]bool)
	for _, data := range agent.XDS(t, proxy, servers.XDSListener) {
		var l listener.Listener
		if err := proto.Unmarshal(data, &l); err != nil {
			t.Fatal(err)
		}
		for _, chain := range l.FilterChains {
			for _, filter := range chain.Filters {
				found[filter.Name] = true
				var m manager.HttpConnectionManager
				if config := filter.GetTypedConfig(); config.MessageIs(&m) {
					if err := config.UnmarshalTo(&m); err != nil {
						t.Fatal(err)
					}
					for _, filter := range m.HttpFilters {
						found[filter.Name] = true
					}
				}
			}
		}
	}
	if !found["envoy.filters.http.router"] {
		t.Errorf("the sidecar has the filters %v, want those for HTTP", found)
	}
	return found
}

// upstream generates what a caller says about a service, or about all.
func (g *generator) upstream(name string) object {
	u := object{}
	if name != "" {
		u["Name"] = name
	}
	if name != "" && g.maybe(40) {
		u["ConnectTimeoutMs"] = pick(g, 700, 1500)
	}
	if g.maybe(60) {
		l := object{}
		for _, field := range []string{"MaxConnections", "MaxPendingRequests", "MaxConcurrentRequests"} {
			if g.maybe(60) {
				l[field] = pick(g, 1, 7, 5000)
			}
		}
		u["Limits"] = l
	}
	if g.maybe(60) {
		p := object{}
		if g.maybe(50) {
			p["Interval"] = pick(g, "3s", "250ms")
		}
		if g.maybe(50) {
			p["MaxFailures"] = pick(g, 1, 9)
		}
		if g.maybe(50) {
			p["EnforcingConsecutive5xx"] = pick(g, 0, 100)
		}
		if g.maybe(50) {
			p["MaxEjectionPercent"] = pick(g, 0, 50, 100)
		}
		if g.maybe(50) {
			p["BaseEjectionTime"] = pick(g, "11s", "2m")
		}
		u["PassiveHealthCheck"] = p
	}
	return u
}

// balancing generates a resolver with everything that clusters are made from.
// Calls may go to another service while it has no healthy instance.
func (g *generator) balancing(name, other string) object {
	e := object{"Kind": "service-resolver", "Name": name}
	if g.maybe(50) {
		e["ConnectTimeout"] = pick(g, "3s", "250ms")
	}
	if other != "" && g.maybe(40) {
		e["Failover"] = object{"*": pick(g, object{"Datacenters": []string{"dc2", "dc3"}}, object{"Service": other})}
	}
	if g.maybe(80) {
		policy := pick(g, "", "round_robin", "random", "least_request", "ring_hash", "maglev")
		lb := object{"Policy": policy}
		switch policy {
		case "least_request":
			if g.maybe(60) {
				lb["LeastRequestConfig"] = object{"ChoiceCount": pick(g, 2, 5)}
			}
		case "ring_hash":
			if g.maybe(60) {
				lb["RingHashConfig"] = object{"MinimumRingSize": pick(g, 16, 1000), "MaximumRingSize": pick(g, 1000, 70_000)}
			}
			fallthrough
		case "maglev":
			if g.maybe(80) {
				lb["HashPolicies"] = []object{pick(g,
					object{"Field": "header", "FieldValue": "X-User"}, object{"Field": "query_parameter", "FieldValue": "user"},
					object{"SourceIP": true}, object{"Field": "cookie", "FieldValue": "user"}, object{"SourceIP": true, "Terminal": true},
					object{"Field": "cookie", "FieldValue": "user", "CookieConfig": object{"Session": true, "Path": "/a"}},
					object{"Field": "cookie", "FieldValue": "user", "CookieConfig": object{"TTL": "90s"}})}
			}
		}
		e["LoadBalancer"] = lb
	}
	return e
}

// way writes down how calls are made.
type way struct {
	connect                                 time.Duration
	connections, pending, requests, retries int
	consecutive                             int // -1: off
	interval, ejection                      time.Duration
	ejected                                 float64
	successRate, http2                      bool
	panic                                   float64
	balancing, key                          string
}

func (w way) String() string {
	return fmt.Sprintf("connect in %v, at most %d connections, %d pending, %d requests, %d retries; eject after %d, look every %v, for %v, %.2f, by success rate %t; HTTP/2 %t, panic at %v; %s, key %s\n",
		w.connect, w.connections, w.pending, w.requests, w.retries, w.consecutive, w.interval, w.ejection, w.ejected, w.successRate, w.http2, w.panic, w.balancing, w.key)
}

// ourCalls writes down how calls to a service are made here.
func ourCalls(plan *policy.Plan, name string) string {
	target := route.Target{Host: name + ".default.svc.cluster.local"}
	c := plan.Cluster(target)
	if c.Failover == nil {
		return ourWay(c).String()
	}
	text := ""
	for i, member := range c.Failover {
		text += fmt.Sprintf("%d: %v", i, ourWay(plan.Cluster(member)))
	}
	return text
}

func ourWay(c policy.Cluster) way {
	w := way{
		connect: c.Pool.ConnectTimeout, connections: c.Pool.MaxConnections, pending: c.Pool.MaxPendingRequests, requests: c.Pool.MaxRequests,
		retries: c.RetryLimit.MaxRetries, consecutive: cmp.Or(c.Outlier.Consecutive5xx, 5), interval: cmp.Or(c.Outlier.Interval, 10*time.Second),
		ejection: cmp.Or(c.Outlier.BaseEjection, 30*time.Second), ejected: cmp.Or(c.Outlier.MaxEjectedFraction, 0.1),
		successRate: c.Outlier.SuccessRate, http2: c.UpgradeHTTP2, panic: c.Balancer.PanicFraction, balancing: c.Balancer.Algorithm.String(),
	}
	if !c.Eject || c.Outlier.ConsecutiveGateway > 0 || c.Outlier.FailureFraction > 0 || c.Outlier.SplitLocalOrigin {
		w.balancing += " without the ejections of Envoy"
	}
	switch b := c.Balancer; b.Algorithm {
	case balancer.LeastRequest:
		w.balancing += fmt.Sprintf(" of %d", cmp.Or(b.Choices, 2))
	case balancer.RingHash:
		w.balancing += fmt.Sprintf(" from %d to %d", cmp.Or(b.MinRingSize, 1024), cmp.Or(b.MaxRingSize, 8<<20))
	}
	switch k := c.Balancer.HashKey; k.Source {
	case balancer.HeaderKey:
		w.key = "header " + k.Name
	case balancer.QueryKey:
		w.key = "parameter " + k.Name
	case balancer.CookieKey:
		w.key = fmt.Sprintf("cookie %s, made %t, for %v below %q", k.Name, k.Generate, k.TTL, k.Path)
	case balancer.SourceIPKey:
		w.key = "address"
	}
	return w
}

// agentsCalls writes down how the sidecar makes calls to a service, or to each of those that it makes them to in turn.
func agentsCalls(sent map[string]*clusters.Cluster, routes *envoy.RouteConfiguration, name string) string {
	var members, alone []string
	for full, c := range sent {
		parts := strings.Split(full, "~")
		if !strings.HasPrefix(parts[len(parts)-1], name+".default.") {
			continue
		}
		if parts[0] == "failover-target" {
			members = append(members, parts[1]+": "+agentsWay(c, routes).String())
			continue
		}
		alone = append(alone, agentsWay(c, routes).String())
	}
	if members == nil {
		return strings.Join(alone, "")
	}
	slices.Sort(members)
	return strings.Join(members, "")
}

func agentsWay(c *clusters.Cluster, routes *envoy.RouteConfiguration) way {
	number := func(v *wrapperspb.UInt32Value, unset int) int {
		if v == nil {
			return unset
		}
		return int(v.Value)
	}
	duration := func(v *durationpb.Duration, unset time.Duration) time.Duration {
		if v == nil {
			return unset
		}
		return v.AsDuration()
	}
	limits := &clusters.CircuitBreakers_Thresholds{}
	if b := c.CircuitBreakers; b != nil && len(b.Thresholds) == 1 {
		limits = b.Thresholds[0]
	}
	o := c.OutlierDetection
	w := way{
		connect: c.ConnectTimeout.AsDuration(), connections: number(limits.MaxConnections, 1024), pending: number(limits.MaxPendingRequests, 1024),
		requests: number(limits.MaxRequests, 1024), retries: number(limits.MaxRetries, 3), consecutive: number(o.GetConsecutive_5Xx(), 5),
		interval: duration(o.GetInterval(), 10*time.Second), ejection: duration(o.GetBaseEjectionTime(), 30*time.Second),
		ejected: float64(number(o.GetMaxEjectionPercent(), 10)) / 100, successRate: number(o.GetEnforcingSuccessRate(), 100) == 100,
		http2:     c.TypedExtensionProtocolOptions["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"] != nil,
		panic:     c.CommonLbConfig.GetHealthyPanicThreshold().GetValue() / 100,
		balancing: map[clusters.Cluster_LbPolicy]string{clusters.Cluster_ROUND_ROBIN: "round robin", clusters.Cluster_RANDOM: "random", clusters.Cluster_LEAST_REQUEST: "least request", clusters.Cluster_RING_HASH: "ring hash", clusters.Cluster_MAGLEV: "maglev"}[c.LbPolicy],
	}
	switch number(o.GetEnforcingConsecutive_5Xx(), 100) {
	case 0:
		w.consecutive = -1
	case 100:
	default:
		w.consecutive = -2
	}
	if c.CommonLbConfig.GetHealthyPanicThreshold() == nil {
		w.panic = 0.5
	}
	if o == nil || number(o.EnforcingConsecutiveGatewayFailure, 0) > 0 || number(o.EnforcingFailurePercentage, 0) > 0 || o.SplitExternalLocalOriginErrors {
		w.balancing += " with other ejections"
	}
	switch c.LbPolicy {
	case clusters.Cluster_LEAST_REQUEST:
		w.balancing += fmt.Sprintf(" of %d", number(c.GetLeastRequestLbConfig().GetChoiceCount(), 2))
	case clusters.Cluster_RING_HASH:
		ring := c.GetRingHashLbConfig()
		from, to := 1024, 8<<20
		if v := ring.GetMinimumRingSize(); v != nil {
			from = int(v.Value)
		}
		if v := ring.GetMaximumRingSize(); v != nil {
			to = int(v.Value)
		}
		w.balancing += fmt.Sprintf(" from %d to %d", from, to)
	}
	if routes == nil {
		return w
	}
	for _, r := range routes.VirtualHosts[0].Routes {
		for _, h := range r.GetRoute().GetHashPolicy() {
			switch k := h.PolicySpecifier.(type) {
			case *envoy.RouteAction_HashPolicy_Header_:
				w.key = "header " + k.Header.HeaderName
			case *envoy.RouteAction_HashPolicy_QueryParameter_:
				w.key = "parameter " + k.QueryParameter.Name
			case *envoy.RouteAction_HashPolicy_Cookie_:
				w.key = fmt.Sprintf("cookie %s, made %t, for %v below %q", k.Cookie.Name, k.Cookie.Ttl != nil, k.Cookie.Ttl.AsDuration(), k.Cookie.Path)
			case *envoy.RouteAction_HashPolicy_ConnectionProperties_:
				w.key = "address"
			}
		}
	}
	return w
}

// sidecar registers a sidecar of front with upstreams and returns the clusters that the agent sends to it, by their names, and the
// routes, by those of the upstreams: those of services about which no entry says anything have none.
func sidecar(t *testing.T, agent *servers.Consul, client *api.Client, upstreams []string, routed int) (map[string]*clusters.Cluster, map[string]*envoy.RouteConfiguration) {
	t.Helper()
	proxy := &api.AgentServiceConnectProxyConfig{DestinationServiceName: "front", DestinationServiceID: "front", LocalServicePort: 8080}
	for i, name := range upstreams {
		proxy.Upstreams = append(proxy.Upstreams, api.Upstream{DestinationName: name, LocalBindPort: 20000 + i})
	}
	for _, service := range []*api.AgentServiceRegistration{
		{ID: "front", Name: "front", Port: 8080},
		{ID: "front-sidecar-proxy", Name: "front-sidecar-proxy", Kind: api.ServiceKindConnectProxy, Port: 21000, Proxy: proxy},
	} {
		if err := client.Agent().ServiceRegister(service); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := grpc.NewClient(agent.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	stream, err := ads.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const kinds = "type.googleapis.com/envoy.config."
	node := &core.Node{Id: "front-sidecar-proxy", Cluster: "front", UserAgentName: "envoy",
		UserAgentVersionType: &core.Node_UserAgentBuildVersion{UserAgentBuildVersion: &core.BuildVersion{Version: &semantic.SemanticVersion{MajorNumber: 1, MinorNumber: 35, Patch: 3}}}}
	for _, request := range []*ads.DeltaDiscoveryRequest{
		{Node: node, TypeUrl: kinds + "cluster.v3.Cluster"}, {TypeUrl: kinds + "listener.v3.Listener"},
		{TypeUrl: kinds + "route.v3.RouteConfiguration", ResourceNamesSubscribe: upstreams},
	} {
		if err := stream.Send(request); err != nil {
			t.Fatal(err)
		}
	}
	sent, routes := make(map[string]*clusters.Cluster), make(map[string]*envoy.RouteConfiguration)
	for len(routes) < routed {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatalf("after the routes of %d services of %d: %v", len(routes), routed, err)
		}
		if err := stream.Send(&ads.DeltaDiscoveryRequest{TypeUrl: answer.TypeUrl, ResponseNonce: answer.Nonce}); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(answer.TypeUrl, "cluster.v3.Cluster") {
			var names []string
			for _, resource := range answer.Resources {
				var c clusters.Cluster
				if err := resource.Resource.UnmarshalTo(&c); err != nil {
					t.Fatal(err)
				}
				if sent[c.Name] == nil {
					names = append(names, c.Name)
				}
				sent[c.Name] = &c
			}
			if err := stream.Send(&ads.DeltaDiscoveryRequest{TypeUrl: kinds + "endpoint.v3.ClusterLoadAssignment", ResourceNamesSubscribe: names}); err != nil {
				t.Fatal(err)
			}
		}
		for _, resource := range answer.Resources {
			var config envoy.RouteConfiguration
			if resource.Resource.MessageIs(&config) {
				if err := resource.Resource.UnmarshalTo(&config); err != nil {
					t.Fatal(err)
				}
				if len(config.VirtualHosts) == 1 && len(config.VirtualHosts[0].Routes) > 0 {
					routes[config.Name] = &config
				}
			}
		}
	}
	return sent, routes
}
