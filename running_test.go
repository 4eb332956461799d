package mesh_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// denyPath denies every peer the path /denied.
const denyPath = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: denied, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["/denied"]}}]}]}
`

func apply(t *testing.T, m *mesh.Mesh, documents string) {
	t.Helper()
	if err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(documents)}); err != nil {
		t.Fatal(err)
	}
}

// way is how a client speaks to a server.
type way struct {
	name          string
	http2, secure bool
}

var ways = []way{{"HTTP1", false, false}, {"HTTP2", true, false}, {"HTTP1 mTLS", false, true}, {"HTTP2 mTLS", true, true}}

// client returns a client for that protocol, with the service account order-service. All its requests are over in 20 s.
func (c way) client(t *testing.T, w *town) *http.Client {
	t.Helper()
	transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
	transport.Protocols.SetHTTP1(!c.http2)
	transport.Protocols.SetHTTP2(c.http2 && c.secure)
	transport.Protocols.SetUnencryptedHTTP2(c.http2 && !c.secure)
	if c.secure {
		id, err := w.Identity("default", "order-service")
		if err != nil {
			t.Fatal(err)
		}
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*id.Certificate()}}
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: time.Minute}
}

func (c way) url(address, path string) string {
	if c.secure {
		return "https://" + address + path
	}
	return "http://" + address + path
}

// serveWays serves h behind the inbound side of m, over all ways, and returns the address. listen is m.Listen or nothing. Middleware is
// put around the handler of the mesh.
func serveWays(t *testing.T, m *mesh.Mesh, listen func(net.Listener) net.Listener, h http.HandlerFunc, middleware ...func(http.Handler) http.Handler) string {
	t.Helper()
	inner := rawtest.Listen(t)
	srv := &http.Server{Handler: m.Handler(h), Protocols: new(http.Protocols)}
	for _, wrap := range middleware {
		srv.Handler = wrap(srv.Handler)
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(listen(inner)) })
	t.Cleanup(func() {
		srv.Close()
		serving.Wait()
		if !await.Done(func() bool { return mesh.Running(m) == 0 }) {
			t.Errorf("%d requests are still in the register", mesh.Running(m))
		}
	})
	return inner.Addr().String()
}

// running is what handlers of a kind do until they are ended. Each returns why it ended.
var runningHandlers = map[string]func(http.ResponseWriter, *http.Request) error{
	"events": func(w http.ResponseWriter, r *http.Request) error {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for range tick.C {
			// As servers do who let each write take its time.
			if err := http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Minute)); err != nil {
				return err
			}
			if _, err := io.WriteString(w, "data: x\n\n"); err != nil {
				return err
			}
			if err := http.NewResponseController(w).Flush(); err != nil {
				return err
			}
		}
		return nil
	},
	"long response": func(w http.ResponseWriter, r *http.Request) error {
		for {
			if _, err := w.Write(make([]byte, 64<<10)); err != nil { // until the client, which does not read, is behind
				return err
			}
		}
	},
	"upload": func(w http.ResponseWriter, r *http.Request) error {
		_, err := io.Copy(io.Discard, r.Body)
		return err
	},
	"wait beside an upload": func(w http.ResponseWriter, r *http.Request) error {
		<-r.Context().Done()
		return r.Context().Err()
	},
	"wait": func(w http.ResponseWriter, r *http.Request) error {
		<-r.Context().Done()
		return r.Context().Err()
	},
}

// A DENY ends the requests that it is about, and no other, over every kind of connection.
func TestDenialsEndRunningRequests(t *testing.T) {
	for _, way := range ways {
		for kind, handler := range runningHandlers {
			t.Run(way.name+"/"+kind, func(t *testing.T) {
				noLeaks(t)
				w := newTown(t)
				m := w.member(t, "payment-service", "")
				begun, ended := make(chan bool, 1), make(chan error, 1)
				address := serveWays(t, m, m.Listen, func(w http.ResponseWriter, r *http.Request) {
					http.NewResponseController(w).EnableFullDuplex() // HTTP/2 is
					w.WriteHeader(http.StatusOK)
					http.NewResponseController(w).Flush()
					if r.URL.Path == "/echo" {
						line := bufio.NewReader(r.Body)
						for {
							text, err := line.ReadString('\n')
							if err != nil {
								return
							}
							io.WriteString(w, text)
							http.NewResponseController(w).Flush()
						}
					}
					begun <- true
					ended <- handler(w, r)
				})
				client := way.client(t, w)
				echo := startEcho(t, client, way.url(address, "/echo"))
				echo("before")

				var body io.Reader
				if kind == "upload" || kind == "wait beside an upload" {
					in, out := io.Pipe()
					go out.Write([]byte("the first part"))
					defer out.Close()
					body = in
				}
				result := make(chan error, 1)
				go func() {
					req, err := http.NewRequest(http.MethodPost, way.url(address, "/denied"), body)
					if err != nil {
						result <- err
						return
					}
					resp, err := client.Do(req)
					if err != nil {
						result <- err
						return
					}
					defer resp.Body.Close()
					if kind == "long response" {
						<-ended
					}
					_, err = io.Copy(io.Discard, resp.Body)
					result <- err
				}()
				await.Receive(t, "the request to begin", begun)
				apply(t, m, denyPath)
				if kind != "long response" {
					if err := await.Receive(t, "the handler to end", ended); err == nil {
						t.Error("the handler saw no error")
					}
				}
				var timeout net.Error
				if err := await.Receive(t, "the client to see the end", result); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("the client saw %v, want that it was cut off", err)
				}
				echo("after")
				if a, err := try(client, way.url(address, "/denied")); err != nil || a.status != http.StatusForbidden {
					t.Errorf("the next request: %d, %v, want 403", a.status, err)
				}
			})
		}
	}
}

// startEcho begins a request whose lines are sent back, and returns what sends one.
func startEcho(t *testing.T, client *http.Client, url string) func(line string) {
	t.Helper()
	in, out := io.Pipe()
	t.Cleanup(func() { out.Close() })
	req, err := http.NewRequest(http.MethodPost, url, in)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewReader(resp.Body)
	return func(line string) {
		t.Helper()
		io.WriteString(out, line+"\n")
		if got, err := lines.ReadString('\n'); got != line+"\n" {
			t.Fatalf("a request that is allowed: %q, %v", got, err)
		}
	}
}

// What a handler reads or writes that asked for the connection itself is cut off too, also after the handler has returned, and
// whatever listener the connection came from.
func TestDenialsEndConnectionsThatWereTakenOver(t *testing.T) {
	for _, test := range []struct {
		name     string
		way      way
		foreign  bool // a listener that is not the mesh's
		returns  bool // the handler returns
		announce bool // as an upgrade
	}{
		{name: "websocket", way: ways[0], announce: true},
		{name: "websocket over mTLS", way: ways[2], announce: true},
		{name: "handler has returned", way: ways[0], announce: true, returns: true},
		{name: "handler has returned, over mTLS", way: ways[2], announce: true, returns: true},
		{name: "not announced", way: ways[0], returns: true},
		{name: "another listener", way: ways[0], foreign: true, announce: true},
		{name: "another listener, handler has returned", way: ways[0], foreign: true, returns: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			noLeaks(t)
			w := newTown(t)
			m := w.member(t, "payment-service", "")
			listen := m.Listen
			if test.foreign {
				listen = func(l net.Listener) net.Listener { return l }
			}
			ended := make(chan error, 2)
			var serving sync.WaitGroup
			t.Cleanup(serving.Wait)
			address := serveWays(t, m, listen, func(w http.ResponseWriter, r *http.Request) {
				conn, rw, err := http.NewResponseController(w).Hijack()
				if err != nil {
					ended <- err
					return
				}
				io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
				serve := func() {
					defer conn.Close()
					for {
						line, err := rw.ReadString('\n')
						if err == nil {
							_, err = io.WriteString(conn, line)
						}
						if err != nil {
							ended <- err
							return
						}
					}
				}
				if test.returns {
					serving.Go(serve)
				} else {
					serve()
				}
			})
			dial := func(path string) (net.Conn, *bufio.Reader) {
				t.Helper()
				conn, err := net.Dial("tcp", address)
				if err != nil {
					t.Fatal(err)
				}
				if test.way.secure {
					conn = tls.Client(conn, test.way.client(t, w).Transport.(*http.Transport).TLSClientConfig)
				}
				t.Cleanup(func() { conn.Close() })
				conn.SetDeadline(time.Now().Add(time.Minute))
				header := "Connection: Upgrade\r\nUpgrade: websocket\r\n"
				if !test.announce {
					header = ""
				}
				fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: payment-service\r\n%s\r\n", path, header)
				lines := bufio.NewReader(conn)
				resp, err := http.ReadResponse(lines, nil)
				if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
					t.Fatalf("%v, %v", resp, err)
				}
				return conn, lines
			}
			exchange := func(conn net.Conn, lines *bufio.Reader) error {
				io.WriteString(conn, "hello\n")
				_, err := lines.ReadString('\n')
				return err
			}
			other, otherLines := dial("/other")
			denied, deniedLines := dial("/denied")
			for range 2 {
				if err := exchange(denied, deniedLines); err != nil {
					t.Fatal(err)
				}
				if err := exchange(other, otherLines); err != nil {
					t.Fatal(err)
				}
			}
			apply(t, m, denyPath)
			if err := await.Receive(t, "the handler to end", ended); err == nil {
				t.Error("the handler saw no error")
			}
			var timeout net.Error
			if err := exchange(denied, deniedLines); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("the client saw %v, want that it was cut off", err)
			}
			if err := exchange(other, otherLines); err != nil {
				t.Errorf("a connection that is allowed: %v", err)
			}
			if test.returns && !await.Done(func() bool { return mesh.Running(m) == 1 }) {
				t.Errorf("%d are in the register, want one", mesh.Running(m))
			}
			other.Close()
			await.Receive(t, "the handler to end", ended)
		})
	}
}

// A request does not outlive the trust in its peer, nor the certificate, and the other one of the connection's two ends does not
// matter: each is told to observers.
func TestRunningRequestsEndWithTheirBundle(t *testing.T) {
	for _, way := range ways[2:] {
		t.Run(way.name, func(t *testing.T) {
			noLeaks(t)
			towns := []*town{newTown(t), newTown(t)}
			source := make(lateSource, 1)
			issue := func(i int) {
				t.Helper()
				id, err := towns[i].Identity("default", "payment-service")
				if err != nil {
					t.Fatal(err)
				}
				source <- id
			}
			issue(0)
			seen := make(chan mesh.Inbound, 2)
			m := newMesh(t, "", mesh.WithEmptyPolicy(), mesh.WithIdentity(source), mesh.WithObserver(mesh.Observer{
				InboundEnd: func(_ context.Context, in *mesh.Inbound) { seen <- *in },
			}))
			begun, ended := make(chan bool, 1), make(chan error, 1)
			address := serveWays(t, m, m.Listen, func(w http.ResponseWriter, r *http.Request) {
				begun <- true
				<-r.Context().Done()
				ended <- context.Cause(r.Context())
			})
			result := make(chan error, 1)
			go func() {
				_, err := try(way.client(t, towns[0]), way.url(address, "/"))
				result <- err
			}()
			await.Receive(t, "the request to begin", begun)
			issue(1)
			if err := await.Receive(t, "the handler to end", ended); err == nil || !strings.Contains(err.Error(), "access was withdrawn") {
				t.Errorf("the handler's context ended because of %v", err)
			}
			var timeout net.Error
			if err := await.Receive(t, "the client to see the end", result); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
				t.Errorf("the client saw %v, want that it was cut off", err)
			}
			in := await.Receive(t, "observers to be told", seen)
			if _, ok := errors.AsType[*tlsid.PeerError](in.PeerErr); !ok || in.Decision.Allowed || in.Status != 0 {
				t.Errorf("observers saw %v, %+v and status %d; want a *tlsid.PeerError, a denial and no status", in.PeerErr, in.Decision, in.Status)
			}
		})
	}
}

// A request ends when the certificate of its peer expires, whoever terminates TLS.
func TestRunningRequestsEndWithTheirCertificate(t *testing.T) {
	for name, ours := range map[string]bool{"listener of the mesh": true, "another listener": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newTown(t)
				server, err := w.Identity("default", "payment-service")
				if err != nil {
					t.Fatal(err)
				}
				ttl := w.TTL
				w.TTL = time.Minute
				client, err := w.Identity("default", "order-service")
				if err != nil {
					t.Fatal(err)
				}
				w.TTL = ttl
				m := w.member(t, "payment-service", "") // which rotates its identity from here on
				var network memnet.Network
				inner := network.Listen("10.0.0.1:80")
				listener := tls.NewListener(inner, &tls.Config{
					Certificates: []tls.Certificate{*server.Certificate()}, ClientAuth: tls.RequireAnyClientCert,
				})
				if ours {
					listener = m.Listen(inner)
				}
				ended := make(chan time.Time, 1)
				srv := &http.Server{Handler: m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					<-r.Context().Done()
					ended <- time.Now()
				}))}
				var serving sync.WaitGroup
				serving.Go(func() { srv.Serve(listener) })
				transport := &http.Transport{DialContext: network.DialContext, TLSClientConfig: &tls.Config{
					InsecureSkipVerify: true, Certificates: []tls.Certificate{*client.Certificate()},
				}}
				if _, err := try(&http.Client{Transport: transport, Timeout: time.Hour}, "https://10.0.0.1:80/"); err == nil {
					t.Error("the request was answered")
				}
				if at := <-ended; at.Before(client.NotAfter()) || at.After(client.NotAfter().Add(time.Second)) {
					t.Errorf("the request ended at %s, its certificate at %s", at, client.NotAfter())
				}
				transport.CloseIdleConnections()
				srv.Close()
				serving.Wait()
				m.Close()
			})
		})
	}
}

// Later decisions about a request depend on what arrived, not on what its handler changes.
func TestHandlersThatChangeTheirRequestHideNothing(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", "")
	begun, ended := make(chan bool, 2), make(chan string, 2)
	address := serveWays(t, m, m.Listen, func(w http.ResponseWriter, r *http.Request) {
		user := r.Header.Get("X-User")
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		begun <- true
		for i := 0; r.Context().Err() == nil; i++ { // the race detector looks on
			r.Header["X-User"][0] = "somebody"
			r.Header.Set("X-User", fmt.Sprint(i))
			r.URL.Path, r.Method, r.Host = "/", "PUT", "elsewhere"
			<-tick.C
		}
		ended <- user
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var calls sync.WaitGroup
	defer calls.Wait()
	defer cancel()
	client := ways[0].client(t, w)
	for _, user := range []string{"mallory", "alice"} {
		calls.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/", nil)
			req.Header.Set("X-User", user)
			if resp, err := client.Do(req); err == nil {
				resp.Body.Close()
			}
		})
	}
	await.Receive(t, "the request to begin", begun)
	await.Receive(t, "the request to begin", begun)
	for range 3 {
		apply(t, m, `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: mallory, namespace: default}
spec: {action: DENY, rules: [{when: [{key: "request.headers[x-user]", values: [mallory]}]}]}
`)
	}
	if user := await.Receive(t, "the handler to end", ended); user != "mallory" {
		t.Errorf("the request of %s ended", user)
	}
	if !await.Done(func() bool { return mesh.Running(m) == 1 }) {
		t.Errorf("%d requests are left, want one", mesh.Running(m))
	}
}

// Documents change while requests come and go: each is denied or answered, and nothing of it stays.
func TestDocumentsChangeWhileRequestsComeAndGo(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", "")
	var served atomic.Int64
	address := serveWays(t, m, m.Listen, func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		io.WriteString(w, "hello")
	})
	var calls sync.WaitGroup
	for _, way := range ways {
		client := way.client(t, w)
		calls.Go(func() {
			for range 50 {
				a, err := try(client, way.url(address, "/denied"))
				if err == nil && a.status != http.StatusForbidden && a.body != "hello" {
					t.Errorf("%s: %d %q", way.name, a.status, a.body)
				}
			}
		})
	}
	for i := range 20 {
		apply(t, m, []string{denyPath, strings.Replace(denyPath, "/denied", "/other", 1)}[i%2])
	}
	calls.Wait()
	for _, way := range ways {
		if a := get(t, way.client(t, w), way.url(address, "/denied")); a.body != "hello" {
			t.Errorf("%s: %d %q after the last change", way.name, a.status, a.body)
		}
	}
}

// What knows about a request is about another one when the handler has returned. A goroutine of the handler that takes over the connection
// then would be judged by that.
func TestHijackAfterTheHandlerHasReturned(t *testing.T) {
	m := newMesh(t, "")
	var kept http.ResponseWriter
	h := m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { kept = w }))
	hijacked := make(chan error, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		conn, _, err := http.NewResponseController(kept).Hijack()
		if err == nil {
			conn.Close()
		}
		hijacked <- err
	}))
	defer srv.Close()
	if a, err := try(srv.Client(), srv.URL); err != nil || a.status != http.StatusOK {
		t.Errorf("the request: %d %q, %v", a.status, a.body, err)
	}
	if err := <-hijacked; err == nil {
		t.Error("the connection was taken over")
	}
}
