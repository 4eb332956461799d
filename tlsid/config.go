package tlsid

import (
	"crypto/tls"
	"strings"
	"time"
)

// protocols are what both ends of the mesh speak, as ALPN names them.
func protocols() []string { return []string{"h2", "http/1.1"} }

// istio is what Istio's clients offer first, beside what they speak. A sidecar whose port is PERMISSIVE takes TLS for the
// mesh's only if a client offers it, or one of its like; otherwise it is plaintext to it, for the application behind. No server
// chooses it. Istio's clients offer istio-peer-exchange too, which promises a protocol between sidecars that is not spoken here.
const istio = "istio"

// withoutALPN returns config without protocols for a client that offers only names of Istio's, as its sidecars do for TCP and
// HTTP/1.0. They mean that the client speaks what it likes: no protocol is chosen. crypto/tls would refuse them.
func withoutALPN(config *tls.Config) func(*tls.ClientHelloInfo) (*tls.Config, error) {
	bare := config.Clone()
	bare.NextProtos = nil
	return func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		named := false
		for _, protocol := range hello.SupportedProtos {
			if protocol == "h2" || protocol == "http/1.1" {
				return nil, nil
			}
			named = named || strings.HasPrefix(protocol, istio)
		}
		if named {
			return bare, nil
		}
		return nil, nil
	}
}

// Client returns the configuration of a client. It presents the identity in force, and talks only to a peer whose SPIFFE
// ID is in expect: the errors of a handshake are those of [Keeper.Peer] and [*MismatchError]. A host name proves nothing
// here; ServerName, which the caller may set, only says what the client asks for.
//
// A rotation needs no new configuration. Sessions are not resumed: what was decided for one may no longer hold.
func (k *Keeper) Client(expect Expected) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: append([]string{istio}, protocols()...),

		// crypto/tls verifies host names and pools all roots. VerifyConnection verifies SPIFFE IDs.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			peer, err := k.Peer(&state, time.Now())
			if err != nil {
				return err
			}
			return expect.Check(peer.ID)
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return k.certificate()
		},

		SessionTicketsDisabled: true,
	}
}

// Server returns the configuration of a server. It presents the identity in force, and demands of the peer an SVID, which
// it verifies as [Keeper.Peer] does. Who the peer may be is for authorization to decide. The caller adds no Certificates:
// crypto/tls would present them to clients that name no server.
//
// A rotation needs no new configuration. Sessions are not resumed: what was decided for one may no longer hold.
func (k *Keeper) Server() *tls.Config {
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: protocols(),

		// RequireAndVerifyClientCert would pool all roots. VerifyConnection verifies SPIFFE IDs.
		ClientAuth: tls.RequireAnyClientCert,
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := k.Peer(&state, time.Now())
			return err
		},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return k.certificate()
		},

		SessionTicketsDisabled: true,
	}
	config.GetConfigForClient = withoutALPN(config)
	return config
}

func (k *Keeper) certificate() (*tls.Certificate, error) {
	identity, err := k.Identity()
	if err != nil {
		return nil, err
	}
	return identity.Certificate(), nil
}
