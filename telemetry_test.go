package mesh_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/route"
)

// watcher keeps what observers get at the end of calls and requests.
type watcher struct {
	t        *testing.T
	calls    chan mesh.Call
	attempts chan mesh.Attempt
	inbound  chan mesh.Inbound
}

func newWatcher(t *testing.T) *watcher {
	return &watcher{t, make(chan mesh.Call, 10), make(chan mesh.Attempt, 10), make(chan mesh.Inbound, 10)}
}

// calling returns an observer of calls, which sends metadata about this process as metrics do.
func (w *watcher) calling() mesh.Option {
	return mesh.WithObserver(mesh.Observer{
		AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			if a.Call.Last != a || a.Call.Target.Host == "" || a.Peer == nil {
				w.t.Errorf("an attempt of a call to %v starts with the peer %v", a.Call.Target, a.Peer)
			}
			a.Sent.SetHeader("X-Envoy-Peer-Metadata", "client")
			a.Sent.SetHeader("X-Envoy-Peer-Metadata-Id", "client's")
			return ctx
		},
		AttemptEnd: func(_ context.Context, a *mesh.Attempt) {
			ended := *a
			ended.ResponseHeader = a.ResponseHeader.Clone()
			w.attempts <- ended
		},
		CallEnd: func(_ context.Context, c *mesh.Call) {
			ended := *c
			ended.ResponseHeader = c.ResponseHeader.Clone()
			if c.Last != nil {
				last := *c.Last
				ended.Last = &last
			}
			w.calls <- ended
		},
	})
}

// serving returns an observer of requests, which answers with metadata about this process as metrics do.
func (w *watcher) serving() mesh.Option {
	return mesh.WithObserver(mesh.Observer{
		InboundStart: func(ctx context.Context, in *mesh.Inbound) context.Context {
			if v := in.Request.Header.Get("X-Envoy-Peer-Metadata"); v != "" {
				in.ResponseHeader.Set("X-Envoy-Peer-Metadata", "server, to "+v)
				in.ResponseHeader.Set("X-Envoy-Peer-Metadata-Id", "server's")
			}
			return ctx
		},
		InboundEnd: func(_ context.Context, in *mesh.Inbound) {
			ended := *in
			ended.ResponseHeader = in.ResponseHeader.Clone()
			w.inbound <- ended
		},
	})
}

// streamed hides the length of a body.
type streamed struct{ io.Reader }

// Both sides learn the identity of the other, how much was sent, and the headers. What peers tell each other is for observers
// alone.
func TestObserversOfBothSides(t *testing.T) {
	noLeaks(t)
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for name, body := range map[string]func() io.Reader{
			"known length":   func() io.Reader { return strings.NewReader("12345") },
			"unknown length": func() io.Reader { return streamed{strings.NewReader("12345")} },
		} {
			t.Run(proto+", "+name, func(t *testing.T) {
				w, seen := newTown(t), newWatcher(t)
				m := w.member(t, "payment-service", strict, seen.serving())
				w.serve(t, m, "payment-service", func(w http.ResponseWriter, r *http.Request) {
					for name := range r.Header {
						if strings.HasPrefix(name, "X-Envoy-Peer") {
							t.Errorf("the handler sees %s", name)
						}
					}
					w.Header().Set("X-Payment", "yes")
					sent, _ := io.ReadAll(r.Body)
					fmt.Fprintf(w, "%s and 678", sent)
				})
				client := w.member(t, "order-service", strict, seen.calling(), mesh.WithTransport(speaking(proto)))
				var peers []*discovery.Endpoint
				for range 2 {
					req, err := http.NewRequest("POST", "http://payment-service/", body())
					if err != nil {
						t.Fatal(err)
					}
					resp, err := client.Client().Do(req)
					if err != nil {
						t.Fatal(err)
					}
					data, err := io.ReadAll(resp.Body)
					resp.Body.Close()
					if string(data) != "12345 and 678" || err != nil || resp.Header.Get("X-Payment") != "yes" {
						t.Errorf("%q, %v, %v", data, err, resp.Header)
					}
					for name := range resp.Header {
						if strings.HasPrefix(name, "X-Envoy-Peer") {
							t.Errorf("the caller sees %s", name)
						}
					}
					c, a, in := <-seen.calls, <-seen.attempts, <-seen.inbound
					if c.Outside || c.BytesSent != 5 || c.BytesReceived != 13 {
						t.Errorf("the caller's observer: outside %v, %d bytes sent and %d received", c.Outside, c.BytesSent, c.BytesReceived)
					}
					if in.BytesReceived != 5 || in.BytesSent != 13 {
						t.Errorf("the server's observer: %d bytes received and %d sent", in.BytesReceived, in.BytesSent)
					}
					for _, h := range []http.Header{c.ResponseHeader, a.ResponseHeader, in.ResponseHeader} {
						if h.Get("X-Envoy-Peer-Metadata") != "server, to client" || h.Get("X-Envoy-Peer-Metadata-Id") == "" || h.Get("X-Payment") != "yes" {
							t.Errorf("an observer saw the header %v", h)
						}
					}
					const id = "spiffe://cluster.local/ns/default/sa/payment-service"
					if a.PeerID != id || a.Peer.ServiceAccount != "payment-service" || in.Peer != "spiffe://cluster.local/ns/default/sa/order-service" {
						t.Errorf("the peers are %q (%+v) and %q", a.PeerID, a.Peer, in.Peer)
					}
					if c.Last == nil || c.Last.Number != 1 || c.Last.Status != 200 || c.Last.PeerID != id {
						t.Errorf("the last attempt is %+v", c.Last)
					}
					peers = append(peers, a.Peer)
				}
				if peers[0] != peers[1] {
					t.Error("the pointer to the peer changes between calls")
				}
			})
		}
	}
}

// The pointer stays as long as discovery says the same, however often.
func TestPeerOfAnAttempt(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	seen := newWatcher(t)
	e := labeled(serve(t, says("ok")), "version", "v1")
	updated := make(chan int, 10)
	m := newMesh(t, "", mesh.WithDiscovery(&registry), seen.calling(), mesh.WithObserver(mesh.Observer{
		Endpoints: func(_ route.Target, n int) { updated <- n },
	}))
	sets := 0
	peer := func(e discovery.Endpoint) *discovery.Endpoint {
		set := []discovery.Endpoint{e}
		for range sets { // so that each set is another one
			set = append(set, discovery.Endpoint{Address: "127.0.0.1", Port: 1 + len(set), Draining: true})
		}
		registry.Set("api", set...)
		if sets++; sets > 1 {
			for n := range updated {
				if n == sets {
					break
				}
			}
		}
		get(t, m.Client(), "http://api/")
		<-seen.calls
		return (<-seen.attempts).Peer
	}
	first, again := peer(e), peer(labeled(e, "version", "v1"))
	other := peer(labeled(e, "version", "v2"))
	if first != again {
		t.Error("the pointer changes though nothing else does")
	}
	if other == first || first.Labels["version"] != "v1" || other.Labels["version"] != "v2" {
		t.Errorf("of an endpoint that is described differently: %+v, then %+v", first, other)
	}
}

// A host outside the mesh is told from one within, whether it may be called or not.
func TestObserversOfCallsOutside(t *testing.T) {
	noLeaks(t)
	out := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Out", "side")
		io.WriteString(w, "hello")
	})
	for _, refused := range []bool{false, true} {
		seen := newWatcher(t)
		options := []mesh.Option{mesh.WithDiscovery(new(discovery.Memory)), seen.calling()}
		if refused {
			options = append(options, mesh.WithRegistryOnly())
		}
		m := newMesh(t, "", options...)
		resp, err := m.Client().Post("http://"+addressOf(out), "text/plain", streamed{strings.NewReader("123")})
		if err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		c := <-seen.calls
		if !c.Outside || c.Last != nil || errors.Is(err, mesh.ErrNotInMesh) != refused {
			t.Errorf("refused: %v: outside %v, attempt %v, %v", refused, c.Outside, c.Last, err)
		}
		if !refused && (c.BytesSent != 3 || c.BytesReceived != 5 || c.ResponseHeader.Get("X-Out") != "side") {
			t.Errorf("%d bytes sent, %d received, header %v", c.BytesSent, c.BytesReceived, c.ResponseHeader)
		}
		if refused && (c.BytesSent != 0 || c.ResponseHeader != nil) {
			t.Errorf("of a call that was refused: %d bytes sent, header %v", c.BytesSent, c.ResponseHeader)
		}
	}
}

// Observers see the header of the server, and not what a document makes of it. An answer of the mesh is seen as it is.
func TestResponseHeaderOfObservers(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	registry.Set("api", serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-By", "server") }))
	seen := newWatcher(t)
	m := newMesh(t, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - match: [{uri: {prefix: /old}}]
    redirect: {uri: /new}
  - route: [{destination: {host: api}, headers: {response: {set: {X-By: document}}}}]
`, mesh.WithDiscovery(&registry), seen.calling())
	if a := get(t, m.Client(), "http://api/"); a.header.Get("X-By") != "document" {
		t.Errorf("the caller got %v", a.header)
	}
	if c := <-seen.calls; c.ResponseHeader.Get("X-By") != "server" {
		t.Errorf("the observer saw %v", c.ResponseHeader)
	}
	client := m.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	get(t, client, "http://api/old")
	if c := <-seen.calls; c.ResponseHeader.Get("Location") == "" || c.Last != nil || c.Outside {
		t.Errorf("of a redirect the observer saw %v, attempt %v, outside %v", c.ResponseHeader, c.Last, c.Outside)
	}
}

// What was sent twice for a retry was sent once by the caller.
func TestBytesOfARetriedCall(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	var once sync.Once
	registry.Set("api", serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		once.Do(func() { w.WriteHeader(503) })
	}))
	seen := newWatcher(t)
	m := newMesh(t, virtualService("retries: {attempts: 1, retryOn: 5xx}"), mesh.WithDiscovery(&registry), seen.calling())
	req, err := http.NewRequest("PUT", "http://api/", streamed{strings.NewReader("1234567")})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if c := <-seen.calls; c.BytesSent != 7 || c.Attempts != 2 || c.Last.Number != 2 || c.Last.Status != 200 {
		t.Errorf("%d bytes in %d attempts, the last of which is %d with %d", c.BytesSent, c.Attempts, c.Last.Number, c.Last.Status)
	}
}

// looking is a transport that says which body it was given.
type looking struct{ body io.ReadCloser }

func (l *looking) RoundTrip(req *http.Request) (*http.Response, error) {
	l.body = req.Body
	return noopTransport{}.RoundTrip(req)
}

// net/http sends a body in the best way that the body has, so it must see what it is.
func TestBodyOfKnownLengthIsNotWrapped(t *testing.T) {
	noLeaks(t)
	seen, sent := newWatcher(t), &looking{}
	m := newMesh(t, virtualService("retries: {attempts: 0}"), mesh.WithDiscovery(discovery.Static{"api": {{Address: "10.0.0.1", Port: 80}}}), seen.calling())
	mesh.ReplaceConnections(m, sent)
	req, err := http.NewRequest("POST", "http://api/", bytes.NewReader(make([]byte, 100)))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if sent.body != req.Body {
		t.Errorf("the transport was given a %T", sent.body)
	}
	if c := <-seen.calls; c.BytesSent != 100 {
		t.Errorf("%d bytes sent, want the length of the body", c.BytesSent)
	}
}

// What goes over an upgraded connection counts as sent and received.
func TestBytesOfAnUpgradedCall(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	registry.Set("api", serve(t, func(w http.ResponseWriter, r *http.Request) {
		c, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		io.CopyN(c, rw, 4)
	}))
	seen := newWatcher(t)
	m := newMesh(t, "", mesh.WithDiscovery(&registry), seen.calling())
	req, err := http.NewRequest("GET", "http://api/", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := m.Transport().RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(resp.Body.(io.Writer), "ping")
	if back, err := io.ReadAll(resp.Body); string(back) != "ping" || err != nil {
		t.Errorf("%q, %v", back, err)
	}
	resp.Body.Close()
	if c := <-seen.calls; c.BytesSent != 4 || c.BytesReceived != 4 {
		t.Errorf("%d bytes sent and %d received, want 4 and 4", c.BytesSent, c.BytesReceived)
	}
}
