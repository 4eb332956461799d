package spiffe_test

import (
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/workloadapi"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tlsid/spiffe"
)

// TestRotationUnderLoad calls a server while the certificates of both ends are replaced every second and expire soon
// after, and while the Workload API dies and returns again and again. No request may fail, and no connection may outlive
// its certificates. It runs for 10 s, or for as long as MESH_ROTATE says, and up to a minute longer on a machine on which
// too little happens meanwhile. What fails because the machine stood still does not count.
func TestRotationUnderLoad(t *testing.T) {
	const (
		ttl       = 8 * time.Second
		every     = time.Second
		outage    = 300 * time.Millisecond // with the time to reconnect much less than what the certificates have left
		tolerable = ttl / 20               // connections retire at least as long before they are closed
		slack     = time.Second            // a busy machine closes late
	)
	leak.Check(t)
	limit := 10 * time.Second
	if s := os.Getenv("MESH_ROTATE"); s != "" {
		var err error
		if limit, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	stalls := await.WatchStalls(t)
	var excused atomic.Int64
	// fault reports what is no consequence of a stall. Whatever expired at some time was issued at most ttl before.
	fault := func(since time.Time, format string, args ...any) {
		if stalls.Since(since.Add(-ttl)) > tolerable {
			excused.Add(1)
			return
		}
		t.Errorf(format, args...)
	}

	ca := newCA(t, "example.org", ttl, every)
	api := workloadapi.Start(t, ca.Source("default", "service"))
	clientAPI := workloadapi.Start(t, ca.Source("default", "web"))

	var rotations atomic.Int64
	keep := func(api *workloadapi.Server) *tlsid.Keeper {
		k := tlsid.Keep(spiffe.Source{Addr: api.Addr()}, tlsid.Hooks{
			Rotated: func(_, now *tlsid.Identity) { rotations.Add(1) },
		})
		t.Cleanup(k.Close)
		if err := waitShortly(t, k, time.Minute); err != nil {
			t.Fatal(err)
		}
		return k
	}
	server, client := keep(api), keep(clientAPI)
	own, err := server.Identity()
	if err != nil {
		t.Fatal(err)
	}

	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	watched := &watchedListener{Listener: inner}
	listener := tlsid.NewListener(watched, tlsid.ListenerConfig{
		TLS:     server.Server(),
		Refused: func(r tlsid.Refusal) { fault(time.Now(), "%v was refused: %v", r.RemoteAddr, r.Err) },
	})
	fresh := func(what string, c *x509.Certificate) {
		if late := time.Since(c.NotAfter); late > slack {
			fault(c.NotAfter, "a connection is used %v after the certificate of its %s expired", late, what)
		}
	}
	var certificates sync.Map // serial numbers of the client's
	seen := func() (n int) {
		certificates.Range(func(any, any) bool { n++; return true })
		return n
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if listener.Retiring(r) {
			w.Header().Set("Connection", "close")
		}
		peer := r.TLS.PeerCertificates[0]
		fresh("client", peer)
		certificates.Store(peer.SerialNumber.String(), true)
		io.WriteString(w, "ok")
	})}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()

	var calls, outages atomic.Int64
	var callers sync.WaitGroup
	began := time.Now()
	end := began.Add(limit)
	proven := func() bool { return outages.Load() > 0 && rotations.Load() >= 6 && seen() >= 2 }
	running := func() bool {
		now := time.Now()
		return !t.Failed() && (now.Before(end) || now.Before(end.Add(time.Minute)) && !proven())
	}
	for _, http2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: client.Client(tlsid.Expect(own.ID())), ForceAttemptHTTP2: http2,
			MaxIdleConnsPerHost: 8}
		if !http2 {
			transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		defer transport.CloseIdleConnections()
		c := &http.Client{Transport: transport, Timeout: time.Minute}
		for range 4 {
			callers.Go(func() {
				for running() {
					began := time.Now()
					resp, err := call(c, "https://"+inner.Addr().String()+"/")
					if took := time.Since(began); err != nil && took > tolerable {
						excused.Add(1) // a busy machine makes each step wait a little
						continue
					} else if err != nil {
						fault(began, "call %d (HTTP/2: %v), after %v: %v", calls.Load(), http2, took, err)
						continue
					}
					fresh("server", resp.TLS.PeerCertificates[0])
					calls.Add(1)
				}
			})
		}
	}
	tick := time.NewTicker(every * 3 / 2)
	defer tick.Stop()
	for running() {
		<-tick.C
		down := time.NewTimer(outage)
		api.Stop()
		clientAPI.Stop()
		<-down.C
		api.Restart()
		clientAPI.Restart()
		outages.Add(1)
	}
	callers.Wait()
	srv.Close()
	<-served

	conns := watched.conns.Load()
	t.Logf("%d calls over %d connections, %d rotations, %d outages, %d client certificates seen, %d failures while the machine stood still",
		calls.Load(), conns, rotations.Load(), outages.Load(), seen(), excused.Load())
	if !proven() {
		t.Error("nothing changed: the test proves nothing")
	}
	// A call that fails, because certificates expired meanwhile, costs a connection.
	if most := 16 + 8*time.Since(began).Seconds(); float64(conns) > most && excused.Load() == 0 {
		t.Errorf("%d connections: they do not live as long as they could", conns)
	}
}

func call(c *http.Client, url string) (*http.Response, error) {
	resp, err := c.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %s", resp.Status)
	}
	return resp, nil
}

// watchedListener counts connections.
type watchedListener struct {
	net.Listener
	conns atomic.Int64
}

func (l *watchedListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.conns.Add(1)
	}
	return c, err
}
