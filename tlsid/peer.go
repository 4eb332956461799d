package tlsid

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Peer is who is at the other end of a connection, verified.
type Peer struct {
	// ID is the peer's SPIFFE ID.
	ID spiffeid.ID

	// Certificate is the leaf that proved it. It is shared and must not be changed.
	Certificate *x509.Certificate

	known *verified // nil in a Peer that did not come from Verify
}

// NotAfter returns when the proof expires: the earliest NotAfter of the certificate and all it was issued by. A
// connection to the peer should not outlive it.
func (p Peer) NotAfter() time.Time {
	switch {
	case p.known != nil:
		return p.known.notAfter
	case p.Certificate != nil:
		return p.Certificate.NotAfter
	}
	return time.Time{}
}

// Hash returns the SHA-256 of the certificate in hex, as x-forwarded-client-cert has it. It is computed once for each
// certificate.
func (p Peer) Hash() string {
	switch {
	case p.known != nil:
		return p.known.hash
	case p.Certificate != nil:
		sum := sha256.Sum256(p.Certificate.Raw)
		return hex.EncodeToString(sum[:])
	}
	return ""
}

// Verify returns who presented the certificates in state, verified at now against the bundles of this identity. It trusts
// nothing that the handshake concluded, so it works for any connection, whichever listener terminated TLS, and for each
// request again: a certificate that was already verified costs one map look-up.
//
// The error is [ErrNoPeer], or a [*PeerError] that says what is wrong with the certificate.
func (i *Identity) Verify(state *tls.ConnectionState, now time.Time) (Peer, error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return Peer{}, ErrNoPeer
	}
	leaf, cache := state.PeerCertificates[0], i.trust.cache
	recent := cache.slot(leaf)
	if v := recent.Load(); v != nil && v.of(leaf) && v.valid(now) {
		return v.peer(), nil
	}
	sum := sha256.Sum256(leaf.Raw)
	if v := cache.load(sum); v != nil && v.valid(now) {
		recent.Store(v)
		return v.peer(), nil
	}
	id, err := checkLeaf(leaf)
	if err != nil {
		return Peer{}, &PeerError{ID: id, Err: err}
	}
	chain, err := i.trust.chain(id, state.PeerCertificates, now)
	if err != nil {
		return Peer{}, &PeerError{ID: id, Err: err}
	}
	v := &verified{id: id, leaf: leaf, hash: hex.EncodeToString(sum[:])}
	v.notBefore, v.notAfter = validity(chain)
	cache.store(sum, v)
	recent.Store(v)
	return v.peer(), nil
}

// checkLeaf returns the SPIFFE ID of an X.509-SVID, and an error unless c is one (X509-SVID, sections 4 and 5). Only time
// and bundles are not checked.
func checkLeaf(c *x509.Certificate) (spiffeid.ID, error) {
	switch len(c.URIs) {
	case 0:
		if others := otherNames(c); others != "" {
			return spiffeid.ID{}, fmt.Errorf("certificate has no URI SAN with a SPIFFE ID, only %s", others)
		}
		return spiffeid.ID{}, errors.New("certificate has no URI SAN with a SPIFFE ID")
	case 1:
	default:
		return spiffeid.ID{}, fmt.Errorf("certificate has %d URI SANs where an X.509-SVID has one", len(c.URIs))
	}
	id, err := spiffeid.FromURI(c.URIs[0])
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("URI SAN %q is not a SPIFFE ID: %w", c.URIs[0], err)
	}
	switch {
	case id.Path() == "":
		return id, errors.New("the ID is that of a trust domain, not of a workload: it has no path")
	case c.IsCA:
		return id, errors.New("certificate is that of an authority, not of a workload")
	case c.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return id, errors.New("certificate lacks the key usage digitalSignature")
	case c.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return id, errors.New("certificate has the key usage of an authority, keyCertSign or cRLSign")
	}
	// Section 4.4: the extended key usage may be omitted; if present, it has both.
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) > 0 {
		var server, client bool
		for _, usage := range c.ExtKeyUsage {
			server = server || usage == x509.ExtKeyUsageServerAuth || usage == x509.ExtKeyUsageAny
			client = client || usage == x509.ExtKeyUsageClientAuth || usage == x509.ExtKeyUsageAny
		}
		if !server || !client {
			return id, errors.New("certificate has an extended key usage without both serverAuth and clientAuth")
		}
	}
	return id, nil
}

// otherNames lists the SANs of c that are not URIs.
func otherNames(c *x509.Certificate) string {
	var names []string
	for _, name := range c.DNSNames {
		names = append(names, fmt.Sprintf("DNS %q", name))
	}
	for _, ip := range c.IPAddresses {
		names = append(names, "IP "+ip.String())
	}
	for _, address := range c.EmailAddresses {
		names = append(names, fmt.Sprintf("email %q", address))
	}
	return strings.Join(names, ", ")
}

// trust is what an identity knows about others: the authorities of each trust domain, and the certificates verified by them.
// Verified certificates are forgotten with the authorities.
type trust struct {
	bundles map[spiffeid.TrustDomain]*x509bundle.Bundle
	pools   map[spiffeid.TrustDomain]*x509.CertPool
	cache   *cache
}

func newTrust(bundles []*x509bundle.Bundle) (trust, error) {
	t := trust{
		bundles: make(map[spiffeid.TrustDomain]*x509bundle.Bundle, len(bundles)),
		pools:   make(map[spiffeid.TrustDomain]*x509.CertPool, len(bundles)),
		cache:   new(cache),
	}
	for _, b := range bundles {
		if b == nil || b.TrustDomain().IsZero() {
			return trust{}, errors.New("tlsid: a bundle without trust domain")
		}
		domain := b.TrustDomain()
		if b.Empty() {
			return trust{}, fmt.Errorf("tlsid: bundle of trust domain %q is empty", domain)
		}
		if t.bundles[domain] != nil {
			return trust{}, fmt.Errorf("tlsid: two bundles of trust domain %q", domain)
		}
		pool := x509.NewCertPool()
		for _, authority := range b.X509Authorities() {
			pool.AddCert(authority)
		}
		t.bundles[domain], t.pools[domain] = b.Clone(), pool
	}
	return t, nil
}

func (t *trust) has(domain spiffeid.TrustDomain) bool { return t.bundles[domain] != nil }

// chain returns the chain from certificates[0], whose SPIFFE ID is id, to an authority of the ID's trust domain that is
// valid at now, and of several the one that is valid longest.
func (t *trust) chain(id spiffeid.ID, certificates []*x509.Certificate, now time.Time) ([]*x509.Certificate, error) {
	pool := t.pools[id.TrustDomain()]
	if pool == nil {
		return nil, fmt.Errorf("trust domain %q is not trusted: there is no bundle for it", id.TrustDomain())
	}
	leaf := certificates[0]
	// What crypto/x509 says about time is less clear, and the same for a certificate that is not valid yet as for an expired
	// one.
	if now.After(leaf.NotAfter) {
		return nil, &ExpiredError{ID: id, NotAfter: leaf.NotAfter}
	}
	if now.Before(leaf.NotBefore) {
		return nil, &NotYetValidError{ID: id, NotBefore: leaf.NotBefore, Skew: leaf.NotBefore.Sub(now)}
	}
	intermediates := x509.NewCertPool()
	for _, c := range certificates[1:] {
		intermediates.AddCert(c)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots:         pool,
		Intermediates: intermediates,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		CurrentTime:   now,
	})
	if err != nil {
		return nil, fmt.Errorf("the bundle of trust domain %q does not vouch for it: %w", id.TrustDomain(), err)
	}
	best := chains[0]
	_, latest := validity(best)
	for _, chain := range chains[1:] {
		if _, notAfter := validity(chain); notAfter.After(latest) {
			best, latest = chain, notAfter
		}
	}
	return best, nil
}

// validity returns when all certificates of a chain are valid. A chain is never empty.
func validity(chain []*x509.Certificate) (notBefore, notAfter time.Time) {
	notBefore, notAfter = chain[0].NotBefore, chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotBefore.After(notBefore) {
			notBefore = c.NotBefore
		}
		if c.NotAfter.Before(notAfter) {
			notAfter = c.NotAfter
		}
	}
	return notBefore, notAfter
}

// verified is a certificate that was found good, and for how long.
type verified struct {
	id                  spiffeid.ID
	leaf                *x509.Certificate
	notBefore, notAfter time.Time
	hash                string
}

func (v *verified) valid(now time.Time) bool {
	return !now.Before(v.notBefore) && !now.After(v.notAfter)
}

// of reports whether v is about a certificate. Each connection parses its own copy.
func (v *verified) of(leaf *x509.Certificate) bool {
	return v.leaf == leaf || bytes.Equal(v.leaf.Raw, leaf.Raw)
}

func (v *verified) peer() Peer { return Peer{ID: v.id, Certificate: v.leaf, known: v} }

// cache remembers verified certificates by content, so that a closed connection leaves nothing behind. Only good ones are
// remembered: nothing that a peer sends can lock out another.
type cache struct {
	// recent holds the most recently used ones, by the end of their signature, so that most look-ups need no hash.
	recent [1 << recentBits]atomic.Pointer[verified]

	young, old atomic.Pointer[generation]
}

const recentBits = 9

// maxVerified bounds the memory that peers can take by presenting ever new certificates: this many in each of two
// generations.
const maxVerified = 1024

type generation struct {
	entries sync.Map // [sha256.Size]byte to *verified
	size    atomic.Int32
}

// slot returns the slot among the recent certificates where leaf would be.
func (c *cache) slot(leaf *x509.Certificate) *atomic.Pointer[verified] {
	var end uint64
	if n := len(leaf.Signature); n >= 8 {
		end = binary.LittleEndian.Uint64(leaf.Signature[n-8:])
	}
	return &c.recent[end%(1<<recentBits)]
}

// load finds a certificate. One of the old generation gets into the young one.
func (c *cache) load(sum [sha256.Size]byte) *verified {
	if g := c.young.Load(); g != nil {
		if v, ok := g.entries.Load(sum); ok {
			return v.(*verified)
		}
	}
	if g := c.old.Load(); g != nil {
		if v, ok := g.entries.Load(sum); ok {
			c.store(sum, v.(*verified))
			return v.(*verified)
		}
	}
	return nil
}

// store remembers a certificate. The young generation grows old when it is full, and the old one is forgotten.
func (c *cache) store(sum [sha256.Size]byte, v *verified) {
	g := c.young.Load()
	if g == nil || g.size.Load() >= maxVerified {
		if c.young.CompareAndSwap(g, new(generation)) {
			c.old.Store(g)
		}
		g = c.young.Load()
	}
	if _, loaded := g.entries.Swap(sum, v); !loaded {
		g.size.Add(1)
	}
}
