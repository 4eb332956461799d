// Package tlsid gives a process its SPIFFE identity and makes TLS configurations from it for both ends of a connection.
//
// An [Identity] is who the process is and whom it trusts: an X.509-SVID with its key, and a bundle of authorities for each
// trust domain, kept apart. It comes from a [Source], which yields a new one at each rotation. This package has two:
// [Files], for cert-manager, Istio and anything else that writes certificates into a folder, and [DevCA], for examples and
// tests. The source for the SPIFFE Workload API is in the folder spiffe, that for Consul Connect in the folder consul.
//
// A [Keeper] follows a source and always has the latest identity:
//
//	keeper := tlsid.Keep(tlsid.Files{Dir: "/etc/certs"}, tlsid.Hooks{})
//	defer keeper.Close()
//	if err := keeper.Wait(ctx); err != nil { // ctx has a deadline; or go on, not ready yet
//		return err
//	}
//	server.TLSConfig = keeper.Server()
//	transport.TLSClientConfig = keeper.Client(tlsid.Expect(orderService))
//	transport.ForceAttemptHTTP2 = true // or else NextProtos of the TLSClientConfig must not have h2
//
// Its configurations need not be rebuilt when the identity rotates: new connections use the new one, and existing ones go on
// until their owner retires them in [Hooks].Rotated. They speak TLS 1.2 and 1.3, offer HTTP/2, and resume no sessions: a
// resumed one would carry yesterday's decision. The client always names the peers it expects ([Expected]); there is no way
// to accept any peer.
//
// A connection can outlive what was verified when it began. [Keeper.Peer] therefore verifies the peer again for each
// request, against the current bundles and the clock. For a known peer that is a look-up.
//
// # Time
//
// Everything expires, and the clock is checked at each use: an expired identity is an [*ExpiredError] wherever it is
// requested, whatever the source says, and its bundles are no longer trusted. An identity that is not valid yet, for example
// because the local clock is slow, comes into force when it is valid. [Keeper.Latest] returns the identity and the last
// error of its source for monitoring.
//
// # Beyond the mesh
//
// [Listener] accepts plaintext and TLS on the same port, as PeerAuthentication says ([Mode]).
package tlsid
