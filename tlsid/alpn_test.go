package tlsid_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/tlsid"
)

// A server takes the protocols that Istio's sidecars offer, and speaks what they speak.
func TestServerTakesWhatSidecarsOffer(t *testing.T) {
	e := newEnds(t, time.Hour, time.Hour)
	l := listen(t, tlsid.ListenerConfig{TLS: e.server})
	serveHTTP(t, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	for _, tt := range []struct {
		offered []string
		chosen  string
	}{
		{[]string{"istio-peer-exchange", "istio"}, ""},
		{[]string{"istio-http/1.0", "istio", "http/1.0"}, ""},
		{[]string{"istio-http/1.1", "istio", "http/1.1"}, "http/1.1"},
		{[]string{"istio-h2", "istio", "h2"}, "h2"},
		{[]string{"istio-peer-exchange", "istio", "h2"}, "h2"},
		{nil, ""},
	} {
		config := e.client.Clone()
		config.NextProtos = tt.offered
		c, err := tls.Dial("tcp", l.Addr().String(), config)
		if err != nil {
			t.Errorf("offering %q: %v", tt.offered, err)
			continue
		}
		c.SetDeadline(time.Now().Add(time.Minute))
		if got := c.ConnectionState().NegotiatedProtocol; got != tt.chosen {
			t.Errorf("offering %q: %q was chosen, want %q", tt.offered, got, tt.chosen)
		}
		if tt.chosen != "h2" {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
			if got, err := io.ReadAll(c); !strings.HasSuffix(string(got), "HTTP/1.1") || err != nil {
				t.Errorf("offering %q: %q, %v", tt.offered, got, err)
			}
		}
		c.Close()
	}
	config := e.client.Clone()
	config.NextProtos = []string{"postgresql"}
	if c, err := tls.Dial("tcp", l.Addr().String(), config); err == nil {
		c.Close()
		t.Error("a protocol that the server does not speak is accepted")
	}
}

// The client says that it belongs to the mesh as Istio's sidecars look for it, and speaks what the server chooses.
func TestClientOffersWhatSidecarsTakeForTheMesh(t *testing.T) {
	e, stalls := newEnds(t, time.Hour, time.Hour), await.WatchStalls(t)
	for _, speaks := range [][]string{{"h2", "http/1.1"}, {"http/1.1"}, {"istio", "h2"}, nil} {
		offered := make(chan []string, 10)
		config := e.server.Clone()
		config.NextProtos = speaks
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			offered <- slices.Clone(hello.SupportedProtos)
			return nil, nil
		}
		l, err := tls.Listen("tcp", "127.0.0.1:0", config)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan struct{})
		want := "HTTP/1.1"
		if slices.Equal(speaks, []string{"h2", "http/1.1"}) {
			want = "HTTP/2.0"
		}
		go func() {
			defer close(served)
			if slices.Contains(speaks, "istio") { // which net/http's server does not know
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 8\r\n\r\n%s", r.Proto)
				}
				return
			}
			srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })}
			srv.Serve(l)
		}()
		transport := &http.Transport{TLSClientConfig: e.client.Clone(), ForceAttemptHTTP2: true}
		c := &http.Client{Transport: transport, Timeout: time.Minute}
		began := time.Now()
		got, err := get(c, "https://"+l.Addr().String())
		if err != nil && stalls.Excuse(began) { // net/http's server waits for 10 s for the first frame
			got, err = get(c, "https://"+l.Addr().String())
		}
		if err != nil || got != want {
			t.Errorf("a server that speaks %q: %q, %v, want %q", speaks, got, err, want)
		}
		if got := <-offered; !slices.Equal(got, []string{"istio", "h2", "http/1.1"}) {
			t.Errorf("the client offers %q", got)
		}
		transport.CloseIdleConnections()
		l.Close()
		<-served
	}
}
