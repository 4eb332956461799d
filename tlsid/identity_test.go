package tlsid_test

import (
	"crypto/x509"
	"errors"
	"net"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/tlsid"
)

const order = "spiffe://cluster.local/ns/default/sa/order-service"
const user = "spiffe://cluster.local/ns/default/sa/user-service"

// badLeaves are certificates that no end of a connection may have, and what is said of them.
var badLeaves = []struct {
	name   string
	change func(*x509.Certificate)
	want   string
}{
	{"DNS SAN only", func(c *x509.Certificate) { c.URIs, c.DNSNames = nil, []string{"order-service"} },
		`no URI SAN with a SPIFFE ID, only DNS "order-service"`},
	{"IP and email SANs only", func(c *x509.Certificate) {
		c.URIs, c.IPAddresses, c.EmailAddresses = nil, []net.IP{{10, 0, 0, 7}}, []string{"a@b.example"}
	}, `no URI SAN with a SPIFFE ID, only IP 10.0.0.7, email "a@b.example"`},
	{"no SAN", func(c *x509.Certificate) { c.URIs = nil }, "no URI SAN with a SPIFFE ID"},
	{"two SPIFFE IDs", func(c *x509.Certificate) { c.URIs = uris(order, user) }, "2 URI SANs"},
	{"a SPIFFE ID and another URI", func(c *x509.Certificate) { c.URIs = uris(order, "https://example.com/") }, "2 URI SANs"},
	{"another URI", func(c *x509.Certificate) { c.URIs = uris("https://cluster.local/ns/default/sa/order-service") },
		`"https://cluster.local/ns/default/sa/order-service" is not a SPIFFE ID`},
	{"SPIFFE ID with a query", func(c *x509.Certificate) { c.URIs = uris(order + "?admin") }, "is not a SPIFFE ID"},
	{"SPIFFE ID with a dot segment", func(c *x509.Certificate) { c.URIs = uris("spiffe://cluster.local/ns/../sa") }, "is not a SPIFFE ID"},
	{"SPIFFE ID with an encoded dot segment", func(c *x509.Certificate) { c.URIs = uris("spiffe://cluster.local/ns/%2e%2e/sa") }, "is not a SPIFFE ID"},
	{"SPIFFE ID with an encoded slash", func(c *x509.Certificate) { c.URIs = uris("spiffe://cluster.local/ns/default%2Fsa/order-service") }, "is not a SPIFFE ID"},
	{"SPIFFE ID with a trailing slash", func(c *x509.Certificate) { c.URIs = uris(order + "/") }, "is not a SPIFFE ID"},
	{"SPIFFE ID with an empty segment", func(c *x509.Certificate) { c.URIs = uris("spiffe://cluster.local//ns/default/sa/order-service") }, "is not a SPIFFE ID"},
	{"SPIFFE ID with an empty query", func(c *x509.Certificate) { c.URIs = uris(order + "?") }, "is not a SPIFFE ID"},
	{"trust domain in capitals", func(c *x509.Certificate) { c.URIs = uris("spiffe://Cluster.Local/ns/default/sa/order-service") }, "is not a SPIFFE ID"},
	{"trust domain with a port", func(c *x509.Certificate) { c.URIs = uris("spiffe://cluster.local:443/ns/default/sa/order-service") }, "is not a SPIFFE ID"},
	{"trust domain with a user", func(c *x509.Certificate) { c.URIs = uris("spiffe://a@cluster.local/ns/default/sa/order-service") }, "is not a SPIFFE ID"},
	{"SPIFFE ID without path", func(c *x509.Certificate) { c.URIs = uris("spiffe://cluster.local") }, "it has no path"},
	{"authority", func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, c.KeyUsage|x509.KeyUsageCertSign }, "that of an authority"},
	{"no digitalSignature", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, "lacks the key usage digitalSignature"},
	{"keyCertSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, "keyCertSign or cRLSign"},
	{"cRLSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, "keyCertSign or cRLSign"},
	{"only serverAuth", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, "without both serverAuth and clientAuth"},
	{"only clientAuth", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, "without both serverAuth and clientAuth"},
	{"foreign trust domain", func(c *x509.Certificate) { c.URIs = uris("spiffe://other.example/ns/default/sa/order-service") },
		`trust domain "other.example"`},
}

func TestNewIdentityRefuses(t *testing.T) {
	ca, other := newAuthority(t, "cluster.local"), newAuthority(t, "other.example")
	same := newAuthority(t, "cluster.local") // another authority that says it is of the trust domain
	svid := ca.issue(t, order)
	stranger := *svid
	stranger.PrivateKey = generateKey(t)
	keyless := *svid
	keyless.PrivateKey = nil
	mislabelled := *svid
	mislabelled.ID = spiffeid.RequireFromString(user)

	type test struct {
		name    string
		svid    *x509svid.SVID
		bundles []*x509bundle.Bundle
		want    string
	}
	own := []*x509bundle.Bundle{ca.bundle()}
	tests := []test{
		{"nil", nil, own, "no certificate"},
		{"empty", &x509svid.SVID{PrivateKey: generateKey(t)}, own, "no certificate"},
		{"no key", &keyless, own, "key of " + order + ": there is none"},
		{"another key", &stranger, own, "it is not the key of the certificate"},
		{"another ID", &mislabelled, own, "the SVID says it is " + user},
		{"no bundle", svid, nil, `no bundle of its own trust domain "cluster.local"`},
		{"foreign bundle", svid, []*x509bundle.Bundle{other.bundle()}, `no bundle of its own trust domain "cluster.local"`},
		{"empty bundle", svid, []*x509bundle.Bundle{x509bundle.New(ca.domain)}, `bundle of trust domain "cluster.local" is empty`},
		{"nil bundle", svid, []*x509bundle.Bundle{nil}, "a bundle without trust domain"},
		{"two bundles", svid, []*x509bundle.Bundle{ca.bundle(), same.bundle()}, `two bundles of trust domain "cluster.local"`},
		{"another authority", svid, []*x509bundle.Bundle{same.bundle()}, "does not vouch for it"},
		{"intermediate missing", ca.below(t).issue(t, order), own, "does not vouch for it"},
	}
	for _, bad := range badLeaves {
		tests = append(tests, test{bad.name, ca.issue(t, order, bad.change), own, bad.want})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			identity, err := tlsid.NewIdentity(tt.svid, tt.bundles...)
			if identity != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("NewIdentity = %v, %v; want an error with %q", identity, err, tt.want)
			}
			if err != nil && !strings.HasPrefix(err.Error(), "tlsid: ") {
				t.Errorf("error %q does not say that it is of tlsid", err)
			}
		})
	}
}

func TestIdentity(t *testing.T) {
	ca, other := newAuthority(t, "cluster.local"), newAuthority(t, "other.example")
	middle := ca.below(t, lasting(-30*time.Second, 10*time.Minute))
	svid := middle.issue(t, order, lasting(-time.Minute, time.Hour))
	svid.Certificates = append(svid.Certificates, middle.cert)
	identity := newIdentity(t, svid, other, ca)

	if got := identity.ID().String(); got != order {
		t.Errorf("ID = %s", got)
	}
	if got := identity.TrustDomain(); got != ca.domain {
		t.Errorf("TrustDomain = %s", got)
	}
	// The chain is valid only where all of it is.
	if got, want := identity.NotAfter(), middle.cert.NotAfter; !got.Equal(want) {
		t.Errorf("NotAfter = %s, want that of the intermediate, %s", got, want)
	}
	if got, want := identity.NotBefore(), middle.cert.NotBefore; !got.Equal(want) {
		t.Errorf("NotBefore = %s, want that of the intermediate, %s", got, want)
	}
	if c := identity.Certificate(); len(c.Certificate) != 2 || c.Leaf != svid.Certificates[0] || c.PrivateKey == nil {
		t.Errorf("Certificate = %+v", c)
	}
	var domains []string
	for _, b := range identity.Bundles() {
		domains = append(domains, b.TrustDomain().Name())
		b.SetX509Authorities(nil) // a copy
	}
	if want := []string{"cluster.local", "other.example"}; !slices.Equal(domains, want) {
		t.Errorf("Bundles are of %v, want %v", domains, want)
	}
	if identity.Bundles()[0].Empty() {
		t.Error("a bundle that Bundles returned is not a copy")
	}
}

// TestIdentityOfAnotherTime makes identities that are valid earlier or later: that is for those who use them to judge.
func TestIdentityOfAnotherTime(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	for _, tt := range []struct {
		name         string
		middle, leaf func(*x509.Certificate)
		want         error
	}{
		{"expired", lasting(-2*time.Hour, time.Hour), lasting(-2*time.Hour, -time.Hour), new(tlsid.ExpiredError)},
		{"expired intermediate", lasting(-2*time.Hour, -time.Hour), lasting(-2*time.Hour, time.Hour), new(tlsid.ExpiredError)},
		{"not yet valid", lasting(-2*time.Hour, time.Hour), lasting(30*time.Minute, time.Hour), new(tlsid.NotYetValidError)},
		{"intermediate not yet valid", lasting(30*time.Minute, time.Hour), lasting(-2*time.Hour, time.Hour), new(tlsid.NotYetValidError)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			middle := ca.below(t, tt.middle)
			svid := middle.issue(t, order, tt.leaf)
			svid.Certificates = append(svid.Certificates, middle.cert)
			identity := newIdentity(t, svid, ca)

			told := make(chan error, 1)
			s := make(source, 1)
			s <- identity
			k := tlsid.Keep(s, tlsid.Hooks{Failed: func(err error) { told <- err }})
			defer k.Close()
			if err := <-told; reflect.TypeOf(err) != reflect.TypeOf(tt.want) {
				t.Errorf("the keeper was told %v, want a %T", err, tt.want)
			}
			if _, err := k.Identity(); !errors.Is(err, tlsid.ErrNoIdentity) {
				t.Errorf("Identity = %v", err)
			}
		})
	}
}

func TestExpected(t *testing.T) {
	a, b := spiffeid.RequireFromString(order), spiffeid.RequireFromString(user)
	prefix := spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/order")
	tests := []struct {
		name     string
		set      tlsid.Expected
		contains []spiffeid.ID
		not      []spiffeid.ID
		text     string
	}{
		{"zero value", tlsid.Expected{}, nil, []spiffeid.ID{a, b, {}}, "nobody"},
		{"empty", tlsid.Expect(), nil, []spiffeid.ID{a, b, {}}, "nobody"},
		{"zero ID", tlsid.Expect(spiffeid.ID{}), nil, []spiffeid.ID{a, {}}, "nobody"},
		{"one", tlsid.Expect(a), []spiffeid.ID{a}, []spiffeid.ID{b, prefix, a.TrustDomain().ID(), {}}, order},
		{"two", tlsid.Expect(b, a, b), []spiffeid.ID{a, b}, []spiffeid.ID{prefix, {}}, order + " or " + user},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, id := range tt.contains {
				if err := tt.set.Check(id); err != nil {
					t.Errorf("Check(%s) = %v", id, err)
				}
			}
			for _, id := range tt.not {
				if err := tt.set.Check(id); err == nil {
					t.Errorf("Check(%q) = nil", id)
				}
			}
			if got := tt.set.String(); got != tt.text {
				t.Errorf("String = %q, want %q", got, tt.text)
			}
			if got, want := len(tt.contains) == 0, tt.set == (tlsid.Expected{}); got != want {
				t.Errorf("equals the empty set: %v, want %v", want, got)
			}
		})
	}
	if tlsid.Expect(a, b) != tlsid.Expect(b, a, a) {
		t.Error("equal sets are not ==")
	}
}

func TestMode(t *testing.T) {
	var zero tlsid.Mode
	for mode, want := range map[tlsid.Mode]string{
		zero: "PERMISSIVE", tlsid.Permissive: "PERMISSIVE", tlsid.Strict: "STRICT", tlsid.Disable: "DISABLE", 7: "Mode(7)",
	} {
		if got := mode.String(); got != want {
			t.Errorf("Mode(%d).String() = %q, want %q", uint8(mode), got, want)
		}
	}
}
