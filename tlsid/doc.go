// Package tlsid gives a process its SPIFFE identity and makes TLS configurations of it for both ends of a connection.
//
// An [Identity] is who the process is and whom it trusts: an X.509-SVID with its key, and a bundle of authorities for each
// trust domain, kept apart. It comes from a [Source], which yields another at each rotation. Here are two: [Files], for
// cert-manager, Istio and whatever else writes certificates into a folder, and [DevCA], for examples and tests. The one
// for the SPIFFE Workload API is in the folder spiffe.
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
//
// Its configurations need not be made again when the identity rotates: new connections use the new one, and those there
// are go on, until whoever owns them retires them at the call of [Hooks].Rotated. They speak TLS 1.2 and 1.3, offer
// HTTP/2, and resume no session: a resumed one would carry yesterday's decision. The client names whom it expects, each
// time ([Expected]); there is no way to say anybody.
//
// A connection can outlive what was verified when it began. [Keeper.Peer] therefore verifies the peer again, for each
// request, against the bundles of the moment and the clock. For a peer it knows that is a look-up.
//
// # Time
//
// Everything has an expiry, and the clock is looked at each time something is used: an identity that has expired is an
// [*ExpiredError] wherever it is asked for, whatever the source says, and with it its bundles are no longer believed. One
// of the near future, as a clock that is behind makes it, comes into force when it is valid. [Keeper.Latest] shows
// the identity and the last error of its source to those who watch.
//
// # Beyond the mesh
//
// [Listener] takes plaintext and TLS on the same port, as PeerAuthentication says ([Mode]).
package tlsid
