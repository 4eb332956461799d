package tlsid

import (
	"crypto/tls"
	"errors"
)

// OriginateConfig says how to begin TLS to a destination that is not of the mesh, as DestinationRule does with the modes
// SIMPLE and MUTUAL. It is comparable.
type OriginateConfig struct {
	// ClientCertificate and PrivateKey are the PEM files to present to the server. Both or neither.
	ClientCertificate, PrivateKey string

	// CACertificates is the PEM file of the authorities that may vouch for the server. Empty means those of the system.
	CACertificates string

	// SubjectAltNames are the names, joined by commas, of which the server's certificate must have one, as DNS name, URI
	// or IP address. Empty means ServerName, or the host that is called.
	SubjectAltNames string

	// ServerName is the name to ask for (SNI). Empty means the host that is called.
	ServerName string
}

// Origination makes TLS configurations from an OriginateConfig. It is safe for concurrent use.
type Origination struct {
	cfg OriginateConfig
}

// NewOrigination reads the files of cfg. The error names the file that cannot be used.
func NewOrigination(cfg OriginateConfig) (*Origination, error) {
	return nil, errors.New("tlsid: not built yet")
}

// Config returns the configuration for calls to host, without port. The files are read again when they have changed.
func (o *Origination) Config(host string) *tls.Config {
	return nil
}
