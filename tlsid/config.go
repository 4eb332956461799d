package tlsid

import (
	"crypto/tls"
	"strings"
	"time"
)

// protocols are the ALPN names of what both ends of the mesh speak.
func protocols() []string { return []string{"h2", "http/1.1"} }

// istio is what Istio's clients offer first, besides what they speak. A sidecar with a PERMISSIVE port treats TLS as the
// mesh's only if the client offers this name or a similar one; otherwise it passes it to the application like plaintext. No
// server chooses it. Istio's clients offer istio-peer-exchange too, which promises a protocol between sidecars that is not
// spoken here.
const istio = "istio"

// withoutALPN returns config without protocols for a client that offers only names of Istio's, as its sidecars do for TCP
// and HTTP/1.0. They mean that the client may speak anything: no protocol is chosen. crypto/tls would refuse them.
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

// Client returns the configuration of a client. It presents the current identity, and talks only to a peer whose SPIFFE ID
// is in expect: a handshake fails with an error of [Keeper.Peer] or a [*MismatchError]. A host name proves nothing here;
// ServerName, which the caller may set, only says what the client asks for.
//
// It offers HTTP/2, so the client must speak it: an http.Transport with a TLSClientConfig does if its ForceAttemptHTTP2 is set. For a client
// of HTTP/1 alone, the caller removes h2 from NextProtos; for one of another protocol, it sets NextProtos to nil.
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

// Server returns the configuration of a server. It presents the current identity, and requires an SVID from the peer, which
// it verifies as [Keeper.Peer] does. Authorization decides who the peer may be. The caller must not add Certificates:
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
