package tlsid

import (
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
)

// DevCA is a certificate authority in memory, for examples and tests. It refuses to be mistaken for production: see
// [NewDevCA]. It is safe for concurrent use; its fields must not change once it has issued something.
type DevCA struct {
	// TTL is how long certificates live. 0 means 1 hour; more than 24 hours is refused.
	TTL time.Duration

	// RotateEvery is how often its sources rotate. 0 means half of TTL.
	RotateEvery time.Duration
}

// NewDevCA makes an authority for a trust domain, such as "cluster.local". Its root is made anew each time, says
// DEVELOPMENT ONLY in its subject and expires after 24 hours; its key never leaves the process. Inside Kubernetes, which it
// knows by KUBERNETES_SERVICE_HOST, NewDevCA returns an error: a test that runs there clears the variable.
func NewDevCA(trustDomain string) (*DevCA, error) {
	return nil, errors.New("tlsid: not built yet")
}

// Source returns a source that issues an identity spiffe://<trust domain>/ns/<namespace>/sa/<serviceAccount>, and a new
// one every RotateEvery and at each call of Rotate.
func (ca *DevCA) Source(namespace, serviceAccount string) Source { return nil }

// Identity issues one identity.
func (ca *DevCA) Identity(namespace, serviceAccount string) (*Identity, error) { return nil, nil }

// Rotate makes all sources issue anew.
func (ca *DevCA) Rotate() {}

// Federate makes ca trust bundle, of another trust domain, from the next rotation on, which it brings about.
func (ca *DevCA) Federate(bundle *x509bundle.Bundle) {}

// Bundle returns the trust bundle of the authority.
func (ca *DevCA) Bundle() *x509bundle.Bundle { return nil }

// WriteFiles issues an identity and writes it into dir in the layout of cert-manager, for [Files] in another process.
// The set is replaced at once: a reader finds the old one or the new one.
func (ca *DevCA) WriteFiles(dir, namespace, serviceAccount string) error { return nil }
