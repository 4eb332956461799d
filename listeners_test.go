package mesh_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// A server of another protocol takes whatever ALPN its clients offer: a sidecar of Istio offers its own.
func TestListenTCPLeavesALPNToTheClient(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	ln := w.member(t, "postgres", strict).ListenTCP(rawtest.Listen(t))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(conn, "hello")
			conn.Close()
		}
	})
	t.Cleanup(func() { ln.Close(); serving.Wait() })
	id := w.identity(t, "order-service")
	for _, protocols := range [][]string{nil, {"istio-peer-exchange", "istio"}, {"postgresql"}, {"h2"}} {
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{
			InsecureSkipVerify: true, NextProtos: protocols, Certificates: []tls.Certificate{*id.Certificate()},
		})
		if err != nil {
			t.Errorf("offering %q: %v", protocols, err)
			continue
		}
		if said, err := io.ReadAll(conn); string(said) != "hello" || err != nil {
			t.Errorf("offering %q: %q, %v", protocols, said, err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != "" {
			t.Errorf("offering %q: the server chose %q, and speaks nothing of HTTP", protocols, got)
		}
		conn.Close()
	}
}

// Documents compiled for one trust domain would be applied to the peers of another.
func TestIdentityOfAnotherTrustDomainIsRefused(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	ours := w.identity(t, "order-service")
	ca, err := tlsid.NewDevCA("other.example")
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := ca.Identity("default", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	const why = "and the workload is of cluster.local"
	for _, late := range []bool{true, false} {
		t.Run(fmt.Sprintf("late %v", late), func(t *testing.T) {
			told := make(chan error, 10)
			observer := mesh.WithObserver(mesh.Observer{Identity: func(_ *tlsid.Identity, err error) { told <- err }})
			source, first := make(lateSource, 1), ours
			with := mesh.WithIdentity
			if late {
				with, first = mesh.WithLateIdentity, nil
			} else {
				source <- ours
			}
			m := newMesh(t, strict, with(source), observer)
			if !late {
				<-told // that the first is there
			}
			source <- theirs
			if err := <-told; err == nil || !strings.Contains(err.Error(), why) {
				t.Errorf("the observers are told %v", err)
			}
			id, err := m.Identity()
			if id != first {
				t.Errorf("the identity is %v, want what it was", id.ID())
			}
			if late && (!errors.Is(err, tlsid.ErrNoIdentity) || !strings.Contains(err.Error(), why)) {
				t.Errorf("Identity() = %v, want tlsid.ErrNoIdentity and why", err)
			}
		})
	}
}

// A peer whose certificate is no longer trusted must leave its connection, and can come back on a new one.
func TestPeersMoveWhenBundlesChange(t *testing.T) {
	noLeaks(t)
	towns := []*town{newTown(t), newTown(t)}
	issue := func(i int, account string) *tlsid.Identity {
		t.Helper()
		id, err := towns[i].Identity("default", account)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	for proto, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2.0": true} {
		t.Run(proto, func(t *testing.T) {
			source, rotated := make(lateSource, 1), make(chan bool, 1)
			source <- issue(0, "payment-service")
			server := newMesh(t, strict, mesh.WithIdentity(source), mesh.WithObserver(mesh.Observer{
				Identity: func(_ *tlsid.Identity, err error) { rotated <- err == nil },
			}))
			<-rotated
			e := serveMesh(t, server, whoCalls)
			var current atomic.Pointer[tlsid.Identity]
			current.Store(issue(0, "order-service"))
			template := &http.Transport{ForceAttemptHTTP2: http2, TLSClientConfig: &tls.Config{
				InsecureSkipVerify: true,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					return current.Load().Certificate(), nil
				},
			}}
			t.Cleanup(template.CloseIdleConnections)
			c := &http.Client{Transport: template}
			if a := get(t, c, "https://"+addressOf(e)); !strings.HasSuffix(a.body, "sa/order-service over "+proto) {
				t.Fatalf("the service saw %q", a.body)
			}
			source <- issue(1, "payment-service")
			<-rotated
			current.Store(issue(1, "order-service"))
			a, err := try(c, "https://"+addressOf(e))
			if err != nil || a.status != http.StatusForbidden {
				t.Errorf("over the old connection: %d %q, %v, want 403", a.status, a.body, err)
			}
			if a, err := try(c, "https://"+addressOf(e)); !strings.HasPrefix(a.body, "spiffe://") {
				t.Errorf("after that the service saw %q, %v, want the peer", a.body, err)
			}
		})
	}
}

// A call that was held up for longer than the peer's certificate lives goes over a new connection, although the server would
// still serve it over the old one.
func TestConnectionExpiresWhileACallWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lasting, quick := newTown(t), newTown(t)
		quick.TTL = 2 * time.Second
		network := serveTLS(t, says("ok"), &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			id, err := quick.Identity("default", "payment-service")
			if err != nil {
				return nil, err
			}
			return id.Certificate(), nil
		}})
		c := newMesh(t, strict+`---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment-service, namespace: default}
spec:
  hosts: [payment-service]
  http:
  - match: [{headers: {x-late: {exact: "yes"}}}]
    fault: {delay: {percentage: {value: 100}, fixedDelay: 2100ms}}
    route: [{destination: {host: payment-service}}]
  - route: [{destination: {host: payment-service}}]
`, mesh.WithTransport(&http.Transport{DialContext: network.DialContext}),
			mesh.WithDiscovery(discovery.Static{"payment-service": {{Address: "10.0.0.1", Port: 443, ServiceAccount: "payment-service"}}}),
			mesh.WithIdentity(trusting{
				lasting.Source("default", "order-service"),
				append(lasting.Bundle().X509Authorities(), quick.Bundle().X509Authorities()...),
			})).Client()
		get(t, c, "http://payment-service/")
		if get(t, c, "http://payment-service/"); network.Dials() != 1 {
			t.Errorf("%d connections for calls right after each other, want 1", network.Dials())
		}
		if get(t, c, "http://payment-service/", "X-Late", "yes"); network.Dials() != 2 {
			t.Error("a call went over a connection to a peer whose certificate has expired")
		}
	})
}

// serveTLS serves h with TLS at 10.0.0.1:443 of a network of its own.
func serveTLS(t *testing.T, h http.HandlerFunc, config *tls.Config) *memnet.Network {
	t.Helper()
	network := new(memnet.Network)
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	var serving sync.WaitGroup
	ln := tls.NewListener(network.Listen("10.0.0.1:443"), config)
	serving.Go(func() { srv.Serve(ln) })
	t.Cleanup(func() { srv.Close(); serving.Wait() })
	return network
}

// partner returns a mesh that calls api.partner with a certificate for two seconds, which is in files, and a function that renews it.
func partner(t *testing.T) (m *mesh.Mesh, renew func()) {
	t.Helper()
	w, server := newTown(t), newTown(t)
	w.TTL = 2 * time.Second
	id, err := server.Identity("default", "partner")
	if err != nil {
		t.Fatal(err)
	}
	network := serveTLS(t, func(w http.ResponseWriter, r *http.Request) {
		if time.Now().After(r.TLS.PeerCertificates[0].NotAfter) {
			w.WriteHeader(http.StatusForbidden)
		}
	}, &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{*id.Certificate()}})
	dir := t.TempDir()
	writePEM(t, dir+"/server.pem", "CERTIFICATE", server.Bundle().X509Authorities()[0].Raw)
	renew = func() {
		t.Helper()
		if err := w.WriteFiles(dir+"/client", "default", "order-service"); err != nil {
			t.Fatal(err)
		}
	}
	renew()
	return newMesh(t, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: d, namespace: default}
spec:
  host: api.partner
  trafficPolicy:
    tls:
      mode: MUTUAL
      clientCertificate: %[1]s/client/tls.crt
      privateKey: %[1]s/client/tls.key
      caCertificates: %[1]s/server.pem
      subjectAltNames: ["spiffe://cluster.local/ns/default/sa/partner"]
`, dir), mesh.WithDiscovery(discovery.Static{"api.partner": {{Address: "10.0.0.1", Port: 443}}}),
		mesh.WithTransport(&http.Transport{DialContext: network.DialContext})), renew
}

// The certificate that MUTUAL presents comes from files, which nobody tells of: connections made with it end with it.
func TestConnectionsEndWithTheCertificateOfTheirFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, renew := partner(t)
		for range 30 {
			if a := get(t, m.Client(), "http://api.partner/"); a.status != http.StatusOK {
				t.Fatal("a call went over a connection made with a certificate that has expired")
			}
			time.Sleep(100 * time.Millisecond)
			renew()
		}
	})
}

// So do raw connections, even if nothing else happens.
func TestRawConnectionsEndWithTheCertificateOfTheirFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, _ := partner(t)
		raw, err := m.DialContext(t.Context(), "tcp", "api.partner:443")
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		time.Sleep(3 * time.Second)
		raw.SetReadDeadline(time.Now())
		if _, err := raw.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("a raw connection reads %v, want that it is closed, since its certificate has expired", err)
		}
	})
}

// A peer that does not read does not delay the end of its connection.
func TestDeniedConnectionsAreClosedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		m := w.member(t, "postgres", strict)
		var network memnet.Network
		ln := m.ListenTCP(network.Listen("10.0.0.1:80"))
		defer ln.Close()
		go ln.Accept() // which begins to accept
		id := w.identity(t, "order-service")
		const peers = 4
		for i := range peers {
			near, err := network.DialContext(t.Context(), "tcp", "10.0.0.1:80")
			if err != nil {
				t.Fatal(err)
			}
			defer near.Close()
			client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*id.Certificate()}})
			if err := client.Handshake(); err != nil {
				t.Fatal(err)
			}
			if i > 0 {
				conn, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
			}
		}
		synctest.Wait()
		began := time.Now()
		nobody := strict + "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: nobody, namespace: default}\nspec: {}\n"
		if err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(nobody)}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took > 0 {
			t.Errorf("the end of %d connections took %s", peers, took)
		}
	})
}

// The documents still count for the connections of a server that takes no new ones and lets those it has end.
func TestDenialsReachDrainingConnections(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "postgres", "")
	ln := m.ListenTCP(rawtest.Listen(t))
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	io.WriteString(client, "x")
	conn, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ln.Close()
	if err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(strict)}); err != nil {
		t.Fatal(err)
	}
	client.SetReadDeadline(time.Now().Add(time.Minute))
	var timeout net.Error
	if _, err := client.Read(make([]byte, 1)); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("a connection that is denied now stays open")
	}
}

// CGI and similar interfaces map X-Envoy-Internal and X_Envoy_Internal to the same variable, so neither gets through.
func TestUnderscoresForgeNothing(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := serveMesh(t, w.member(t, "payment-service", ""), func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.Header)
	})
	c := &http.Client{Transport: &http.Transport{DisableCompression: true}}
	t.Cleanup(c.CloseIdleConnections)
	a := get(t, c, "http://"+addressOf(e), "User-Agent", "me", "X_Forwarded_Client_Cert", "URI=admin", "X-Forwarded_client-cert", "URI=admin",
		"X_REQUEST_ID", "1", "x_envoy-internal", "true", "x_user", "me")
	if want := "map[User-Agent:[me] X_user:[me]]"; a.body != want {
		t.Errorf("the handler saw %s, want %s", a.body, want)
	}
}

// A source that is nil by mistake would leave the process without an identity.
func TestOptionsThatCannotBeHonoured(t *testing.T) {
	for name, option := range map[string]mesh.Option{
		"WithIdentity":     mesh.WithIdentity(nil),
		"WithLateIdentity": mesh.WithLateIdentity(nil),
		"HandshakeTimeout": mesh.WithServer(mesh.ServerConfig{HandshakeTimeout: -1}),
		"TrustedHops":      mesh.WithServer(mesh.ServerConfig{TrustedHops: -1}),
	} {
		m, err := mesh.New(t.Context(), option)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: New = %v, want an error that names it", name, err)
		}
		if err == nil {
			m.Close()
		}
	}
}

// An argument that is nil by mistake is found when the server is set up, not by its first request.
func TestNothingToServe(t *testing.T) {
	m := newMesh(t, "")
	for want, set := range map[string]func(){
		"mesh: Handler: the handler is nil":    func() { m.Handler(nil) },
		"mesh: Listen: the listener is nil":    func() { m.Listen(nil) },
		"mesh: ListenTCP: the listener is nil": func() { m.ListenTCP(nil) },
	} {
		func() {
			defer func() {
				if got := recover(); got != want {
					t.Errorf("panic %v, want %q", got, want)
				}
			}()
			set()
		}()
	}
}

// A listener tells its port as it likes, and Handler and Listen read it alike.
func TestPortOfAnyListener(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: payment-service, namespace: default}
spec: {selector: {matchLabels: {app: payment-service}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}}}
`)
	var memory memnet.Network
	inner := memory.Listen("10.0.0.1:80")
	srv := &http.Server{Handler: m.Handler(says("hello"))}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(m.Listen(inner)) })
	t.Cleanup(func() { srv.Close(); serving.Wait() })
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return memory.DialContext(ctx, network, "10.0.0.1:80")
	}}}
	t.Cleanup(c.CloseIdleConnections)
	if a, err := try(c, "http://payment-service/"); err != nil || a.body != "hello" {
		t.Errorf("plaintext where it is allowed: %q, %v", a.body, err)
	}
}

// A dialer that panics leaves no call counted on its endpoint.
func TestDialContextGivesBackAfterAPanic(t *testing.T) {
	noLeaks(t)
	var panics atomic.Bool
	var dialled sync.Map
	m := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"db": {{Address: "10.0.0.1", Port: 1}, {Address: "10.0.0.2", Port: 1}}}),
		mesh.WithTransport(&http.Transport{DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			if panics.Load() && address == "10.0.0.1:1" {
				panic("of the dialer")
			}
			dialled.Store(address, true)
			near, far := net.Pipe()
			far.Close()
			return near, nil
		}}))
	dial := func() {
		defer func() { recover() }()
		if conn, err := m.DialContext(t.Context(), "tcp", "db:1"); err == nil {
			conn.Close()
		}
	}
	panics.Store(true)
	for range 50 {
		dial()
	}
	panics.Store(false)
	for range 50 {
		dial()
	}
	if _, ok := dialled.Load("10.0.0.1:1"); !ok {
		t.Error("the endpoint whose dial panicked is taken to be busy for ever")
	}
}

// A certificate proves nothing any more when that of its authority has expired: connections made with it end then, in both directions.
func TestConnectionsEndWithTheirAuthority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, began := newTown(t), time.Now()
		peer, authority := issueUnder(t, "payment-service", began.Add(time.Minute), began.Add(time.Hour))
		own := trusting{w.Source("default", "order-service"), append(w.Bundle().X509Authorities(), authority)}
		network := serveTLS(t, says("ok"), &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{peer}})
		m := newMesh(t, strict, mesh.WithTransport(&http.Transport{DialContext: network.DialContext}), mesh.WithIdentity(own),
			mesh.WithDiscovery(discovery.Static{"payment-service": {{Address: "10.0.0.1", Port: 443, ServiceAccount: "payment-service"}}}))
		ln := m.ListenTCP(network.Listen("10.0.0.2:80"))
		defer ln.Close()
		accepting := make(chan net.Conn, 1)
		go func() {
			conn, _ := ln.Accept()
			accepting <- conn
		}()
		near, err := network.DialContext(t.Context(), "tcp", "10.0.0.2:80")
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		client := tls.Client(near, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{peer}})
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		accepted := <-accepting
		dialled, err := m.DialContext(t.Context(), "tcp", "payment-service:80")
		if err != nil {
			t.Fatal(err)
		}
		get(t, m.Client(), "http://payment-service/")
		for name, conn := range map[string]net.Conn{"accepted": accepted, "dialled": dialled} {
			conn.SetReadDeadline(began.Add(2 * time.Minute))
			if _, err := conn.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection that was %s goes on", name)
			}
			conn.Close()
		}
		time.Sleep(time.Until(began.Add(2 * time.Minute)))
		if a, err := try(m.Client(), "http://payment-service/"); err == nil {
			t.Errorf("a call over the connection of before: %d", a.status)
		}
	})
}

// issueUnder returns a certificate of an account, which expires at leaf, and its authority, which expires at root.
func issueUnder(t *testing.T, account string, root, leaf time.Time) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	create := func(template, parent *x509.Certificate) *x509.Certificate {
		template.SerialNumber, template.NotBefore, template.BasicConstraintsValid = big.NewInt(1), time.Now(), true
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "brief"}, NotAfter: root, IsCA: true, KeyUsage: x509.KeyUsageCertSign}
	authority := create(template, template)
	own := create(&x509.Certificate{
		URIs: []*url.URL{{Scheme: "spiffe", Host: "cluster.local", Path: "/ns/default/sa/" + account}}, NotAfter: leaf,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, authority)
	return tls.Certificate{Certificate: [][]byte{own.Raw}, PrivateKey: key}, authority
}
