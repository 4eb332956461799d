package tlsid_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"iter"
	"math/big"
	"net"
	"net/url"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/tlsid"
)

func TestMain(m *testing.M) {
	os.Unsetenv("KUBERNETES_SERVICE_HOST") // of the pod in which the tests may run
	os.Exit(m.Run())
}

// authority issues whatever it is asked to, unlike a DevCA.
type authority struct {
	domain spiffeid.TrustDomain
	cert   *x509.Certificate
	key    crypto.Signer
}

func newAuthority(t testing.TB, domain string) *authority {
	t.Helper()
	a := &authority{domain: spiffeid.RequireTrustDomainFromString(domain), key: generateKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "root of " + domain},
		URIs:      []*url.URL{a.domain.ID().URL()},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	a.cert = create(t, template, template, a.key.Public(), a.key)
	return a
}

func generateKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func create(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue issues an SVID for an hour, or whatever the changes make of it.
func (a *authority) issue(t testing.TB, id string, change ...func(*x509.Certificate)) *x509svid.SVID {
	t.Helper()
	key := generateKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		URIs:         uris(id),
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, f := range change {
		f(template)
	}
	leaf := create(t, template, a.cert, key.Public(), a.key)
	return &x509svid.SVID{Certificates: []*x509.Certificate{leaf}, PrivateKey: key}
}

// below returns an authority of the same trust domain that a vouches for.
func (a *authority) below(t testing.TB, change ...func(*x509.Certificate)) *authority {
	t.Helper()
	b := &authority{domain: a.domain, key: generateKey(t)}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "intermediate"},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	for _, f := range change {
		f(template)
	}
	b.cert = create(t, template, a.cert, b.key.Public(), a.key)
	return b
}

// revoke returns a revocation list in PEM.
func (a *authority) revoke(t testing.TB) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	der, err := x509.CreateRevocationList(rand.Reader, template, a.cert, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

func (a *authority) bundle() *x509bundle.Bundle {
	return x509bundle.FromX509Authorities(a.domain, []*x509.Certificate{a.cert})
}

// identity issues an identity that trusts a, and others.
func (a *authority) identity(t testing.TB, id string, others ...*authority) *tlsid.Identity {
	t.Helper()
	return newIdentity(t, a.issue(t, id), append([]*authority{a}, others...)...)
}

func newIdentity(t testing.TB, svid *x509svid.SVID, trusted ...*authority) *tlsid.Identity {
	t.Helper()
	var bundles []*x509bundle.Bundle
	for _, a := range trusted {
		bundles = append(bundles, a.bundle())
	}
	identity, err := tlsid.NewIdentity(svid, bundles...)
	if err != nil {
		t.Fatal(err)
	}
	return identity
}

func uris(names ...string) []*url.URL {
	var list []*url.URL
	for _, name := range names {
		u, err := url.Parse(name)
		if err != nil {
			panic(err)
		}
		list = append(list, u)
	}
	return list
}

func lasting(notBefore, notAfter time.Duration) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(notBefore), time.Now().Add(notAfter)
	}
}

// source yields what is sent to it: identities and errors.
type source chan any

func (s source) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		for {
			select {
			case <-ctx.Done():
				return
			case step := <-s:
				identity, _ := step.(*tlsid.Identity)
				err, _ := step.(error)
				if !yield(identity, err) {
					return
				}
			}
		}
	}
}

// keepOne keeps one identity.
func keepOne(t testing.TB, identity *tlsid.Identity) *tlsid.Keeper {
	t.Helper()
	s := make(source, 1)
	s <- identity
	return keepSource(t, s, tlsid.Hooks{})
}

func keepSource(t testing.TB, s tlsid.Source, hooks tlsid.Hooks) *tlsid.Keeper {
	t.Helper()
	k := tlsid.Keep(s, hooks)
	t.Cleanup(k.Close)
	wait(t, k)
	return k
}

func wait(t testing.TB, k *tlsid.Keeper) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := k.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// handshake has a client and a server make a connection over loopback and say a byte to each other. It returns what each
// learned of the other; where one of them refuses, its error.
func handshake(t testing.TB, client, server *tls.Config) (ofClient, ofServer tls.ConnectionState, clientErr, serverErr error) {
	t.Helper()
	near, far := loopback(t)
	c, s := tls.Client(near, client), tls.Server(far, server)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer far.Close()
		if serverErr = s.Handshake(); serverErr == nil {
			_, serverErr = s.Write([]byte("x")) // with TLS 1.3 the client learns now that it is accepted
			ofServer = s.ConnectionState()
		}
	}()
	if clientErr = c.Handshake(); clientErr == nil {
		ofClient = c.ConnectionState()
		_, clientErr = c.Read(make([]byte, 1))
	}
	near.Close()
	<-done
	return ofClient, ofServer, clientErr, serverErr
}

// loopback returns both ends of a connection: pipes have no buffer, and both ends of a handshake may write at once.
func loopback(t testing.TB) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

func pemOf(certificates ...*x509.Certificate) []byte {
	var data []byte
	for _, c := range certificates {
		data = append(data, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return data
}

func keyPEM(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
