// Package consul finds the endpoints of services in HashiCorp Consul, and registers the services of this process there.
//
// A [Resolver] is the discovery of a mesh or of a layer:
//
//	client, err := consul.NewClient(nil)
//	resolver, err := consul.New(client, consul.Config{})
//	m, err := mesh.New(ctx, mesh.WithPolicyDir("mesh.d"), mesh.WithDiscovery(resolver))
//	resp, err := m.Client().Get("http://web/")
//
// # Names
//
// The service web of Consul is the service web of the namespace "default", so that its hosts are web, web.default and
// web.default.svc.cluster.local, which documents may name. It is also web.service.consul, web.service.DATACENTER.consul and
// web.virtual.consul, and the prepared query of that name is web.query.consul. Tags are not part of names: they are labels.
// The domain of the agent's own DNS does not matter.
//
// # Endpoints
//
// An instance with a critical check is not an endpoint, nor is one that is served on a unix socket only. One in maintenance, or whose service is, drains: it ends its calls and
// gets no new ones. So does one with a warning if its service has no Weights.Warning; otherwise that is its weight.
//
// The labels of an endpoint are the metadata of its service and its tags: the tag "version=v1" is the label version, and the tag
// "canary" is the label of that name with an empty value. The locality is that of the service or of the agent, or else what the
// metadata of the node says under region, zone and subzone. The service account is the name of the service, for native services
// of Connect and for sidecars; these also get the label security.istio.io/tlsMode=istio, by which a mesh with an identity knows to
// use mTLS. The record ([discovery.Endpoint].Record) is the *api.ServiceEntry, without indexes and without the
// output of checks; its pointer stays while it says the same.
//
// # What is read, and how often
//
// Each service is followed by one blocking query for /v1/health/service, however many watch it. Changes are followed at once, but
// no more than once a second per service. If Consul cannot be reached, answers nonsense or answers with an error, the last
// endpoints hold, and it is asked again after half a second at first, and every two seconds at most if there is no answer, ten
// after a 5xx or a denial, and thirty after a 429. See [NewClient] for connections.
//
// Reads are stale: any server answers them, also while the cluster has no leader. A server that is cut off from the leader may
// answer with endpoints of the past, as any resolver does whose source cannot be reached. An answer without endpoints is
// confirmed by the leader before it is believed.
//
// # Denial
//
// The token needs service:read for the services and node:read for their nodes. Consul does not refuse to answer without: it leaves
// out what the token may not read. So an answer that became empty, or that became shorter and says that something was left out, is
// believed only once it is certain that the token may read; otherwise the last endpoints hold and the error says "denied". A
// service of which this process has never seen an instance may be unknown for want of rights, which is an error, too.
//
// A Consul that has lost its state (an agent with -dev that was restarted) has no instances for a moment, until they are registered
// again. The last endpoints hold meanwhile, for a minute at most.
//
// # Registration
//
// [Register] needs service:write for the service. The agent keeps the token of the registration, to tell the servers with,
// so the service is registered again when the client sends another one. The token of before should be valid for a minute more.
package consul
