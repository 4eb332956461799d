// Package originate originates TLS to servers outside the mesh, which have a host name but no SPIFFE ID.
package originate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh/internal/pemfile"
	"github.com/nosidecar/mesh/tlsid"
)

// Config says how to originate TLS to a destination outside the mesh, like the modes SIMPLE and MUTUAL of a DestinationRule. The zero value
// is SIMPLE, verified with the authorities of the system.
type Config struct {
	// ClientCertificate and PrivateKey are the PEM files with the certificate to present to the server and its key. Both or neither
	// must be set.
	ClientCertificate, PrivateKey string

	// CACertificates is the PEM file with the authorities that may issue the server's certificate. Empty means those of the system.
	CACertificates string

	// SubjectAltNames are DNS names, URIs or IP addresses, one of which the server's certificate must have. Empty means ServerName, or
	// the host that is called if that is empty too.
	SubjectAltNames []string

	// ServerName is the name that is sent to the server (SNI). Empty means the host that is called.
	ServerName string
}

// Origination makes TLS configurations from a Config. It is safe for concurrent use.
type Origination struct {
	cfg Config

	mu     sync.Mutex
	looked time.Time   // when the files were last read
	held   pemfile.Set // their content then
	err    error       // why that content is not used
	used   material
}

// material is the parsed content of the files of an Origination.
type material struct {
	client *tls.Certificate // nil if there is none
	roots  *x509.CertPool   // nil for the authorities of the system
}

// New reads the files of cfg. An error names the file that cannot be used.
func New(cfg Config) (*Origination, error) {
	if (cfg.ClientCertificate == "") != (cfg.PrivateKey == "") {
		return nil, errors.New("originate: ClientCertificate and PrivateKey need each other")
	}
	if slices.Contains(cfg.SubjectAltNames, "") {
		return nil, fmt.Errorf("originate: an empty name in SubjectAltNames %q", cfg.SubjectAltNames)
	}
	cfg.SubjectAltNames = slices.Clone(cfg.SubjectAltNames)
	o := &Origination{cfg: cfg}
	o.reload(time.Now())
	if o.err != nil {
		return nil, o.err
	}
	return o, nil
}

// Renamed returns an origination with the names of cfg, and what o has read of its files: one of them may have vanished meanwhile. It returns
// nil if cfg has other files.
func (o *Origination) Renamed(cfg Config) *Origination {
	if o == nil || cfg.ClientCertificate != o.cfg.ClientCertificate || cfg.PrivateKey != o.cfg.PrivateKey || cfg.CACertificates != o.cfg.CACertificates ||
		slices.Contains(cfg.SubjectAltNames, "") {
		return nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	cfg.SubjectAltNames = slices.Clone(cfg.SubjectAltNames)
	return &Origination{cfg: cfg, looked: o.looked, held: o.held, err: o.err, used: o.used}
}

// TLS returns the configuration for calls to host, a DNS name or an IP address without a port. Files that have changed are read again at the
// next handshake, at most once per second.
func (o *Origination) TLS(host string) *tls.Config {
	name := o.cfg.ServerName
	if name == "" {
		name = host
	}
	c := &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2", "http/1.1"},
		ServerName: name,

		// crypto/tls supports neither SubjectAltNames nor changing authorities. VerifyConnection verifies the certificate instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return o.verify(state.PeerCertificates, name, time.Now())
		},
		SessionTicketsDisabled: true,
	}
	if o.cfg.ClientCertificate != "" {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			now := time.Now()
			client := o.current(now).client
			if now.After(client.Leaf.NotAfter) {
				return nil, fmt.Errorf("originate: %s: the certificate expired at %s",
					o.cfg.ClientCertificate, client.Leaf.NotAfter.UTC().Format(time.RFC3339))
			}
			return client, nil
		}
	}
	return c
}

// Err returns the error for which the files, as last read, are not used, so that their previous content stays in use. It is nil if they are
// used.
func (o *Origination) Err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// verify returns an error if the certificates are not those of a server with the name, or with one of SubjectAltNames.
func (o *Origination) verify(certificates []*x509.Certificate, name string, now time.Time) error {
	if len(certificates) == 0 {
		return tlsid.ErrNoPeer
	}
	leaf, intermediates := certificates[0], x509.NewCertPool()
	for _, c := range certificates[1:] {
		intermediates.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots:         o.current(now).roots,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		CurrentTime:   now,
	})
	if err != nil {
		return fmt.Errorf("originate: server %s: %w", name, err)
	}
	if len(o.cfg.SubjectAltNames) == 0 {
		if err := leaf.VerifyHostname(name); err != nil {
			return fmt.Errorf("originate: server %s: %w", name, err)
		}
		return nil
	}
	for _, want := range o.cfg.SubjectAltNames {
		if hasName(leaf, want) {
			return nil
		}
	}
	return fmt.Errorf("originate: server %s: certificate has none of the subjectAltNames %s", name, strings.Join(o.cfg.SubjectAltNames, ", "))
}

// hasName reports whether c is valid for a name: a URI, an IP address, or a DNS name, which may match a wildcard of c. What c has must be of the
// same kind: an authority whose name constraints allow no such DNS name may issue a certificate with a URI that looks like one.
func hasName(c *x509.Certificate, name string) bool {
	if net.ParseIP(strings.Trim(name, "[]")) != nil || !strings.Contains(name, ":") {
		return c.VerifyHostname(name) == nil
	}
	return slices.ContainsFunc(c.URIs, func(uri *url.URL) bool { return uri.String() == name })
}

// current returns the material to use. It first checks the files if they were not checked within the last second.
func (o *Origination) current(now time.Time) material {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.Sub(o.looked) >= time.Second || now.Before(o.looked) {
		o.reload(now)
	}
	return o.used
}

// reload reads the files, and uses their content if it is valid.
func (o *Origination) reload(now time.Time) {
	o.looked = now
	var paths []string
	for _, path := range []string{o.cfg.ClientCertificate, o.cfg.PrivateKey, o.cfg.CACertificates} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 {
		return
	}
	held := pemfile.Read(paths)
	if held.Equal(o.held) {
		return
	}
	o.held = held
	used, err := o.parse(held)
	if o.err = err; err == nil {
		o.used = used
	}
}

func (o *Origination) parse(held pemfile.Set) (material, error) {
	if held.Err != nil {
		return material{}, fmt.Errorf("originate: %w", held.Err)
	}
	var used material
	data := held.Data
	if o.cfg.ClientCertificate != "" {
		certificates, err := pemfile.Certificates(data[0])
		if err != nil {
			return material{}, fmt.Errorf("originate: %s: %w", o.cfg.ClientCertificate, err)
		}
		key, err := pemfile.Key(data[1])
		if err == nil {
			err = pemfile.CheckKey(certificates[0], key)
		}
		if err != nil {
			return material{}, fmt.Errorf("originate: %s: %w", o.cfg.PrivateKey, err)
		}
		used.client = &tls.Certificate{PrivateKey: key, Leaf: certificates[0]}
		for _, c := range certificates {
			used.client.Certificate = append(used.client.Certificate, c.Raw)
		}
		data = data[2:]
	}
	if o.cfg.CACertificates != "" {
		authorities, err := pemfile.Certificates(data[0])
		if err != nil {
			return material{}, fmt.Errorf("originate: %s: %w", o.cfg.CACertificates, err)
		}
		used.roots = x509.NewCertPool()
		for _, c := range authorities {
			used.roots.AddCert(c)
		}
	}
	return used, nil
}
