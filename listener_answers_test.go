package mesh_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/tlsid"
)

// warnings returns an option that collects the messages of remarks with a text, and a function that returns them.
func warnings(text string) (mesh.Option, func() []string) {
	var mu sync.Mutex
	var got []string
	return mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) {
			mu.Lock()
			defer mu.Unlock()
			for _, f := range l.Findings {
				if strings.Contains(f.Message, text) {
					got = append(got, f.Message)
				}
			}
		}}), func() []string {
			mu.Lock()
			defer mu.Unlock()
			return got
		}
}

// A second server over Mesh.Listen that forgets Mesh.Handler is noticed, whatever the first one has.
func TestAnswersThatNoHandlerSees(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	http1, http2, h2c := new(http.Protocols), new(http.Protocols), new(http.Protocols)
	http1.SetHTTP1(true)
	http2.SetHTTP2(true)
	h2c.SetUnencryptedHTTP2(true)
	both := new(http.Protocols)
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	both.SetUnencryptedHTTP2(true)
	for name, tt := range map[string]struct {
		scheme    string
		protocols *http.Protocols
	}{"HTTP/1": {"http://", http1}, "HTTP/1 over TLS": {"https://", http1}, "HTTP/2": {"https://", http2}, "h2c": {"http://", h2c}} {
		t.Run(name, func(t *testing.T) {
			observer, told := warnings("comes to no Mesh.Handler")
			m := w.member(t, "payment-service", denyOrders, observer)
			serve := func(h http.Handler) (address string) {
				ln := rawtest.Listen(t)
				srv := &http.Server{Handler: h, Protocols: both}
				var serving sync.WaitGroup
				serving.Go(func() { srv.Serve(m.Listen(ln)) })
				t.Cleanup(func() { srv.Close(); serving.Wait() })
				return ln.Addr().String()
			}
			client := func() *http.Client {
				tr := &http.Transport{Protocols: tt.protocols, TLSClientConfig: &tls.Config{
					InsecureSkipVerify: true, Certificates: []tls.Certificate{*w.identity(t, "web").Certificate()},
				}}
				t.Cleanup(tr.CloseIdleConnections)
				return &http.Client{Transport: tr}
			}
			behind, without := serve(m.Handler(says("hello"))), serve(says("hello"))
			for range 3 {
				if a, err := try(client(), tt.scheme+behind); err != nil || a.body != "hello" {
					t.Fatalf("behind a Handler: %q, %v", a.body, err)
				}
			}
			if got := told(); len(got) != 0 {
				t.Errorf("of a server with a Handler observers are told %q", got)
			}
			c := client() // which keeps its connection
			for range 3 {
				if a, err := try(c, tt.scheme+without); err != nil || a.body != "hello" {
					t.Fatalf("without a Handler: %q, %v", a.body, err)
				}
			}
			if got := told(); len(got) != 1 || !strings.Contains(got[0], without) {
				t.Errorf("of a server without a Handler, at %s, observers are told %q, want one warning", without, got)
			}
		})
	}
}

// What a server writes by itself, before any request or because of a malformed one, is no answer.
func TestWhatServersWriteByThemselvesIsNoAnswer(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	observer, told := warnings("comes to no Mesh.Handler")
	m := w.member(t, "payment-service", denyOrders, observer)
	ln := rawtest.Listen(t)
	srv := &http.Server{Handler: m.Handler(says("hello"))}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(m.Listen(ln)) })
	t.Cleanup(func() { srv.Close(); serving.Wait() })

	plain, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(plain, "GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
	if got, err := io.ReadAll(plain); !strings.HasPrefix(string(got), "HTTP/1.1 400") {
		t.Errorf("a malformed request is answered with %q, %v", got, err)
	}
	plain.Close()
	for _, protocols := range [][]string{{"h2"}, {"http/1.1"}} {
		conn, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{
			InsecureSkipVerify: true, NextProtos: protocols, Certificates: []tls.Certificate{*w.identity(t, "web").Certificate()},
		})
		if err != nil {
			t.Fatal(err)
		}
		if protocols[0] == "h2" {
			conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"))
			if _, err := conn.Read(make([]byte, 1000)); err != nil {
				t.Error(err)
			}
			conn.Write([]byte("\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678")) // a ping
			if _, err := conn.Read(make([]byte, 1000)); err != nil {
				t.Error(err)
			}
		}
		conn.Close()
	}
	if got := told(); len(got) != 0 {
		t.Errorf("observers are told %q", got)
	}
}

// A connection ends when its peer is no longer vouched for because a certificate has expired, or when nobody can vouch, although nothing else
// changes.
func TestAcceptedConnectionsEndWithWhatVouchesForThem(t *testing.T) {
	for name, ownExpires := range map[string]bool{"the authority of the peer": false, "the own identity": true} {
		for _, handled := range []bool{false, true} {
			if ownExpires && handled {
				continue // that decides about the next request
			}
			t.Run(fmt.Sprintf("%s, Handler %v", name, handled), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					began := time.Now()
					soon, late := began.Add(time.Minute), began.Add(time.Hour)
					own, ownAuthority := issueUnder(t, "payment-service", late, late)
					peer, peerAuthority := issueUnder(t, "web", soon, late)
					if ownExpires {
						own, ownAuthority = issueUnder(t, "payment-service", soon, late)
						peer, peerAuthority = issueUnder(t, "web", late, late)
					}
					leaf, err := x509.ParseCertificate(own.Certificate[0])
					if err != nil {
						t.Fatal(err)
					}
					id, err := tlsid.NewIdentity(&x509svid.SVID{Certificates: []*x509.Certificate{leaf}, PrivateKey: own.PrivateKey.(crypto.Signer)},
						x509bundle.FromX509Authorities(spiffeid.RequireTrustDomainFromString("cluster.local"), []*x509.Certificate{ownAuthority, peerAuthority}))
					if err != nil {
						t.Fatal(err)
					}
					source := make(lateSource, 1)
					source <- id
					m := newMesh(t, strings.Replace(strict, "STRICT", "PERMISSIVE", 1), mesh.WithIdentity(source))
					srv := &http.Server{Handler: says("hello")}
					if handled {
						srv.Handler = m.Handler(srv.Handler)
					}
					var network memnet.Network
					go srv.Serve(m.Listen(network.Listen("10.0.0.1:80")))
					defer srv.Close()
					raw, err := network.DialContext(t.Context(), "tcp", "10.0.0.1:80")
					if err != nil {
						t.Fatal(err)
					}
					defer raw.Close()
					c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{peer}})
					if err := c.Handshake(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(20 * time.Second)
					io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					if n, err := c.Read(make([]byte, 1000)); n == 0 || err != nil {
						t.Fatalf("a request before that: %d bytes, %v", n, err)
					}
					c.SetReadDeadline(soon.Add(time.Second))
					if n, err := c.Read(make([]byte, 1)); n > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error("the connection goes on")
					}
				})
			})
		}
	}
}

// What a denied peer has got is not taken for the whole, even by protocols whose messages end with the connection.
func TestPartsAreNotTakenForTheWhole(t *testing.T) {
	noLeaks(t)
	for name, documents := range map[string]string{
		"denied": strict + "---" + denyOrders, "STRICT turns to DISABLE": strings.Replace(strict, "STRICT", "DISABLE", 1),
	} {
		t.Run(name, func(t *testing.T) {
			w := newTown(t)
			m := w.member(t, "postgres", strict)
			ln := rawtest.Listen(t)
			rawtest.Serve(t, m.ListenTCP(ln), func(conn net.Conn) {
				io.WriteString(conn, "a part")
				io.Copy(io.Discard, conn)
			})
			client, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{
				InsecureSkipVerify: true, Certificates: []tls.Certificate{*w.identity(t, "order-service").Certificate()},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			if _, err := io.ReadFull(client, make([]byte, len("a part"))); err != nil {
				t.Fatal(err)
			}
			apply(t, m, documents)
			if _, err := client.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("the client reads %v, as if that were all", err)
			}
		})
	}
}
