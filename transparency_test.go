package mesh_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"reflect"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
)

func TestRequestStaysTheCallers(t *testing.T) {
	noLeaks(t)
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if r.Header.Get("x-route") != "api" {
			t.Error("the route's header is missing")
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	down := discovery.Endpoint{Address: "127.0.0.1", Port: 1}
	full := `
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: faulty}
spec:
  hosts: [faulty]
  http:
  - route: [{destination: {host: faulty}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: moved}
spec:
  hosts: [moved]
  http:
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: unsubset}
spec:
  hosts: [unsubset]
  http:
  - route: [{destination: {host: unsubset, subset: missing}}]
`
	m := newMesh(t, retryDocument+full, mesh.WithRegistryOnly(), mesh.WithDiscovery(discovery.Static{
		"api": {api}, "down": {down}, "empty": {}, "faulty": {api}, "moved": {api}, "unsubset": {api},
	}))
	closed := newMesh(t, "", mesh.WithDiscovery(discovery.Static{"api": {api}}))
	closed.Close()
	for _, test := range []struct {
		name, url string
		mesh      *mesh.Mesh
	}{
		{"retried", "http://api/", m},
		{"connection refused", "http://down/", m},
		{"no endpoints", "http://empty/", m},
		{"aborted", "http://faulty/", m},
		{"redirected", "http://moved/old", m},
		{"no route", "http://moved/other", m},
		{"unknown subset", "http://unsubset/", m},
		{"outside the mesh", "http://elsewhere/", m},
		{"mesh closed", "http://api/", closed},
	} {
		t.Run(test.name, func(t *testing.T) {
			body := &leak.Body{Reader: strings.NewReader("hello")}
			req, err := http.NewRequest(http.MethodPost, test.url, body)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Mine", "1")
			before, header, url := *req, req.Header.Clone(), *req.URL
			resp, err := test.mesh.Transport().RoundTrip(req)
			if err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
			if req.Body != before.Body || req.GetBody != nil || !reflect.DeepEqual(req.Header, header) || *req.URL != url ||
				req.Host != before.Host || req.ContentLength != before.ContentLength {
				t.Errorf("the request was changed: %+v", req)
			}
			// net/http may close the body a moment after the response has come.
			await.Done(func() bool { return body.Closed.Load() > 0 })
			if n := body.Closed.Load(); n != 1 {
				t.Errorf("the body was closed %d times, want once", n)
			}
		})
	}
}

func TestHTTPFeaturesAsWithTheBareTransport(t *testing.T) {
	noLeaks(t)
	flushed := make(chan struct{})
	api := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/upgrade":
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
			line, _ := rw.ReadString('\n')
			io.WriteString(conn, "echo "+line)
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			io.WriteString(w, "body")
			w.Header().Set("X-Sum", "42")
		case "/early":
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusOK)
		case "/nothing":
			w.WriteHeader(http.StatusNoContent)
		case "/continue":
			body, _ := io.ReadAll(r.Body)
			w.Write(body)
		case "/events":
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: 1\n\n")
			http.NewResponseController(w).Flush()
			<-flushed
			io.WriteString(w, "data: 2\n\n")
		}
	})
	m := newMesh(t, retryDocument, mesh.WithDiscovery(discovery.Static{"api": {api}}))
	c := m.Client()

	t.Run("101 keeps both directions", func(t *testing.T) {
		req, _ := http.NewRequest(http.MethodGet, "http://api/upgrade", nil)
		req.Header.Set("Connection", "Upgrade")
		req.Header.Set("Upgrade", "echo")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		conn, ok := resp.Body.(io.ReadWriteCloser)
		if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
			t.Fatalf("status %d, body %T", resp.StatusCode, resp.Body)
		}
		io.WriteString(conn, "hello\n")
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != "echo hello\n" {
			t.Errorf("read %q, %v", line, err)
		}
	})
	t.Run("trailers", func(t *testing.T) {
		a := get(t, c, "http://api/trailers")
		if got := a.resp.Trailer.Get("X-Sum"); got != "42" {
			t.Errorf("trailer %q, want 42", got)
		}
	})
	t.Run("1xx", func(t *testing.T) {
		var early string
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, header textproto.MIMEHeader) error { early = header["Link"][0]; return nil },
		})
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://api/early", nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if early != "</style.css>" {
			t.Errorf("early hint %q", early)
		}
	})
	t.Run("HEAD and 204", func(t *testing.T) {
		resp, err := c.Head("http://api/trailers")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if a := get(t, c, "http://api/nothing"); a.status != http.StatusNoContent || a.body != "" {
			t.Errorf("%d %q", a.status, a.body)
		}
	})
	t.Run("Expect: 100-continue", func(t *testing.T) {
		req, _ := http.NewRequest(http.MethodPost, "http://api/continue", strings.NewReader("payload"))
		req.Header.Set("Expect", "100-continue")
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if body, _ := io.ReadAll(resp.Body); string(body) != "payload" {
			t.Errorf("body %q", body)
		}
	})
	t.Run("server-sent events come as they are sent", func(t *testing.T) {
		resp, err := c.Get("http://api/events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		r := bufio.NewReader(resp.Body)
		if line, err := r.ReadString('\n'); line != "data: 1\n" {
			t.Fatalf("%q, %v", line, err)
		}
		close(flushed)
		rest, _ := io.ReadAll(r)
		if string(rest) != "\ndata: 2\n\n" {
			t.Errorf("rest %q", rest)
		}
	})
}

func TestResponseNamesTheService(t *testing.T) {
	noLeaks(t)
	api := serve(t, fails(http.StatusServiceUnavailable))
	m := newMesh(t, retryDocument, mesh.WithDiscovery(discovery.Static{"api": {api}}))
	req, _ := http.NewRequest(http.MethodGet, "http://api/x?y=z", nil)
	for name, rt := range map[string]http.RoundTripper{"retried": m.Transport()} {
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Request.URL.String(); got != "http://api/x?y=z" || resp.Request.Header.Get("x-route") != "" {
			t.Errorf("%s: resp.Request is %s %v, want the caller's view", name, got, resp.Request.Header)
		}
	}
}

// http.Client recognizes a server without TLS by an error that nothing wraps.
func TestServerWithoutTLS(t *testing.T) {
	noLeaks(t)
	api := serve(t, says("ok"))
	m := newMesh(t, retryDocument, mesh.WithDiscovery(discovery.Static{"api": {api}}))
	outside := newMesh(t, "")
	for name, call := range map[string]func() (*http.Response, error){
		"a service of the mesh": func() (*http.Response, error) { return m.Client().Get("https://api/") },
		"a host outside":        func() (*http.Response, error) { return outside.Client().Get("https://" + api.ID() + "/") },
		"retry alone": func() (*http.Response, error) {
			c := &http.Client{Transport: &retry.Transport{Config: retry.Config{Retries: 1, Backoff: -1}}}
			defer c.CloseIdleConnections()
			return c.Get("https://" + api.ID() + "/")
		},
	} {
		resp, err := call()
		if err == nil {
			resp.Body.Close()
		}
		if _, ok := errors.AsType[tls.RecordHeaderError](err); !ok || !errors.Is(err, http.ErrSchemeMismatch) ||
			!strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
			t.Errorf("%s: %v, want http.ErrSchemeMismatch", name, err)
		}
	}
}

func TestHostAndServerNameStayTheServices(t *testing.T) {
	noLeaks(t)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %d", r.Host, r.TLS.ServerName, r.ProtoMajor)
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	t.Cleanup(srv.Close)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate()) // for example.com
	// A TLSClientConfig without ForceAttemptHTTP2 means HTTP/1.1 with net/http alone.
	m := newMesh(t, "", mesh.WithTransport(&http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}),
		mesh.WithDiscovery(discovery.Static{"example.com": {endpointOf(t, srv.Listener.Addr().String())}}))
	if got := get(t, m.Client(), "https://example.com/").body; got != "example.com example.com 2" {
		t.Errorf("the server saw %q", got)
	}
}
