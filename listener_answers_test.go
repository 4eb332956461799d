package mesh_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/rawtest"
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
