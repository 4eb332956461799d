// Package consul gets the identity of this process from HashiCorp Consul: the certificate that Consul Connect issues for a
// service, and the roots that its peers are verified by.
//
//	m, err := mesh.New(ctx, mesh.WithIdentity(consul.Source{Service: "web"}), mesh.WithDiscovery(resolver))
//
// The process needs no sidecar then. Its peers may be other processes with this library, services of Consul that are native
// too, and sidecars: they all have IDs of the form spiffe://TRUST-DOMAIN/ns/default/dc/DATACENTER/svc/SERVICE, and a mesh whose
// own identity has that form expects it of its peers. The datacenter is not compared, as in Consul's sidecars.
//
// # The port of the agent
//
// Once an agent has issued the certificate of a service, it hands it out with its private key to whoever asks for it, without
// looking at the token. So whoever can reach the port of the agent's API can be the service. Serve it on a unix socket, or over
// HTTPS with verify_incoming, and let no other program reach it.
//
// # Native integration is deprecated
//
// HashiCorp says that its Go SDK for Connect and the three endpoints that it uses, /v1/agent/connect/authorize, ca/leaf and
// ca/roots, are deprecated and will be removed in a future release; until there is something else, they work as designed (issue
// GH-10339 of Consul). This package uses the last two, which Consul 1.22 has. It does not use the first, which does not know the
// rules for HTTP in intentions: the mesh reads the intentions and decides by itself. When an agent no longer has the endpoints,
// Watch yields errors, and the identity stays until it expires, which is up to 72 hours by default: take it from files
// ([tlsid.Files]) or from SPIRE (the package tlsid/spiffe) before that.
package consul
