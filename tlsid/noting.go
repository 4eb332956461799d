package tlsid

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync/atomic"
)

// noting returns a copy of a server's configuration that records on each connection when the certificate chosen for it
// expires. It is one copy for all connections: crypto/tls hands its callbacks the connection.
func noting(config *tls.Config) *tls.Config {
	if config == nil {
		return nil
	}
	noted := config.Clone()
	certificates, get := config.Certificates, config.GetCertificate
	if len(certificates) > 0 || get != nil {
		noted.Certificates = nil // crypto/tls asks GetCertificate for a client without a server name only if there are none
		noted.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			certificate, err := choose(hello, certificates, get)
			if err != nil {
				return nil, err
			}
			return certificate, note(hello.Conn, certificate)
		}
	}
	if forClient := config.GetConfigForClient; forClient != nil {
		// Usually the same configuration is returned each time.
		type pair struct{ from, to *tls.Config }
		var last atomic.Pointer[pair]
		noted.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			config, err := forClient(hello)
			if err != nil || config == nil {
				return nil, err
			}
			p := last.Load()
			if p == nil || p.from != config {
				p = &pair{config, noting(config)}
				last.Store(p)
			}
			return p.to, nil
		}
	}
	return noted
}

// choose picks the certificate as crypto/tls does.
func choose(hello *tls.ClientHelloInfo, certificates []tls.Certificate,
	get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) (*tls.Certificate, error) {

	if get != nil && (len(certificates) == 0 || hello.ServerName != "") {
		if certificate, err := get(hello); certificate != nil || err != nil {
			return certificate, err
		}
	}
	if len(certificates) == 0 {
		return nil, errors.New("tlsid: no certificate for the connection")
	}
	for i := range certificates {
		if len(certificates) == 1 || hello.SupportsCertificate(&certificates[i]) == nil {
			return &certificates[i], nil
		}
	}
	return &certificates[0], nil
}

// note records when our certificate of a connection expires.
func note(inner net.Conn, certificate *tls.Certificate) error {
	c, ok := inner.(*conn)
	if !ok || len(certificate.Certificate) == 0 {
		return nil
	}
	leaf := certificate.Leaf
	if leaf == nil {
		var err error
		if leaf, err = x509.ParseCertificate(certificate.Certificate[0]); err != nil {
			return err
		}
	}
	c.own = leaf
	return nil
}
