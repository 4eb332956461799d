package mesh_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/internal/workloadapi"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tlsid/spiffe"
)

// rotated are the documents of both sides: mTLS only, and no retries that would hide a failed request.
const rotated = strict + `---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payment-service}
spec:
  hosts: [payment-service]
  http:
  - route: [{destination: {host: payment-service}}]
    retries: {attempts: 0}
`

// TestRotationUnderLoad gives servers and their clients identities from Workload APIs that rotate them every second,
// and calls all the time. No request may fail, and no connection may outlive a certificate it was made with. It runs for
// 5 seconds, or for as long as MESH_ROTATE says.
func TestRotationUnderLoad(t *testing.T) {
	noLeaks(t)
	limit := 5 * time.Second
	if s := os.Getenv("MESH_ROTATE"); s != "" {
		var err error
		if limit, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	quick, slow := issue{ttl: 4 * time.Second, every: time.Second}, issue{ttl: time.Hour, every: -1}
	lasting := issue{ttl: 10 * time.Second, every: time.Second} // longer than an API is away
	dies := &rotation{name: "the API dies and returns", server: lasting, client: lasting, dies: true}
	all := []*rotation{
		{name: "both rotate", server: quick, client: quick},
		{name: "the server rotates", server: quick, client: slow}, // connections live as long as its certificate
		{name: "the client rotates", server: slow, client: quick}, // connections live until it rotates
		dies,
	}
	stalls := await.WatchStalls(t)
	for _, r := range all {
		r.begin(t)
	}

	end := time.NewTimer(limit)
	defer end.Stop()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	seconds := int64(limit / time.Second)
	lacks := func(r *rotation) bool { return r.lacks(seconds) != "" }
	// A busy machine takes longer until there is enough to judge by.
	over, second := false, int64(0)
	for !over || slices.ContainsFunc(all, lacks) && second < seconds+60 {
		select {
		case <-tick.C:
			second++
			dies.dieOrReturn(second)
		case <-end.C:
			over = true
		}
	}
	for _, r := range all {
		r.end()
		t.Run(r.name, func(t *testing.T) { r.check(t, seconds, stalls.Since(time.Time{})) })
	}
}

// The Workload API of a client dies for longer than the client's identity lives. Calls fail then, with the reason, and work
// again when the API is back.
func TestCallsFailUntilTheAPIReturns(t *testing.T) {
	noLeaks(t)
	r := &rotation{server: issue{ttl: time.Hour, every: -1}, client: issue{ttl: 2 * time.Second, every: time.Second}}
	serverAPI, clientAPI := r.startAPIs(t)
	at := serveMesh(t, r.member(t, serverAPI, "payment-service"), says("ok"))
	at.ServiceAccount = "payment-service"
	c := r.member(t, clientAPI, "order-service", mesh.WithDiscovery(discovery.Static{"payment-service": {at}})).Client()
	works := func() bool {
		a, err := try(c, "http://payment-service/")
		return err == nil && a.status == http.StatusOK
	}
	if !await.Done(works) { // on a busy machine, an identity can expire before it was used
		t.Fatal("calls do not work with a valid identity")
	}

	clientAPI.Stop()
	var expired *tlsid.ExpiredError
	if !await.Done(func() bool {
		_, err := try(c, "http://payment-service/")
		return errors.As(err, &expired)
	}) {
		t.Fatal("calls work without a valid identity")
	}
	if expired.ID != accountID("default", "order-service") || time.Now().Before(expired.NotAfter) {
		t.Errorf("the error is %v, which is not so", expired)
	}
	clientAPI.Restart()
	if !await.Done(works) {
		t.Error("calls still fail, though the API is back")
	}
}

// issue says how long the certificates of somebody live, and how often there is a new one.
type issue struct{ ttl, every time.Duration }

// rotation is payment-service, and order-service calling it.
type rotation struct {
	name           string
	server, client issue
	dies           bool
	apis           []*workloadapi.Server
	away           bool
	fresh          []*atomic.Int64 // the identities that each mesh got since the APIs returned

	done    chan struct{}
	running sync.WaitGroup

	requests     [2]atomic.Int64 // by protos
	raw          atomic.Int64    // connections that are not HTTP
	rawExpired   atomic.Int64    // of these, those that the mesh has closed
	rotations    atomic.Int64    // identities that came into force
	outages      atomic.Int64    // errors of the APIs
	failed       atomic.Int64    // of requests and raw connections
	heldUp       atomic.Int64    // of those that failed, but too late to count
	firstFailure atomic.Pointer[error]
	certificates sync.Map      // serial numbers of those that were met
	connections  connectionLog // of the clients
}

func (r *rotation) begin(t *testing.T) {
	t.Helper()
	r.done = make(chan struct{})
	serverAPI, clientAPI := r.startAPIs(t)
	payment := r.member(t, serverAPI, "payment-service")

	ln := rawtest.Listen(t)
	srv := &http.Server{Handler: payment.Handler(http.HandlerFunc(r.charge))}
	r.running.Go(func() { srv.Serve(payment.Listen(ln)) })
	rawListener := payment.ListenTCP(rawtest.Listen(t))
	r.running.Go(func() { r.serveRaw(rawListener) })

	at, rawAt := endpointOf(t, ln.Addr().String()), endpointOf(t, rawListener.Addr().String())
	at.ServiceAccount, rawAt.ServiceAccount = "payment-service", "payment-service"
	services := mesh.WithDiscovery(discovery.Static{"payment-service": {at}, "payment-database": {rawAt}})
	var calling sync.WaitGroup
	for i, proto := range protos {
		template := speaking(proto)
		template.DialContext = r.connections.dial
		orders := r.member(t, clientAPI, "order-service", services, mesh.WithTransport(template))
		for range 3 {
			calling.Go(func() { r.every(5*time.Millisecond, func() { r.call(orders.Client(), i) }) })
		}
		calling.Go(func() { r.every(300*time.Millisecond, func() { r.call(orders.Client(), i) }) }) // over idle connections
		if i == 0 {
			calling.Go(func() { r.every(time.Second, func() { r.dial(orders) }) })
		}
	}
	r.running.Go(func() { r.every(10*time.Millisecond, r.connections.look) })
	r.running.Go(func() {
		<-r.done
		calling.Wait()
		srv.Close()
		rawListener.Close()
	})
}

// dieOrReturn takes the APIs away for one second in four, once everybody has got an identity since the last time.
func (r *rotation) dieOrReturn(second int64) {
	switch {
	case r.away:
		for _, n := range r.fresh {
			n.Store(0)
		}
		for _, api := range r.apis {
			api.Restart()
		}
		r.away = false
	case second%4 == 1 && !slices.ContainsFunc(r.fresh, func(n *atomic.Int64) bool { return n.Load() == 0 }):
		for _, api := range r.apis {
			api.Stop()
		}
		r.away = true
	}
}

// startAPIs starts the Workload APIs of the server and of the client.
func (r *rotation) startAPIs(t *testing.T) (server, client *workloadapi.Server) {
	t.Helper()
	// A development CA has one lifetime for all. Two are one authority if everybody trusts both.
	var authorities []*x509.Certificate
	var cas []*tlsid.DevCA
	for _, i := range []issue{r.server, r.client} {
		ca, err := tlsid.NewDevCA("cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		ca.TTL, ca.RotateEvery = i.ttl, i.every
		cas, authorities = append(cas, ca), append(authorities, ca.Bundle().X509Authorities()...)
	}
	server = workloadapi.Start(t, trusting{cas[0].Source("default", "payment-service"), authorities})
	client = workloadapi.Start(t, trusting{cas[1].Source("default", "order-service"), authorities})
	r.apis = []*workloadapi.Server{server, client}
	return server, client
}

// trusting is a source with other authorities.
type trusting struct {
	tlsid.Source
	authorities []*x509.Certificate
}

func (s trusting) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		for identity, err := range s.Source.Watch(ctx) {
			if err == nil {
				certificate := identity.Certificate()
				svid := &x509svid.SVID{
					ID: identity.ID(), Certificates: []*x509.Certificate{certificate.Leaf},
					PrivateKey: certificate.PrivateKey.(crypto.Signer),
				}
				identity, err = tlsid.NewIdentity(svid, x509bundle.FromX509Authorities(identity.TrustDomain(), s.authorities))
			}
			if !yield(identity, err) {
				return
			}
		}
	}
}

// member makes the mesh of a service whose identity comes from a Workload API.
func (r *rotation) member(t *testing.T, api *workloadapi.Server, account string, opts ...mesh.Option) *mesh.Mesh {
	t.Helper()
	fresh := new(atomic.Int64)
	r.fresh = append(r.fresh, fresh)
	return newMesh(t, rotated, append([]mesh.Option{
		mesh.WithIdentity(spiffe.Source{Addr: api.Addr()}),
		mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": account}}),
		mesh.WithObserver(mesh.Observer{Identity: func(_ *tlsid.Identity, err error) {
			if err == nil {
				r.rotations.Add(1)
				fresh.Add(1)
			} else {
				r.outages.Add(1)
			}
		}}),
	}, opts...)...)
}

// every calls f again and again until the end.
func (r *rotation) every(pace time.Duration, f func()) {
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			f()
		case <-r.done:
			return
		}
	}
}

func (r *rotation) end() {
	close(r.done)
	r.running.Wait()
}

// tolerable is a good part of the time by which a certificate is replaced before it expires. What stands still for longer may
// outlive the certificates that it began with.
const tolerable = 250 * time.Millisecond

func (r *rotation) fail(err error) {
	r.failed.Add(1)
	r.firstFailure.CompareAndSwap(nil, &err)
}

// failSince is fail for what began at start. It does not count if the machine held it up for so long that a certificate may have
// expired meanwhile.
func (r *rotation) failSince(start time.Time, err error) {
	if time.Since(start) > tolerable {
		r.heldUp.Add(1)
		return
	}
	r.fail(err)
}

// charge is the handler of payment-service. It tells when the certificate of the caller expires.
func (r *rotation) charge(w http.ResponseWriter, req *http.Request) {
	certificate := req.TLS.PeerCertificates[0]
	began, err := time.Parse(time.RFC3339Nano, req.Header.Get("Began"))
	if err != nil {
		r.fail(err)
	}
	r.meet(certificate, began)
	w.Header().Set("Expires", certificate.NotAfter.Format(time.RFC3339))
	io.Copy(w, req.Body)
}

// meet notes a certificate of a peer to which somebody began to talk at start.
func (r *rotation) meet(certificate *x509.Certificate, start time.Time) {
	r.certificates.Store(certificate.SerialNumber.String(), true)
	if start.After(certificate.NotAfter) {
		r.fail(fmt.Errorf("talked to a peer whose certificate had expired %v before", start.Sub(certificate.NotAfter)))
	}
}

// call charges once.
func (r *rotation) call(c *http.Client, proto int) {
	const sum = "17.50"
	var over atomic.Pointer[loggedConn]
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		over.Store(r.connections.find(info.Conn.LocalAddr()))
	}}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(context.Background(), trace),
		http.MethodPost, "http://payment-service/charge", strings.NewReader(sum))
	if err != nil {
		r.fail(err)
		return
	}
	start := time.Now()
	req.Header.Set("Began", start.Format(time.RFC3339Nano))
	resp, err := c.Do(req)
	if err != nil {
		r.failSince(start, err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || string(body) != sum || resp.StatusCode != http.StatusOK || resp.Proto != protos[proto] {
		r.failSince(start, fmt.Errorf("%s %s %q %v", resp.Proto, resp.Status, body, err))
		return
	}
	r.requests[proto].Add(1)
	r.meet(resp.TLS.PeerCertificates[0], start)
	r.made(over.Load(), resp.TLS.PeerCertificates[0], resp.Header.Get("Expires"))
}

// made holds the certificates with which a connection was made: that of the server, and that of the client, as the server
// says.
func (r *rotation) made(c *loggedConn, server *x509.Certificate, client string) {
	expires, err := time.Parse(time.RFC3339, client)
	if err != nil {
		r.fail(err)
		return
	}
	if server.NotAfter.Before(expires) {
		expires = server.NotAfter
	}
	if c != nil { // else it is closed already
		c.expires.Store(&expires)
	}
}

// dial makes a connection that is not HTTP, which is left open for the mesh to close.
func (r *rotation) dial(m *mesh.Mesh) {
	start := time.Now()
	c, err := m.DialContext(context.Background(), "tcp", "payment-database:5432")
	if err != nil {
		r.failSince(start, err)
		return
	}
	r.raw.Add(1)
	logged := r.connections.find(c.LocalAddr())
	in := bufio.NewReader(c)
	line, err := in.ReadString('\n')
	if err != nil {
		c.Close()
		r.failSince(start, err)
		return
	}
	certificate := c.(interface{ NetConn() net.Conn }).NetConn().(*tls.Conn).ConnectionState().PeerCertificates[0]
	r.meet(certificate, start)
	r.made(logged, certificate, strings.TrimSpace(line))

	r.running.Go(func() {
		defer c.Close()
		closed := make(chan struct{})
		r.running.Go(func() {
			defer close(closed)
			in.ReadByte()
		})
		select {
		case <-closed:
			if early := time.Until(*logged.expires.Load()); early > 0 {
				r.fail(fmt.Errorf("a raw connection was closed %v before its certificates expired", early))
			}
			r.rawExpired.Add(1)
		case <-r.done:
		}
	})
}

// serveRaw tells each connection when the certificate of the peer expires.
func (r *rotation) serveRaw(ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		certificate := c.(interface{ NetConn() net.Conn }).NetConn().(*tls.Conn).ConnectionState().PeerCertificates[0]
		r.meet(certificate, time.Now())
		r.running.Go(func() {
			defer c.Close()
			fmt.Fprintln(c, certificate.NotAfter.Format(time.RFC3339))
			io.Copy(io.Discard, c)
		})
	}
}

// connectionLog knows the connections that are open. Its zero value is ready.
type connectionLog struct {
	mu    sync.Mutex
	open  map[string]*loggedConn // by their own address
	made  int
	worst time.Duration // that one was open after a certificate expired
}

// loggedConn is a connection in the log.
type loggedConn struct {
	net.Conn
	log     *connectionLog
	expires atomic.Pointer[time.Time] // nil if not known
}

func (l *connectionLog) dial(ctx context.Context, network, address string) (net.Conn, error) {
	inner, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &loggedConn{Conn: inner, log: l}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == nil {
		l.open = make(map[string]*loggedConn)
	}
	l.open[c.LocalAddr().String()] = c
	l.made++
	return c, nil
}

// find returns the connection with an address, nil if it is not open any more.
func (l *connectionLog) find(address net.Addr) *loggedConn {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.open[address.String()]
}

// Close implements net.Conn.
func (c *loggedConn) Close() error {
	c.log.mu.Lock()
	if at := c.LocalAddr().String(); c.log.open[at] == c {
		delete(c.log.open, at)
	}
	c.log.mu.Unlock()
	return c.Conn.Close()
}

// look looks whether a connection is open after a certificate expired.
func (l *connectionLog) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for _, c := range l.open {
		if expires := c.expires.Load(); expires != nil {
			l.worst = max(l.worst, now.Sub(*expires))
		}
	}
}

// check compares what happened in so many seconds with what should have. On a machine that stood still for a good part of the
// time by which a certificate is replaced before it expires, certificates expire in use.
func (r *rotation) check(t *testing.T, seconds int64, stalled time.Duration) {
	certificates := 0
	r.certificates.Range(func(any, any) bool {
		certificates++
		return true
	})
	t.Logf("%d requests over HTTP/1.1, %d over HTTP/2, %d raw connections (%d till they expired), %d failed, %d were held up; "+
		"%d rotations, %d errors of the APIs, %d certificates met, %d connections, open %v after expiry at most",
		r.requests[0].Load(), r.requests[1].Load(), r.raw.Load(), r.rawExpired.Load(), r.failed.Load(), r.heldUp.Load(),
		r.rotations.Load(), r.outages.Load(), certificates, r.connections.made, max(r.connections.worst, 0))
	report := t.Errorf
	if stalled > tolerable {
		t.Logf("the machine stood still for %v: what it failed to do in time is no fault of the mesh", stalled)
		report = t.Logf
	}
	if n := r.failed.Load(); n != 0 {
		report("%d failed, first: %v", n, *r.firstFailure.Load())
	}
	// It is closed in time, but on a busy machine it may take a moment until everybody knows.
	if r.connections.worst > time.Second {
		report("a connection was open %v after a certificate expired", r.connections.worst)
	}
	if n := r.outages.Load(); n > 0 && !r.dies {
		report("%d errors of APIs that were always there, or identities that expired", n)
	}
	switch lacks := r.lacks(seconds); {
	case lacks == "":
	case stalled > tolerable: // and nobody can be asked to do enough on such a machine
		t.Skipf("the test proves nothing: there are not enough %s", lacks)
	default:
		t.Errorf("the test proves nothing: there are not enough %s", lacks)
	}
}

// lacks returns what has not happened often enough in that many seconds, or "".
func (r *rotation) lacks(seconds int64) string {
	rotating := int64(0) // meshes: payment-service, and order-service once for each protocol
	if r.server.every > 0 {
		rotating++
	}
	if r.client.every > 0 {
		rotating += 2
	}
	rotations := rotating * (seconds - 1)
	if r.dies {
		rotations = rotating * seconds / 4
	}
	switch {
	case r.rotations.Load() < rotations:
		return "rotations"
	case r.dies && r.outages.Load() == 0:
		return "outages"
	case r.requests[0].Load() < 5*seconds || r.requests[1].Load() < 5*seconds:
		return "requests"
	case r.raw.Load() < seconds-2:
		return "raw connections"
	}
	return ""
}
