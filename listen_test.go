package mesh_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// wrapped hides the type of its connections, like netutil.LimitListener. disguised also hides the address at which they arrived.
type wrapped struct{ net.Listener }

func (l wrapped) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return struct{ net.Conn }{c}, nil
}

type disguised struct{ net.Listener }

func (l disguised) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return disguise{c}, nil
}

type disguise struct{ net.Conn }

func (d disguise) LocalAddr() net.Addr {
	other := *d.Conn.LocalAddr().(*net.TCPAddr)
	return &other
}

const denyOrders = `
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-orders, namespace: default}
spec: {action: DENY, rules: [{from: [{source: {principals: [cluster.local/ns/default/sa/order-service]}}]}]}
`

// A listener wrapped around that of the mesh does not make a peer anonymous.
func TestWrappedListenersHideNoPeer(t *testing.T) {
	noLeaks(t)
	for name, wrap := range map[string]func(net.Listener) net.Listener{
		"bare": func(l net.Listener) net.Listener { return l }, "wrapped": func(l net.Listener) net.Listener { return wrapped{l} },
		"disguised": func(l net.Listener) net.Listener { return disguised{l} },
	} {
		for _, documents := range []string{denyOrders, strict + "---" + denyOrders} {
			w := newTown(t)
			m := w.member(t, "payment-service", documents)
			ln := rawtest.Listen(t)
			srv := &http.Server{Handler: m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprintf(w, "%s %v", mesh.PeerID(r.Context()), r.TLS != nil)
			}))}
			var serving sync.WaitGroup
			serving.Go(func() { srv.Serve(wrap(m.Listen(ln))) })
			t.Cleanup(func() { srv.Close(); serving.Wait() })
			for _, account := range []string{"order-service", "web"} {
				id := w.identity(t, account)
				tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*id.Certificate()},
					NextProtos: []string{"http/1.1"}}}
				a, err := try(&http.Client{Transport: tr}, "https://"+ln.Addr().String())
				served := err == nil && a.status == http.StatusOK
				if want := account == "web" && name != "disguised"; served != want {
					t.Errorf("%s: %s is served: %v, %d %q %v", name, account, served, a.status, a.body, err)
				} else if served && a.body != "spiffe://cluster.local/ns/default/sa/web true" {
					t.Errorf("%s: the handler saw %q", name, a.body)
				}
				tr.CloseIdleConnections()
			}
			if documents == denyOrders && name != "disguised" {
				if a, err := try(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+ln.Addr().String()); err != nil || a.body != " false" {
					t.Errorf("%s: plaintext: %q, %v", name, a.body, err)
				}
			}
		}
	}
}

// Nor does one that is closed while its connections go on.
func TestClosedListenersHideNoPeer(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", denyOrders)
	ln := rawtest.Listen(t)
	srv := &http.Server{Handler: m.Handler(says("hello"))}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(wrapped{m.Listen(ln)}) })
	t.Cleanup(func() { srv.Close(); serving.Wait() })
	id := w.identity(t, "order-service")
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*id.Certificate()},
		NextProtos: []string{"http/1.1"}}}}
	defer c.CloseIdleConnections()
	for _, when := range []string{"before the listener is closed", "afterwards"} {
		if a, err := try(c, "https://"+ln.Addr().String()); err != nil || a.status != http.StatusForbidden {
			t.Errorf("%s: %d %q %v", when, a.status, a.body, err)
		}
		ln.Close() // as a server does that stops: this connection is still served
		serving.Wait()
	}
}

// A server without the handler of the mesh would serve requests that the documents deny.
func TestListenWithoutHandlerRefuses(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	refused := make(chan error, 100)
	m := w.member(t, "payment-service", denyOrders, mesh.WithObserver(mesh.Observer{
		ConnectionRefused: func(_ net.Addr, r tlsid.Refusal) { refused <- r.Err },
	}))
	ln := rawtest.Listen(t)
	srv := &http.Server{Handler: says("hello")}
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(m.Listen(ln)) })
	t.Cleanup(func() { srv.Close(); serving.Wait() })
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	if a, err := try(c, "http://"+ln.Addr().String()); err == nil {
		t.Errorf("a request that nobody authorizes gets %d %q", a.status, a.body)
	}
	select {
	case err := <-refused:
		if err == nil || !strings.Contains(err.Error(), "Mesh.Handler") {
			t.Errorf("the observers are told %v, want what to do", err)
		}
	case <-time.After(time.Minute):
		t.Error("the observers are told nothing")
	}
	if err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(strings.Replace(strict, "STRICT", "PERMISSIVE", 1))}); err != nil {
		t.Fatal(err)
	}
	if a, err := try(c, "http://"+ln.Addr().String()); err != nil || a.body != "hello" {
		t.Errorf("without AuthorizationPolicies: %q, %v", a.body, err)
	}
}

// Nor do its connections outlive the permission to serve them.
func TestListenWithoutHandlerEndsConnections(t *testing.T) {
	noLeaks(t)
	towns := []*town{newTown(t), newTown(t)}
	for name, tt := range map[string]struct {
		scheme string
		change func(*testing.T, *mesh.Mesh, lateSource) // after the first request
		served bool                                     // then
	}{
		"plaintext, a policy": {"http://", func(t *testing.T, m *mesh.Mesh, _ lateSource) { apply(t, m, denyOrders) }, false},
		"TLS, a policy":       {"https://", func(t *testing.T, m *mesh.Mesh, _ lateSource) { apply(t, m, denyOrders) }, false},
		"TLS, the bundle":     {"https://", func(t *testing.T, _ *mesh.Mesh, s lateSource) { s <- towns[1].identity(t, "payment-service") }, false},
		"plaintext, the bundle": {"http://", func(t *testing.T, _ *mesh.Mesh, s lateSource) {
			s <- towns[1].identity(t, "payment-service")
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			source, rotated := make(lateSource, 1), make(chan bool, 2)
			source <- towns[0].identity(t, "payment-service")
			m := newMesh(t, "", mesh.WithEmptyPolicy(), mesh.WithIdentity(source), mesh.WithObserver(mesh.Observer{
				Identity: func(*tlsid.Identity, error) { rotated <- true }, // connections are closed before that
			}))
			<-rotated
			ln := rawtest.Listen(t)
			srv := &http.Server{Handler: says("hello")}
			var serving sync.WaitGroup
			serving.Go(func() { srv.Serve(m.Listen(ln)) })
			t.Cleanup(func() { srv.Close(); serving.Wait() })
			dials := 0
			tr := &http.Transport{
				TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*towns[0].identity(t, "web").Certificate()}},
				DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
					if dials++; dials > 1 {
						return nil, errors.New("the connection is closed")
					}
					return new(net.Dialer).DialContext(ctx, network, address)
				},
			}
			t.Cleanup(tr.CloseIdleConnections)
			c := &http.Client{Transport: tr}
			if a, err := try(c, tt.scheme+ln.Addr().String()); err != nil || a.body != "hello" {
				t.Fatalf("before the change: %q, %v", a.body, err)
			}
			tt.change(t, m, source)
			if strings.HasSuffix(name, "bundle") {
				<-rotated
			}
			if a, err := try(c, tt.scheme+ln.Addr().String()); (err == nil) != tt.served {
				t.Errorf("after the change: %q, %v, want it served: %v", a.body, err, tt.served)
			}
		})
	}
}

// Whoever forgets Mesh.Listen learns why requests to a STRICT port get no answer.
func TestHandlerWithoutListenSaysWhyItCutsOff(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	refused := make(chan tlsid.Refusal, 100)
	m := w.member(t, "payment-service", strict, mesh.WithObserver(mesh.Observer{
		ConnectionRefused: func(_ net.Addr, r tlsid.Refusal) { refused <- r },
	}))
	for name, serve := range map[string]func(http.Handler) *httptest.Server{"plaintext": httptest.NewServer, "TLS": httptest.NewTLSServer} {
		srv := serve(m.Handler(says("hello")))
		if a, err := try(srv.Client(), srv.URL); err == nil {
			t.Errorf("%s: a request without mutual TLS gets %d %q", name, a.status, a.body)
		}
		srv.Close()
		select {
		case r := <-refused:
			if !strings.Contains(r.Err.Error(), "Mesh.Listen") || r.Mode != tlsid.Strict || !strings.HasPrefix(r.RemoteAddr.String(), "127.0.0.1:") ||
				errors.Is(r.Err, tlsid.ErrPlaintext) != (name == "plaintext") {
				t.Errorf("%s: the observers are told %v of %v (%v), want what to do", name, r.Err, r.RemoteAddr, r.Mode)
			}
		default:
			t.Errorf("%s: the observers are told nothing", name)
		}
	}
}

// While the process cannot verify certificates, whoever presents one is refused where policies could deny it. The server does TLS itself.
func TestNobodyIsAnonymousForLackOfAnIdentity(t *testing.T) {
	noLeaks(t)
	for documents, before := range map[string]int{denyOrders: http.StatusForbidden, strings.Replace(strict, "STRICT", "PERMISSIVE", 1): http.StatusOK} {
		w := newTown(t)
		source, rotated := make(lateSource, 1), make(chan bool, 1)
		m := newMesh(t, documents, mesh.WithLateIdentity(source), mesh.WithObserver(mesh.Observer{
			Identity: func(*tlsid.Identity, error) { rotated <- true },
		}))
		srv := httptest.NewUnstartedServer(m.Handler(says("hello")))
		srv.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
		srv.StartTLS()
		t.Cleanup(srv.Close)
		check := func(when, account string, want int) {
			t.Helper()
			config := &tls.Config{InsecureSkipVerify: true}
			if account != "" {
				config.Certificates = []tls.Certificate{*w.identity(t, account).Certificate()}
			}
			c := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
			if a, err := try(c, srv.URL); err != nil || a.status != want {
				t.Errorf("%s, %q: %d, %v, want %d", when, account, a.status, err, want)
			}
		}
		check("before the identity has come", "order-service", before)
		check("before the identity has come", "web", before)
		check("before the identity has come", "", http.StatusOK)
		source <- w.identity(t, "payment-service")
		<-rotated
		check("then", "order-service", before)
		check("then", "web", http.StatusOK)
		check("then", "", http.StatusOK)
	}
}

// A program that hides its own TLS from net/http is told, once for each port, that nobody knows its peers.
func TestHiddenTLSIsTold(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	for name, tt := range map[string]struct {
		documents string
		wrap      func(net.Listener) net.Listener
		want      int
	}{
		"hidden":            {denyOrders, func(l net.Listener) net.Listener { return wrapped{l} }, 2},
		"hidden, no policy": {strings.Replace(strict, "STRICT", "PERMISSIVE", 1), func(l net.Listener) net.Listener { return wrapped{l} }, 0},
		"bare":              {denyOrders, func(l net.Listener) net.Listener { return l }, 0},
	} {
		var told atomic.Int32
		m := w.member(t, "payment-service", tt.documents, mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) {
			for _, f := range l.Findings {
				if strings.Contains(f.Message, "another listener than those of Mesh.Listen") {
					told.Add(1)
				}
			}
		}}))
		var addresses []string
		srv := &http.Server{Handler: m.Handler(says("hello"))}
		var serving sync.WaitGroup
		for range 2 {
			ln := rawtest.Listen(t)
			addresses = append(addresses, ln.Addr().String())
			own := tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{*w.identity(t, "payment-service").Certificate()}, ClientAuth: tls.RequireAnyClientCert})
			serving.Go(func() { srv.Serve(tt.wrap(own)) })
		}
		t.Cleanup(func() { srv.Close(); serving.Wait() })
		c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{*w.identity(t, "web").Certificate()},
		}}}
		for i := range 6 {
			if a, err := try(c, "https://"+addresses[i%2]); err != nil || a.body != "hello" {
				t.Errorf("%s: %q, %v", name, a.body, err)
			}
		}
		if n := told.Load(); n != int32(tt.want) {
			t.Errorf("%s: told %d times, want %d", name, n, tt.want)
		}
	}
}

// A process with an identity that serves every peer is warned, once.
func TestOpenWorkloadIsTold(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	for _, tt := range []struct {
		documents string
		want      int
	}{{"", 1}, {denyOrders, 0}, {strict, 0}} {
		var mu sync.Mutex
		var told []string
		m := w.member(t, "payment-service", tt.documents, mesh.WithEmptyPolicy(), mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) {
			mu.Lock()
			defer mu.Unlock()
			for _, f := range l.Findings {
				told = append(told, f.String())
			}
		}}))
		for range 3 {
			m.Handler(says("hello"))
		}
		mu.Lock()
		if n := len(slices.DeleteFunc(told, func(s string) bool { return !strings.HasPrefix(s, "warning: no AuthorizationPolicy") })); n != tt.want {
			t.Errorf("with %q it is told %d times, want %d", tt.documents, n, tt.want)
		}
		mu.Unlock()
	}
}

// A raw connection does not outlive the trust in its peer.
func TestRawConnectionsEndWithTheirBundle(t *testing.T) {
	noLeaks(t)
	towns := []*town{newTown(t), newTown(t)}
	source := make(lateSource, 1)
	source <- towns[0].identity(t, "postgres")
	m := newMesh(t, "", mesh.WithEmptyPolicy(), mesh.WithIdentity(source)) // PERMISSIVE
	ln := m.ListenTCP(rawtest.Listen(t))
	defer ln.Close()
	accepted := make(chan net.Conn, 2)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	client, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{
		InsecureSkipVerify: true, Certificates: []tls.Certificate{*towns[0].identity(t, "order-service").Certificate()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	plain, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	plain.Write([]byte("x"))
	conns := []net.Conn{<-accepted, <-accepted}
	source <- towns[1].identity(t, "postgres")
	client.SetReadDeadline(time.Now().Add(time.Minute))
	var timeout net.Error
	if _, err := client.Read(make([]byte, 1)); errors.As(err, &timeout) && timeout.Timeout() {
		t.Error("a connection whose peer nobody vouches for any more stays open")
	}
	for _, c := range conns {
		if _, secure := c.(interface{ NetConn() net.Conn }).NetConn().(*tls.Conn); !secure {
			if _, err := c.Write([]byte("y")); err != nil {
				t.Errorf("a plaintext connection is closed too: %v", err)
			}
		}
		c.Close()
	}
	ln.Close()
	for range accepted {
	}
}

// A sidecar that is PERMISSIVE takes TLS for the mesh's only if the client offers a protocol of Istio's.
func TestCallsOfferWhatSidecarsTakeForTheMesh(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	id := w.identity(t, "payment-service")
	offered := make(chan []string, 10)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) }))
	srv.EnableHTTP2 = true
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{*id.Certificate()}, ClientAuth: tls.RequireAnyClientCert,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			offered <- slices.Clone(hello.SupportedProtos)
			return nil, nil
		},
	}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	e := endpointOf(t, srv.Listener.Addr().String())
	e.ServiceAccount = "payment-service"
	w.registry.Set("payment-service", e)
	m := w.member(t, "order-service", strict)
	if a := get(t, m.Client(), "http://payment-service/"); a.body != "HTTP/2.0" {
		t.Errorf("the service is spoken to over %s", a.body)
	}
	if got := <-offered; !slices.Contains(got, "istio") || !slices.Contains(got, "h2") {
		t.Errorf("a call offers %q", got)
	}
}

// addressed counts how often a connection is asked for its remote address, and calls hook before the answer number at.
type addressed struct {
	net.Conn
	n    atomic.Int32
	at   int32
	hook func()
}

func (c *addressed) RemoteAddr() net.Addr {
	if c.n.Add(1) == c.at {
		c.hook()
	}
	return c.Conn.RemoteAddr()
}

type addressing struct {
	net.Listener
	next chan *addressed
}

func (l addressing) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := <-l.next
	c.Conn = conn
	return c, nil
}

// Trust in a peer may end while its connection is being accepted: after the peer was identified, and before the listener knows.
func TestRawConnectionIsRefusedIfItsBundleGoesMeanwhile(t *testing.T) {
	noLeaks(t)
	towns := []*town{newTown(t), newTown(t)}
	source, rotated, refused := make(lateSource, 1), make(chan bool, 1), make(chan error, 1)
	source <- towns[0].identity(t, "postgres")
	m := newMesh(t, "", mesh.WithEmptyPolicy(), mesh.WithIdentity(source), mesh.WithObserver(mesh.Observer{
		Identity:          func(*tlsid.Identity, error) { rotated <- true },
		ConnectionRefused: func(_ net.Addr, r tlsid.Refusal) { refused <- r.Err },
	}))
	<-rotated
	next, accepted := make(chan *addressed, 1), make(chan net.Conn, 1)
	ln := m.ListenTCP(addressing{rawtest.Listen(t), next})
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	certificate, after := *towns[0].identity(t, "order-service").Certificate(), towns[1].identity(t, "postgres")
	connect := func(c *addressed) {
		t.Helper()
		next <- c
		client, err := tls.Dial("tcp", ln.Addr().String(), &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{certificate}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { client.Close() })
	}
	first := new(addressed)
	connect(first)
	defer (<-accepted).Close()
	connect(&addressed{at: first.n.Load(), hook: func() { // the last time is when the peer has been identified
		source <- after
		<-rotated
	}})
	select {
	case c := <-accepted:
		c.Close()
		t.Error("a connection is accepted whose peer nobody vouches for any more")
	case err := <-refused:
		if !strings.Contains(err.Error(), "the certificate of the peer is not valid") {
			t.Errorf("the connection was refused: %v", err)
		}
	}
}
