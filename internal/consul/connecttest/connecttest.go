// Package connecttest is a certificate authority like that of Consul Connect, for tests.
package connecttest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"iter"
	"math/big"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/pemfile"
	"github.com/nosidecar/mesh/tlsid"
)

// Domain is the trust domain of all authorities of this package.
const Domain = "11111111-2222-3333-4444-555555555555.consul"

// CA is a certificate authority.
type CA struct {
	Root    *x509.Certificate
	RootPEM string

	key crypto.Signer
	t   testing.TB
}

// New returns an authority with a new key on the curve.
func New(t testing.TB, curve elliptic.Curve) *CA {
	t.Helper()
	ca := &CA{t: t}
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca.key = key
	template := &x509.Certificate{
		SerialNumber: serial(t), Subject: pkix.Name{CommonName: "pri-" + serial(t).String() + ".consul.ca.11111111.consul"},
		URIs:      []*url.URL{{Scheme: "spiffe", Host: Domain}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		IsCA:     true, BasicConstraintsValid: true,
	}
	ca.Root = ca.sign(template, template, key.Public())
	ca.RootPEM = block("CERTIFICATE", ca.Root.Raw)
	return ca
}

// Cross returns the certificate of this authority's key, signed by another authority.
func (ca *CA) Cross(by *CA) *x509.Certificate {
	ca.t.Helper()
	template := *ca.Root
	template.SerialNumber = serial(ca.t)
	return by.sign(&template, by.Root, ca.key.Public())
}

// Leaf returns the certificate of a service and its key in the form that an agent returns: the certificate comes before its
// intermediates, and the key is an "EC PRIVATE KEY".
func (ca *CA) Leaf(datacenter, service string, intermediates ...*x509.Certificate) (certPEM, keyPEM string) {
	return ca.LeafUntil(time.Now().Add(time.Hour), datacenter, service, intermediates...)
}

// LeafUntil is Leaf with the time when the certificate expires.
func (ca *CA) LeafUntil(notAfter time.Time, datacenter, service string, intermediates ...*x509.Certificate) (certPEM, keyPEM string) {
	ca.t.Helper()
	return ca.LeafAt(notAfter, connectid.Path(connectid.Namespace, datacenter, service), intermediates...)
}

// LeafAt is LeafUntil with the path of the ID.
func (ca *CA) LeafAt(notAfter time.Time, path string, intermediates ...*x509.Certificate) (certPEM, keyPEM string) {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	leaf := ca.sign(&x509.Certificate{
		SerialNumber: serial(ca.t),
		URIs:         []*url.URL{{Scheme: "spiffe", Host: Domain, Path: path}},
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, BasicConstraintsValid: true,
	}, ca.Root, key.Public())
	certPEM = block("CERTIFICATE", leaf.Raw)
	for _, c := range intermediates {
		certPEM += block("CERTIFICATE", c.Raw)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return certPEM, block("EC PRIVATE KEY", der)
}

// Identity returns the identity of a service that trusts this authority.
func (ca *CA) Identity(datacenter, service string) *tlsid.Identity {
	ca.t.Helper()
	certPEM, keyPEM := ca.Leaf(datacenter, service)
	certificates, err := pemfile.Certificates([]byte(certPEM))
	if err != nil {
		ca.t.Fatal(err)
	}
	key, err := pemfile.Key([]byte(keyPEM))
	if err != nil {
		ca.t.Fatal(err)
	}
	bundle := x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString(Domain), []*x509.Certificate{ca.Root})
	id, err := tlsid.NewIdentity(&x509svid.SVID{Certificates: certificates, PrivateKey: key}, bundle)
	if err != nil {
		ca.t.Fatal(err)
	}
	return id
}

// Source returns a source that yields one identity.
func Source(id *tlsid.Identity) tlsid.Source { return source{id} }

type source struct{ id *tlsid.Identity }

func (s source) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		if yield(s.id, nil) {
			<-ctx.Done()
		}
	}
}

func (ca *CA) sign(template, parent *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	ca.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		ca.t.Fatal(err)
	}
	return c
}

func serial(t testing.TB) *big.Int {
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
