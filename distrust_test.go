package mesh_test

import (
	"bufio"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/tlsid"
)

// endpointOfTLS serves h over TLS that asks for a certificate. The certificates are those of the handshakes, the last one also of all that follow.
func (w *town) endpointOfTLS(t *testing.T, account string, http2 bool, h http.HandlerFunc, certificates ...tls.Certificate) {
	t.Helper()
	var mu sync.Mutex
	next := func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		c := &certificates[0]
		if len(certificates) > 1 {
			certificates = certificates[1:]
		}
		return c, nil
	}
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(!http2)
	srv.Protocols.SetHTTP2(http2)
	srv.TLSConfig = &tls.Config{ClientAuth: tls.RequireAnyClientCert, GetCertificate: next}
	ln := rawtest.Listen(t)
	var serving sync.WaitGroup
	serving.Go(func() { srv.ServeTLS(ln, "", "") })
	t.Cleanup(func() {
		srv.Close()
		serving.Wait()
	})
	e := endpointOf(t, ln.Addr().String())
	e.ServiceAccount = account
	w.registry.Set(account, e)
}

// sink accepts TLS connections of any protocol, and keeps them open.
func (w *town) sink(t *testing.T, account string, certificate tls.Certificate) {
	t.Helper()
	ln := tls.NewListener(rawtest.Listen(t), &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{certificate}})
	rawtest.Serve(t, ln, rawtest.Echo)
	e := endpointOf(t, ln.Addr().String())
	e.ServiceAccount = account
	w.registry.Set(account, e)
}

// trusts returns a new identity of order-service that trusts the authorities.
func (w *town) trusts(t *testing.T, authorities ...*x509.Certificate) *tlsid.Identity {
	t.Helper()
	own := w.identity(t, "order-service")
	certificate := own.Certificate()
	id, err := tlsid.NewIdentity(&x509svid.SVID{
		ID: own.ID(), Certificates: []*x509.Certificate{certificate.Leaf}, PrivateKey: certificate.PrivateKey.(crypto.Signer),
	}, x509bundle.FromX509Authorities(own.TrustDomain(), append(w.Bundle().X509Authorities(), authorities...)))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// What goes on with an endpoint ends when the authority of its certificate leaves the bundle, also over connections that take no new calls any
// more. What goes on with other endpoints, or over a later connection to the same one, does not.
func TestCallsEndWhenTheirEndpointIsNotTrusted(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		name := "HTTP1"
		if http2 {
			name = "HTTP2"
		}
		t.Run(name, func(t *testing.T) {
			noLeaks(t)
			w := newTown(t)
			expires := time.Now().Add(time.Hour)
			doubtful, authority := issueUnder(t, "doubtful", expires, expires)
			release := make(chan struct{})
			h := func(w http.ResponseWriter, r *http.Request) {
				io.WriteString(w, "begun\n")
				http.NewResponseController(w).Flush()
				select {
				case <-release:
					io.WriteString(w, "ended\n")
				case <-r.Context().Done():
				}
			}
			w.endpointOfTLS(t, "doubtful", http2, h, doubtful, *w.identity(t, "doubtful").Certificate())
			w.endpointOfTLS(t, "trusted", http2, h, *w.identity(t, "trusted").Certificate())
			unknown, _ := issueUnder(t, "odd", expires, expires)
			w.endpointOfTLS(t, "odd", http2, h, *w.identity(t, "odd").Certificate(), unknown)
			raw, rawAuthority := issueUnder(t, "raw", expires, expires)
			w.sink(t, "raw", raw)
			w.sink(t, "kept", *w.identity(t, "kept").Certificate())

			source := make(lateSource, 1)
			source <- w.trusts(t, authority, rawAuthority)
			ended, inForce := make(chan error, 2), make(chan *tlsid.Identity, 3)
			m := w.member(t, "order-service", strict, mesh.WithIdentity(source), mesh.WithObserver(mesh.Observer{
				ConnEnd:  func(c *mesh.Conn) { ended <- c.Err },
				Identity: func(id *tlsid.Identity, _ error) { inForce <- id },
			}))
			<-inForce
			begin := func(service string) (*http.Response, *bufio.Reader) {
				resp, err := m.Client().Get("http://" + service + "/")
				if err != nil {
					t.Fatal(err)
				}
				r := bufio.NewReader(resp.Body)
				if line, err := r.ReadString('\n'); line != "begun\n" {
					t.Fatalf("%s: read %q, %v", service, line, err)
				}
				return resp, r
			}
			rotate := func(id *tlsid.Identity) {
				source <- id
				<-inForce
			}
			doubted, doubtedBody := begin("doubtful")
			defer doubted.Body.Close()
			odd, oddBody := begin("odd")
			defer odd.Body.Close()
			rotate(w.trusts(t, authority, rawAuthority)) // so that the next call has a connection of its own
			if a, err := try(m.Client(), "http://odd/"); err == nil {
				t.Errorf("a certificate of an unknown authority is accepted: %d", a.status)
			}
			good := []*bufio.Reader{oddBody}
			for _, service := range []string{"doubtful", "trusted"} {
				resp, body := begin(service)
				defer resp.Body.Close()
				good = append(good, body)
			}
			var conns []net.Conn
			for _, service := range []string{"raw", "kept"} {
				conn, err := m.DialContext(t.Context(), "tcp", service+":80")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				conns = append(conns, conn)
			}

			rotate(w.trusts(t))
			close(release)
			if rest, err := io.ReadAll(doubtedBody); err == nil || !strings.Contains(err.Error(), "not trusted any more") {
				t.Errorf("the call to the doubtful endpoint: %q, %v", rest, err)
			}
			io.WriteString(conns[0], "x")
			if _, err := conns[0].Read(make([]byte, 1)); err == nil || !strings.Contains(err.Error(), "not trusted any more") {
				t.Errorf("the connection to the doubtful endpoint: %v", err)
			}
			conns[0].Close()
			if err := <-ended; err == nil || !strings.Contains(err.Error(), "not trusted any more") {
				t.Errorf("the end of the connection, for observers: %v", err)
			}
			for i, body := range good {
				if rest, err := io.ReadAll(body); string(rest) != "ended\n" {
					t.Errorf("call %d to a trusted endpoint: %q, %v", i, rest, err)
				}
			}
			io.WriteString(conns[1], "x")
			if _, err := conns[1].Read(make([]byte, 1)); err != nil {
				t.Errorf("the connection to the trusted endpoint: %v", err)
			}
		})
	}
}

// An endpoint that cuts connections off in the handshake has got nothing of a request, so the call goes to another one. What it cuts off
// later may have been processed.
func TestHandshakesThatAreCutOff(t *testing.T) {
	for _, test := range []struct {
		name    string
		cut     func(*net.TCPConn, *tls.Config)
		retried bool
	}{
		{"at once", func(*net.TCPConn, *tls.Config) {}, true},
		{"by a reset", func(c *net.TCPConn, _ *tls.Config) { c.SetLinger(0) }, true},
		{"after the client's hello", func(c *net.TCPConn, _ *tls.Config) { c.Read(make([]byte, 4096)) }, true},
		{"by a reset after the client's hello", func(c *net.TCPConn, _ *tls.Config) {
			c.Read(make([]byte, 4096))
			c.SetLinger(0)
		}, true},
		{"within the server's hello", func(c *net.TCPConn, _ *tls.Config) {
			c.Read(make([]byte, 4096))
			c.Write([]byte{22, 3, 3, 0, 200, 2})
		}, true},
		{"after the handshake", func(c *net.TCPConn, config *tls.Config) {
			secure := tls.Server(c, config)
			secure.Handshake()
			secure.Read(make([]byte, 1))
		}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			w := newTown(t)
			good := w.serve(t, w.member(t, "payment-service", strict), "payment-service", says("paid"))
			ln := rawtest.Listen(t)
			config := &tls.Config{Certificates: []tls.Certificate{*w.identity(t, "payment-service").Certificate()}}
			rawtest.Serve(t, ln, func(conn net.Conn) { test.cut(conn.(*net.TCPConn), config) })
			bad := endpointOf(t, ln.Addr().String())
			bad.ServiceAccount = "payment-service"
			w.registry.Set("payment-service", bad, good)
			m := w.member(t, "order-service", strict)
			failed := 0
			for range 20 {
				resp, err := m.Client().Post("http://payment-service/", "", strings.NewReader("pay"))
				if err != nil {
					failed++
					continue
				}
				resp.Body.Close()
			}
			if (failed == 0) != test.retried {
				t.Errorf("%d of 20 calls failed, retried: %t", failed, test.retried)
			}
		})
	}
}

// An endpoint that is not trusted any more does not take what it has got for the whole, even if messages of its protocol end with the connection.
func TestPartsAreNotTakenForTheWholeByEndpoints(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	expires := time.Now().Add(time.Hour)
	certificate, authority := issueUnder(t, "raw", expires, expires)
	ended := make(chan error, 1)
	ln := tls.NewListener(rawtest.Listen(t), &tls.Config{ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{certificate}})
	rawtest.Serve(t, ln, func(conn net.Conn) {
		io.CopyN(conn, conn, 1)
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	})
	e := endpointOf(t, ln.Addr().String())
	e.ServiceAccount = "raw"
	w.registry.Set("raw", e)

	source, inForce := make(lateSource, 1), make(chan *tlsid.Identity, 2)
	source <- w.trusts(t, authority)
	m := w.member(t, "order-service", strict, mesh.WithIdentity(source), mesh.WithObserver(mesh.Observer{
		Identity: func(id *tlsid.Identity, _ error) { inForce <- id },
	}))
	<-inForce
	conn, err := m.DialContext(t.Context(), "tcp", "raw:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "x")
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	source <- w.trusts(t)
	<-inForce
	if err := <-ended; err == nil || err == io.EOF {
		t.Errorf("the endpoint reads %v, as if that were all", err)
	}
}
