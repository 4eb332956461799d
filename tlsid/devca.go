package tlsid

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	developmentOnly   = "DEVELOPMENT ONLY"
	maxDevelopmentTTL = 24 * time.Hour
	minDevelopmentTTL = time.Second // certificates have no finer resolution
)

// DevCA is a certificate authority in memory, for examples and tests. It refuses to be mistaken for production: see
// [NewDevCA]. It is safe for concurrent use, but its fields must not change once it has issued something.
type DevCA struct {
	// TTL is how long certificates live, but never longer than the root. 0 means 1 hour. Less than a second or more than 24
	// hours is refused.
	TTL time.Duration

	// RotateEvery is how often each of its sources rotates. 0 means half of TTL; as long as TTL or longer is refused.
	// Negative means only when Rotate is called.
	RotateEvery time.Duration

	domain spiffeid.TrustDomain
	root   *x509.Certificate
	key    crypto.Signer

	mu        sync.Mutex
	rotated   chan struct{} // closed by the next rotation
	federated map[spiffeid.TrustDomain]*x509bundle.Bundle
}

// NewDevCA makes an authority for a trust domain, such as "cluster.local".
//
// Its root is new each time and expires after 24 hours, with everything it issued; its key never leaves the process. The
// subjects of the root and of all it issues say DEVELOPMENT ONLY. Inside Kubernetes, recognized by the variable
// KUBERNETES_SERVICE_HOST, NewDevCA returns an error; a test that runs in a pod clears the variable.
func NewDevCA(trustDomain string) (*DevCA, error) {
	if host := os.Getenv("KUBERNETES_SERVICE_HOST"); host != "" {
		return nil, fmt.Errorf("tlsid: the development CA does not work inside Kubernetes (KUBERNETES_SERVICE_HOST=%s): "+
			"use the Workload API or Files", host)
	}
	domain, err := spiffeid.TrustDomainFromString(trustDomain)
	if err != nil {
		return nil, fmt.Errorf("tlsid: development CA: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("tlsid: development CA: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial(),
		Subject:               subject("root of " + domain.Name()),
		URIs:                  []*url.URL{domain.ID().URL()},
		NotBefore:             now,
		NotAfter:              now.Add(maxDevelopmentTTL),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	root, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("tlsid: development CA: %w", err)
	}
	return &DevCA{domain: domain, root: root, key: key, rotated: make(chan struct{})}, nil
}

// Source returns a source that issues an identity spiffe://<trust domain>/ns/<namespace>/sa/<serviceAccount>, and a new one
// every RotateEvery and at each call of Rotate.
func (ca *DevCA) Source(namespace, serviceAccount string) Source {
	return &devSource{ca, namespace, serviceAccount}
}

type devSource struct {
	ca                        *DevCA
	namespace, serviceAccount string
}

func (s *devSource) Watch(ctx context.Context) iter.Seq2[*Identity, error] {
	return func(yield func(*Identity, error) bool) {
		for ctx.Err() == nil {
			rotated := s.ca.rotation()
			identity, err := s.ca.Identity(s.namespace, s.serviceAccount)
			if !yield(identity, err) || !s.ca.wait(ctx, rotated) {
				return
			}
		}
	}
}

// wait waits for the next rotation. It reports whether there is one before ctx ends.
func (ca *DevCA) wait(ctx context.Context, rotated <-chan struct{}) bool {
	every := cmp.Or(ca.RotateEvery, ca.ttl()/2)
	var alarm <-chan time.Time
	if every > 0 {
		timer := time.NewTimer(every)
		defer timer.Stop()
		alarm = timer.C
	}
	select {
	case <-rotated:
	case <-alarm:
	case <-ctx.Done():
		return false
	}
	return true
}

// Identity issues one identity.
func (ca *DevCA) Identity(namespace, serviceAccount string) (*Identity, error) {
	svid, err := ca.issue(namespace, serviceAccount)
	if err != nil {
		return nil, err
	}
	bundles := []*x509bundle.Bundle{ca.Bundle()}
	ca.mu.Lock()
	for _, b := range ca.federated {
		bundles = append(bundles, b)
	}
	ca.mu.Unlock()
	return NewIdentity(svid, bundles...)
}

// Bundle returns the authority as a trust bundle.
func (ca *DevCA) Bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(ca.domain, []*x509.Certificate{ca.root})
}

// Federate makes every identity that ca issues trust bundle, which is for another trust domain, and rotates. A bundle
// replaces an earlier one of the same trust domain.
func (ca *DevCA) Federate(bundle *x509bundle.Bundle) error {
	if domain := bundle.TrustDomain(); domain == ca.domain {
		return fmt.Errorf("tlsid: development CA: %q is its own trust domain", domain)
	}
	ca.mu.Lock()
	if ca.federated == nil {
		ca.federated = make(map[spiffeid.TrustDomain]*x509bundle.Bundle)
	}
	ca.federated[bundle.TrustDomain()] = bundle.Clone()
	ca.mu.Unlock()
	ca.Rotate()
	return nil
}

// Rotate makes all sources issue a new identity. It does not wait for that.
func (ca *DevCA) Rotate() {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	close(ca.rotated)
	ca.rotated = make(chan struct{})
}

func (ca *DevCA) rotation() <-chan struct{} {
	ca.mu.Lock()
	defer ca.mu.Unlock()
	return ca.rotated
}

// WriteFiles issues an identity and writes it into the folder dir, for [Files] in another process: tls.crt, tls.key and
// ca.crt, as a mounted Secret has them. Existing files are replaced atomically, as Kubernetes does, by swapping the ..data
// link. Calls for the same folder must not overlap.
func (ca *DevCA) WriteFiles(dir, namespace, serviceAccount string) error {
	svid, err := ca.issue(namespace, serviceAccount)
	if err != nil {
		return err
	}
	certificates, key, err := svid.Marshal()
	if err != nil {
		return fmt.Errorf("tlsid: development CA: %w", err)
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.root.Raw})
	files := map[string][]byte{"tls.crt": certificates, "tls.key": key, "ca.crt": root}
	if err := writeVolume(dir, files); err != nil {
		return fmt.Errorf("tlsid: development CA: %w", err)
	}
	return nil
}

// writeVolume makes dir look like a mounted Secret with the given files.
func writeVolume(dir string, files map[string][]byte) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	version, err := os.MkdirTemp(dir, "..version-")
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(version, name), data, 0o600); err != nil {
			return err
		}
	}
	data, fresh := filepath.Join(dir, "..data"), filepath.Join(dir, "..data_tmp")
	before, _ := os.Readlink(data) // "" the first time
	if err := os.Symlink(filepath.Base(version), fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, data); err != nil {
		return err
	}
	for name := range files {
		err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name))
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	if strings.HasPrefix(before, "..version-") {
		return os.RemoveAll(filepath.Join(dir, before))
	}
	return nil
}

func (ca *DevCA) ttl() time.Duration {
	return cmp.Or(ca.TTL, time.Hour)
}

func (ca *DevCA) issue(namespace, serviceAccount string) (*x509svid.SVID, error) {
	ttl := ca.ttl()
	switch {
	case ttl < minDevelopmentTTL || ttl > maxDevelopmentTTL:
		return nil, fmt.Errorf("tlsid: DevCA.TTL is %v, want %v to %v", ttl, minDevelopmentTTL, maxDevelopmentTTL)
	case ca.RotateEvery >= ttl:
		return nil, fmt.Errorf("tlsid: DevCA.RotateEvery is %v, want less than TTL (%v)", ca.RotateEvery, ttl)
	}
	id, err := spiffeid.FromSegments(ca.domain, "ns", namespace, "sa", serviceAccount)
	if err != nil {
		return nil, fmt.Errorf("tlsid: development CA: namespace %q, service account %q: %w", namespace, serviceAccount, err)
	}
	now := time.Now()
	notAfter := now.Add(ttl)
	if notAfter.After(ca.root.NotAfter) {
		notAfter = ca.root.NotAfter
	}
	if now.After(notAfter) {
		return nil, fmt.Errorf("tlsid: development CA: its root expired at %s", notAfter.UTC().Format(time.RFC3339))
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("tlsid: development CA: %w", err)
	}
	leaf, err := sign(&x509.Certificate{
		SerialNumber:          serial(),
		Subject:               subject(""),
		URIs:                  []*url.URL{id.URL()},
		NotBefore:             now,
		NotAfter:              notAfter,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ca.root, key.Public(), ca.key)
	if err != nil {
		return nil, fmt.Errorf("tlsid: development CA: %w", err)
	}
	return &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{leaf}, PrivateKey: key}, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

func subject(name string) pkix.Name {
	return pkix.Name{Organization: []string{developmentOnly}, CommonName: name}
}

// serial returns a positive random number below 2^127 (RFC 5280, section 4.1.2.2).
func serial() *big.Int {
	n := make([]byte, 16)
	rand.Read(n) // never fails
	n[0] &= 0x7f
	return new(big.Int).SetBytes(n)
}
