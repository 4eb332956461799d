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
// Consul's service web is the service web of the namespace "default": its hosts are web, web.default and
// web.default.svc.cluster.local, and documents may use these names. It is also web.service.consul, web.service.DATACENTER.consul and
// web.virtual.consul. The prepared query web is web.query.consul. Tags are labels and not part of names.
// The domain of the agent's own DNS does not matter.
//
// # Endpoints
//
// An instance with a critical check is left out, and so is one that listens only on a unix socket. An instance in maintenance, or whose
// service is in maintenance, drains: it finishes its calls and gets no new ones. An instance with a warning has the weight Weights.Warning of
// its service, and drains if that is 0.
//
// The labels of an endpoint are the metadata and the tags of its service: the tag "version=v1" is the label version, and the tag
// "canary" is the label canary with an empty value. The locality is that of the service or of the agent, or else region, zone and
// subzone in the metadata of the node. Native services of Connect and sidecars have a service account, the name of the service. They
// also get the label security.istio.io/tlsMode=istio, so that a mesh with an identity uses mTLS. The record
// ([discovery.Endpoint].Record) is the *api.ServiceEntry, without indexes and without the output of checks. Its pointer stays the same while
// its meaning does.
//
// # What is read, and how often
//
// Each service is followed by one blocking query for /v1/health/service, for any number of watchers. Changes are followed at once, but
// at most once per second and service. If Consul cannot be reached, or answers with an error or with nonsense, the last endpoints stay
// in use. The query is repeated after half a second at first. The wait grows to 2 seconds if there is no answer, to 10 seconds after a 5xx or a
// denial, and to 30 seconds after a 429. [NewClient] describes the connections.
//
// Reads are stale: any server answers them, even while the cluster has no leader. A server that is cut off from the leader may
// answer with old endpoints. An answer without endpoints is confirmed by the leader before it is used.
//
// # Denial
//
// The token needs service:read for the services and node:read for their nodes. Without these rights Consul does not return an error: it
// leaves out what the token may not read. So an answer that has become empty, or that has become shorter and says that something was left
// out, is used only once it is certain that the token has the rights. Otherwise the last endpoints stay in use and the error contains
// "denied". If no instance of a service was ever seen and the token lacks rights, that is an error, too.
//
// A Consul that has lost its state, such as an agent with -dev that was restarted, has no instances until they are registered again. The
// last endpoints stay in use meanwhile, for a minute at most.
//
// # Registration
//
// [Register] needs service:write for the service. The agent keeps the token of the registration and sends it to the servers. So the service
// is registered again when the client's token changes. The old token should stay valid for another minute.
package consul
