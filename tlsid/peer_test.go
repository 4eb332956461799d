package tlsid_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/tlsid"
)

var (
	orderID = spiffeid.RequireFromString(order)
	userID  = spiffeid.RequireFromString(user)
)

// stateOf is what a connection says of a peer that came with svid.
func stateOf(svid *x509svid.SVID) *tls.ConnectionState {
	return &tls.ConnectionState{PeerCertificates: svid.Certificates}
}

// bare is a tls.Config of somebody who presents svid and verifies nothing.
func bare(svid *x509svid.SVID) *tls.Config {
	c := &tls.Config{InsecureSkipVerify: true, ClientAuth: tls.RequestClientCert}
	if svid != nil {
		certificate := tls.Certificate{PrivateKey: svid.PrivateKey}
		for _, one := range svid.Certificates {
			certificate.Certificate = append(certificate.Certificate, one.Raw)
		}
		c.Certificates = []tls.Certificate{certificate}
	}
	return c
}

func TestHandshake(t *testing.T) {
	ca, other := newAuthority(t, "cluster.local"), newAuthority(t, "other.example")
	client := keepOne(t, ca.identity(t, order, other))
	server := keepOne(t, ca.identity(t, user, other))
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			config := client.Client(tlsid.Expect(userID))
			config.MaxVersion = version
			ofClient, ofServer, clientErr, serverErr := handshake(t, config, server.Server())
			if clientErr != nil || serverErr != nil {
				t.Fatal(clientErr, serverErr)
			}
			if ofClient.Version != version || ofClient.NegotiatedProtocol != "h2" || ofClient.DidResume {
				t.Errorf("client: version %x, protocol %q, resumed %v", ofClient.Version, ofClient.NegotiatedProtocol, ofClient.DidResume)
			}
			if peer, err := client.Peer(&ofClient, time.Now()); err != nil || peer.ID != userID {
				t.Errorf("the client's peer = %v, %v", peer.ID, err)
			}
			if peer, err := server.Peer(&ofServer, time.Now()); err != nil || peer.ID != orderID {
				t.Errorf("the server's peer = %v, %v", peer.ID, err)
			}
		})
	}

	t.Run("TLS 1.1 refused", func(t *testing.T) {
		old := bare(ca.issue(t, order))
		old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		if _, _, clientErr, serverErr := handshake(t, old, server.Server()); clientErr == nil || serverErr == nil {
			t.Errorf("server took TLS 1.1: %v, %v", clientErr, serverErr)
		}
		if _, _, clientErr, _ := handshake(t, client.Client(tlsid.Expect(orderID)), old); clientErr == nil {
			t.Error("client took TLS 1.1")
		}
	})
	t.Run("no client certificate", func(t *testing.T) {
		if _, _, clientErr, serverErr := handshake(t, bare(nil), server.Server()); clientErr == nil || serverErr == nil {
			t.Errorf("server took a client without certificate: %v, %v", clientErr, serverErr)
		}
	})
	t.Run("federated", func(t *testing.T) {
		const billing = "spiffe://other.example/billing"
		foreign := keepOne(t, other.identity(t, billing, ca))
		_, _, clientErr, serverErr := handshake(t, foreign.Client(tlsid.Expect(userID)), server.Server())
		if clientErr != nil || serverErr != nil {
			t.Error(clientErr, serverErr)
		}
	})
}

// TestBadPeers has peers with every kind of bad certificate try both ends, in real handshakes.
func TestBadPeers(t *testing.T) {
	ca, other, stranger := newAuthority(t, "cluster.local"), newAuthority(t, "other.example"), newAuthority(t, "cluster.local")
	k := keepOne(t, ca.identity(t, user, other))
	brief := ca.below(t, lasting(-time.Hour, -time.Minute))
	chained := brief.issue(t, order)
	chained.Certificates = append(chained.Certificates, brief.cert)

	abroad := ca.below(t, func(c *x509.Certificate) {
		c.PermittedURIDomains, c.PermittedDNSDomainsCritical = []string{"other.example"}, true
	})
	constrained := abroad.issue(t, order)
	constrained.Certificates = append(constrained.Certificates, abroad.cert)

	type test struct {
		name string
		svid *x509svid.SVID
		want string
		is   any // what errors.As finds besides the PeerError
	}
	tests := []test{
		{"expired", ca.issue(t, order, lasting(-time.Hour, -time.Minute)), "peer " + order + " refused: certificate of " + order + " expired at ", new(*tlsid.ExpiredError)},
		{"not yet valid", ca.issue(t, order, lasting(2*time.Hour, 3*time.Hour)), "is not valid until ", new(*tlsid.NotYetValidError)},
		{"not yet valid, by how much", ca.issue(t, order, lasting(2*time.Hour, 3*time.Hour)), ", in 1h59m5", new(*tlsid.NotYetValidError)},
		{"expired intermediate", chained, "has expired", new(x509.CertificateInvalidError)},
		{"unknown trust domain", newAuthority(t, "nowhere.example").issue(t, "spiffe://nowhere.example/a"),
			`trust domain "nowhere.example" is not trusted: there is no bundle for it`, nil},
		{"stranger of the same trust domain", stranger.issue(t, order), `the bundle of trust domain "cluster.local" does not vouch for it`, new(x509.UnknownAuthorityError)},
		{"intermediate that is constrained to another trust domain", constrained, "does not vouch for it", new(x509.CertificateInvalidError)},
		{"intermediate missing", ca.below(t).issue(t, order), "does not vouch for it", new(x509.UnknownAuthorityError)},
	}
	for _, bad := range badLeaves {
		tests = append(tests, test{bad.name, ca.issue(t, order, bad.change), bad.want, nil})
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			check := func(where string, err error) {
				t.Helper()
				var refused *tlsid.PeerError
				if !errors.As(err, &refused) || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%s: error %v, want a PeerError with %q", where, err, tt.want)
				} else if strings.Count(err.Error(), "tlsid: ") != 1 {
					t.Errorf("%s: error %q repeats itself", where, err)
				}
				if tt.is != nil && !errors.As(err, tt.is) {
					t.Errorf("%s: error %v is not a %T", where, err, tt.is)
				}
			}
			_, err := k.Peer(stateOf(tt.svid), time.Now())
			check("Peer", err)
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				peer := bare(tt.svid)
				peer.MaxVersion = version
				_, _, clientErr, serverErr := handshake(t, peer, k.Server())
				check("server", serverErr)
				if clientErr == nil {
					t.Error("the client does not know that it is refused")
				}
				_, _, clientErr, _ = handshake(t, k.Client(tlsid.Expect(orderID)), peer)
				check("client", clientErr)
			}
		})
	}
}

func TestPeerErrors(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	k := keepOne(t, ca.identity(t, user))
	for name, state := range map[string]*tls.ConnectionState{"plaintext": nil, "no certificate": {}} {
		if _, err := k.Peer(state, time.Now()); err != tlsid.ErrNoPeer {
			t.Errorf("%s: Peer = %v, want ErrNoPeer", name, err)
		}
	}
	// What the handshake concluded is not believed.
	stranger := newAuthority(t, "cluster.local").issue(t, order)
	state := stateOf(stranger)
	state.VerifiedChains, state.HandshakeComplete = [][]*x509.Certificate{{stranger.Certificates[0], ca.cert}}, true
	if peer, err := k.Peer(state, time.Now()); err == nil {
		t.Errorf("Peer = %v for a stranger with VerifiedChains", peer.ID)
	}
	// A certificate that was never parsed, as a fake may have it.
	fake := &x509.Certificate{URIs: uris(order), KeyUsage: x509.KeyUsageDigitalSignature, NotAfter: time.Now().Add(time.Hour)}
	for range 2 {
		if peer, err := k.Peer(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{fake}}, time.Now()); err == nil {
			t.Errorf("Peer = %v for a fake", peer.ID)
		}
	}
}

func TestPeer(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	k := keepOne(t, ca.identity(t, user))
	middle := ca.below(t, lasting(-time.Minute, 10*time.Minute))
	svid := middle.issue(t, order, lasting(-time.Minute, 30*time.Minute))
	svid.Certificates = append(svid.Certificates, middle.cert)
	state := stateOf(svid)

	first, err := k.Peer(state, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(svid.Certificates[0].Raw)
	if got, want := first.Hash(), hex.EncodeToString(sum[:]); got != want {
		t.Errorf("Hash = %s, want %s", got, want)
	}
	if got, want := (tlsid.Peer{Certificate: first.Certificate}).Hash(), first.Hash(); got != want {
		t.Errorf("Hash of a Peer made by hand = %s, want %s", got, want)
	}
	if got, want := first.NotAfter(), middle.cert.NotAfter; !got.Equal(want) {
		t.Errorf("NotAfter = %s, want that of the intermediate, %s", got, want)
	}
	if again, err := k.Peer(state, time.Now()); err != nil || again != first {
		t.Errorf("Peer = %v, %v the second time", again, err)
	}
	// Another connection parses the same certificate anew.
	parsed, err := x509.ParseCertificate(svid.Certificates[0].Raw)
	if err != nil {
		t.Fatal(err)
	}
	if other, err := k.Peer(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{parsed, middle.cert}}, time.Now()); err != nil || other.ID != orderID {
		t.Errorf("Peer = %v, %v for the same certificate at another address", other.ID, err)
	}
	// What is remembered is not believed beyond its time, and the intermediate's comes before the leaf's.
	if _, err := k.Peer(state, time.Now().Add(11*time.Minute)); err == nil {
		t.Error("Peer = nil after the intermediate expired")
	}
	if zero := (tlsid.Peer{}); zero.Hash() != "" || !zero.NotAfter().IsZero() {
		t.Error("the zero Peer has a hash or an expiry")
	}
	if allocs := testing.AllocsPerRun(1000, func() { k.Peer(state, time.Now()) }); allocs != 0 {
		t.Errorf("Peer: %v allocations for a peer that is known", allocs)
	}
	if allocs := testing.AllocsPerRun(1000, func() { k.Identity() }); allocs != 0 {
		t.Errorf("Identity: %v allocations", allocs)
	}
	expect := tlsid.Expect(userID, orderID)
	if allocs := testing.AllocsPerRun(1000, func() { expect.Check(first.ID) }); allocs != 0 {
		t.Errorf("Check: %v allocations", allocs)
	}
}

// TestPeerCrossSigned has a peer with two chains: it is believed as long as one of them is valid.
func TestPeerCrossSigned(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	k := keepOne(t, ca.identity(t, user))
	long := ca.below(t, lasting(-time.Minute, 20*time.Minute))
	short := *long.cert
	short.NotAfter = time.Now().Add(10 * time.Minute)
	crossed := create(t, &short, ca.cert, long.key.Public(), ca.key)
	svid := long.issue(t, order, lasting(-time.Minute, 30*time.Minute))
	for _, chain := range [][]*x509.Certificate{{crossed, long.cert}, {long.cert, crossed}} {
		state := &tls.ConnectionState{PeerCertificates: append(svid.Certificates[:1:1], chain...)}
		peer, err := newIdentity(t, ca.issue(t, user), ca).Verify(state, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if !peer.NotAfter().Equal(long.cert.NotAfter) {
			t.Errorf("NotAfter = %s, want that of the longer chain, %s", peer.NotAfter(), long.cert.NotAfter)
		}
		if _, err := k.Peer(state, time.Now().Add(15*time.Minute)); err != nil {
			t.Error(err)
		}
	}
}

// TestManyPeers has more peers than are remembered: all are still told apart.
func TestManyPeers(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	k := keepOne(t, ca.identity(t, user))
	svid := ca.issue(t, order)
	for range 10_000 {
		parsed := *svid.Certificates[0] // another address for each connection
		if peer, err := k.Peer(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{&parsed}}, time.Now()); err != nil || peer.ID != orderID {
			t.Fatal(peer.ID, err)
		}
	}
}

// TestErrorsThroughHTTP finds the mesh's errors below those of net/http and net/url.
func TestErrorsThroughHTTP(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}),
		ErrorLog:  log.New(io.Discard, "", 0),
		TLSConfig: keepOne(t, ca.identity(t, user)).Server(),
	}
	served := make(chan error)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	defer func() {
		server.Close()
		<-served
	}()

	get := func(k *tlsid.Keeper, expect tlsid.Expected) error {
		transport := &http.Transport{TLSClientConfig: k.Client(expect), ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get("https://" + listener.Addr().String())
		if err == nil {
			resp.Body.Close()
			if resp.ProtoMajor != 2 {
				t.Errorf("protocol %s, want HTTP/2", resp.Proto)
			}
		}
		return err
	}
	k := keepOne(t, ca.identity(t, order))
	if err := get(k, tlsid.Expect(userID)); err != nil {
		t.Error(err)
	}
	err = get(k, tlsid.Expect(orderID))
	var mismatch *tlsid.MismatchError
	if !errors.As(err, &mismatch) || mismatch.Presented != userID || mismatch.Expected != tlsid.Expect(orderID) {
		t.Errorf("error %v, want a MismatchError", err)
	}
	if want := "tlsid: peer is " + user + ", expected " + order; err == nil || !strings.HasSuffix(err.Error(), want) {
		t.Errorf("error %v, want %q at its end", err, want)
	}
	err = get(keepOne(t, newAuthority(t, "cluster.local").identity(t, order)), tlsid.Expect(userID))
	var refused *tlsid.PeerError
	if !errors.As(err, &refused) || refused.ID != userID {
		t.Errorf("error %v, want a PeerError", err)
	}
}

// Each connection parses the certificate of its peer anew. What is remembered of it does not grow with the connections.
func TestConnectionsLeaveNoCertificatesBehind(t *testing.T) {
	ca := newAuthority(t, "cluster.local")
	own := ca.identity(t, "spiffe://cluster.local/ns/default/sa/server")
	raw := ca.issue(t, "spiffe://cluster.local/ns/default/sa/client").Certificates[0].Raw
	connect := func() {
		leaf, err := x509.ParseCertificate(raw)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := own.Verify(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}, time.Now())
		if err != nil || peer.ID.Path() != "/ns/default/sa/client" {
			t.Fatalf("Verify = %v, %v", peer.ID, err)
		}
	}
	connect()
	const connections = 4000
	before := leak.Heap()
	for range connections {
		connect()
	}
	if grown := leak.Heap() - before; grown > connections*200 {
		t.Errorf("%d connections that are gone left %d bytes", connections, grown)
	}
	runtime.KeepAlive(own)
}
