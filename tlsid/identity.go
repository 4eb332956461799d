package tlsid

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/internal/pemfile"
)

// Identity is who this process is, and whom it trusts: an X.509-SVID with its key, and the bundles of the trust domains it
// accepts peers from. It is immutable and safe for concurrent use; a rotation makes a new one. [NewIdentity] makes one; the zero value is of no use.
//
// Bundles are kept separate: the authorities of one trust domain cannot vouch for IDs of another.
type Identity struct {
	id                  spiffeid.ID
	notBefore, notAfter time.Time // of the leaf and all it was issued by
	certificate         tls.Certificate
	trust               trust
}

// NewIdentity returns the identity of svid. It trusts the trust domains of bundles. Both are copied.
//
// It refuses an svid that a peer would refuse: without a certificate, without a key or with the key of another, without
// exactly one URI SAN that is a SPIFFE ID with a path, with the usages of an authority (X509-SVID, sections 4 and 5), or
// that the bundle of its own trust domain, which must be there, does not vouch for. It accepts one that has expired or is
// not valid yet: time passes anyway, and each use of the identity checks the clock.
func NewIdentity(svid *x509svid.SVID, bundles ...*x509bundle.Bundle) (*Identity, error) {
	if svid == nil || len(svid.Certificates) == 0 || slices.Contains(svid.Certificates, nil) {
		return nil, errors.New("tlsid: no certificate")
	}
	leaf := svid.Certificates[0]
	id, err := checkLeaf(leaf)
	if err != nil {
		return nil, fmt.Errorf("tlsid: own certificate: %w", err)
	}
	if !svid.ID.IsZero() && svid.ID != id {
		return nil, fmt.Errorf("tlsid: own certificate is of %s, but the SVID says it is %s", id, svid.ID)
	}
	if err := pemfile.CheckKey(leaf, svid.PrivateKey); err != nil {
		return nil, fmt.Errorf("tlsid: key of %s: %w", id, err)
	}
	trust, err := newTrust(bundles)
	if err != nil {
		return nil, err
	}
	if !trust.has(id.TrustDomain()) {
		return nil, fmt.Errorf("tlsid: own certificate %s: no bundle of its own trust domain %q", id, id.TrustDomain())
	}

	// Whether it is valid now does not matter here: take a time at which the leaf is valid, or else one at which all certificates are.
	now := time.Now()
	chain, err := trust.chain(id, svid.Certificates, within(now, svid.Certificates[:1]))
	if err != nil {
		var again error
		if chain, again = trust.chain(id, svid.Certificates, within(now, svid.Certificates)); again != nil {
			return nil, fmt.Errorf("tlsid: own certificate %s: %w", id, err)
		}
	}
	identity := &Identity{id: id, trust: trust}
	identity.notBefore, identity.notAfter = validity(chain)
	identity.certificate = tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: leaf}
	for _, c := range svid.Certificates {
		identity.certificate.Certificate = append(identity.certificate.Certificate, c.Raw)
	}
	return identity, nil
}

// within returns the moment nearest to now at which all certificates are valid, if there is one.
func within(now time.Time, certificates []*x509.Certificate) time.Time {
	notBefore, notAfter := validity(certificates)
	switch {
	case now.Before(notBefore):
		return notBefore
	case now.After(notAfter):
		return notAfter
	}
	return now
}

// ID returns the SPIFFE ID.
func (i *Identity) ID() spiffeid.ID { return i.id }

// TrustDomain returns the trust domain of the ID.
func (i *Identity) TrustDomain() spiffeid.TrustDomain { return i.id.TrustDomain() }

// NotAfter returns when the identity expires: the earliest NotAfter of the certificate and all it was issued by.
func (i *Identity) NotAfter() time.Time { return i.notAfter }

// Certificate returns the certificate with its key, for crypto/tls. It is shared and must not be changed.
func (i *Identity) Certificate() *tls.Certificate { return &i.certificate }

// Bundles returns copies of the bundles, in the order of their trust domains.
func (i *Identity) Bundles() []*x509bundle.Bundle {
	var bundles []*x509bundle.Bundle
	for _, b := range i.trust.bundles {
		bundles = append(bundles, b.Clone())
	}
	slices.SortFunc(bundles, func(a, b *x509bundle.Bundle) int { return a.TrustDomain().Compare(b.TrustDomain()) })
	return bundles
}

// valid returns an [*ExpiredError] or a [*NotYetValidError] unless the identity is valid at now.
func (i *Identity) valid(now time.Time) error {
	switch {
	case now.After(i.notAfter):
		return &ExpiredError{ID: i.id, NotAfter: i.notAfter}
	case now.Before(i.notBefore):
		return &NotYetValidError{ID: i.id, NotBefore: i.notBefore, Skew: i.notBefore.Sub(now)}
	}
	return nil
}

// equal reports whether the two are the same, so that there is nothing to rotate.
func (i *Identity) equal(other *Identity) bool {
	if other == nil {
		return false
	}
	return slices.EqualFunc(i.certificate.Certificate, other.certificate.Certificate, bytes.Equal) &&
		slices.EqualFunc(i.Bundles(), other.Bundles(), (*x509bundle.Bundle).Equal)
}
