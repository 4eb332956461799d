package metrics_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
)

var update = flag.Bool("update", false, "write the golden files")

// town is two processes with a mesh each, web and order, which are known to each other by discovery and by mTLS or not.
type town struct {
	registry    discovery.Memory
	web, order  *mesh.Mesh
	source      *process // the metrics of web
	destination *process // those of order
	named       bool     // discovery knows the name of the workload
}

const townDocuments = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: %s}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order, namespace: default}
spec:
  hosts: [order.shop.svc.cluster.local]
  http:
  - name: all
    route: [{destination: {host: order.shop.svc.cluster.local}}]
    retries: {attempts: 0}
`

// closed denies a path, and with it every raw connection, which has none.
const closed = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["/closed"]}}]}]}
`

func newTown(t *testing.T, documents string, secure bool, opts ...mesh.Option) *town {
	t.Helper()
	tn := new(town)
	mode := "DISABLE"
	identity := func(string, string) []mesh.Option { return nil }
	if secure {
		mode = "STRICT"
		ca, err := tlsid.NewDevCA("cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		ca.RotateEvery = -1
		identity = func(namespace, account string) []mesh.Option {
			return []mesh.Option{mesh.WithIdentity(ca.Source(namespace, account))}
		}
	}
	member := func(namespace, name, version string, opts []mesh.Option) (*mesh.Mesh, *process) {
		w := policy.Workload{Namespace: namespace, Labels: map[string]string{"app": name, "version": version}}
		p := newProcess(t, metrics.Config{Name: name + "-" + version, Workload: w})
		opts = append(opts, mesh.WithWorkload(w), mesh.WithDiscovery(&tn.registry), mesh.WithObserver(p.Observer()))
		return meshtest.New(t, fmt.Sprintf(townDocuments, mode)+documents, append(opts, identity(namespace, name)...)...), p
	}
	tn.web, tn.source = member("default", "web", "v1", opts)
	tn.order, tn.destination = member("shop", "order", "v2", nil)
	return tn
}

// add has discovery know an endpoint of order.
func (tn *town) add(t *testing.T, service, address string) {
	e := meshtest.EndpointOf(t, address)
	e.ServiceAccount, e.Labels = "shop/order", map[string]string{"app": "order", "version": "v2"}
	if tn.named {
		e.Labels["service.istio.io/workload-name"] = "order-v2"
	}
	tn.registry.Set(service, e)
}

const host = "order.shop.svc.cluster.local"

func (tn *town) serveHTTP(t *testing.T, h http.HandlerFunc) {
	ln := rawtest.Listen(t)
	tn.add(t, host, ln.Addr().String())
	srv := &http.Server{Handler: tn.order.Handler(h), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(tn.order.Listen(ln)) })
	t.Cleanup(func() {
		srv.Close()
		serving.Wait()
	})
}

// do makes a call and reads the answer. It returns the status, 0 without one.
func do(t *testing.T, m *mesh.Mesh, method, url, body string) int {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := m.Client().Do(req)
	if err != nil {
		return 0
	}
	for name := range resp.Header {
		if strings.HasPrefix(name, "X-Envoy-Peer-Metadata") {
			t.Errorf("the caller sees %s", name)
		}
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		t.Error(err)
	}
	return resp.StatusCode
}

func orders(t *testing.T) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if strings.HasPrefix(name, "X-Envoy-Peer-Metadata") {
				t.Errorf("the handler sees %s", name)
			}
		}
		io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/lost" {
			w.WriteHeader(http.StatusNotFound)
		}
		io.WriteString(w, "hello")
	}
}

// lines returns all series of both processes, sorted.
func (tn *town) lines(t *testing.T, names ...string) string {
	var out []string
	for _, p := range []*process{tn.source, tn.destination} {
		for _, name := range names {
			for _, s := range p.scrape(t, name) {
				out = append(out, name+s.String())
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, "\n") + "\n"
}

var counters = []string{
	"istio_requests_total", "istio_request_messages_total", "istio_response_messages_total", "istio_tcp_connections_opened_total",
	"istio_tcp_connections_closed_total", "istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total",
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what it was; got\n%s", path, got)
	}
}

// agree compares what both ends say about the same calls.
func (tn *town) agree(t *testing.T, names ...string) {
	t.Helper()
	texts := func(p *process, name, reporter string) (out []string) {
		for _, s := range p.scrape(t, name) {
			if s.has("reporter", reporter, "destination_service", host) {
				delete(s.labels, "reporter")
				out = append(out, name+s.String())
			}
		}
		slices.Sort(out)
		return out
	}
	for _, name := range names {
		source, destination := texts(tn.source, name, "source"), texts(tn.destination, name, "destination")
		if !slices.Equal(source, destination) || len(source) == 0 {
			t.Errorf("the source says\n%s\nand the destination\n%s", strings.Join(source, "\n"), strings.Join(destination, "\n"))
		}
	}
}

func modes(t *testing.T, test func(t *testing.T, secure bool)) {
	for name, secure := range map[string]bool{"mTLS": true, "plaintext": false} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			test(t, secure)
		})
	}
}

func suffix(secure bool) string {
	if secure {
		return "_mtls"
	}
	return "_plaintext"
}

// settled waits until the destination has counted what the source has: its handlers return a little later.
func (tn *town) settled(t *testing.T, name string, labels ...string) {
	t.Helper()
	want := tn.source.total(t, name, "destination_service", host)
	await.True(t, fmt.Sprintf("%v of %s at the destination", want, name), func() bool { return tn.destination.total(t, name, labels...) >= want })
}

func TestLabelsOfHTTP(t *testing.T) {
	modes(t, func(t *testing.T, secure bool) {
		tn := newTown(t, closed, secure)
		tn.serveHTTP(t, orders(t))
		for path, want := range map[string]int{"/": 200, "/lost": 404, "/closed": 403} {
			for _, method := range []string{http.MethodGet, http.MethodPost} {
				if code := do(t, tn.web, method, "http://"+host+path, "body"); code != want {
					t.Errorf("%s is answered with %d, want %d", path, code, want)
				}
			}
		}
		tn.settled(t, "istio_requests_total")
		golden(t, "http"+suffix(secure), tn.lines(t, counters...))
		takenByKiali(t, tn.source)
		takenByKiali(t, tn.destination)
		if secure {
			tn.agree(t, "istio_requests_total")
		}
		for _, name := range []string{"istio_request_bytes", "istio_response_bytes", "istio_request_duration_milliseconds"} {
			for _, p := range []*process{tn.source, tn.destination} {
				if n := p.total(t, name); n != 6 {
					t.Errorf("%v of %s, want 6", n, name)
				}
			}
		}
	})
}

// A call that is repeated is one at the source, with the answer that its caller got, and several at the destination.
func TestRetriedCalls(t *testing.T) {
	const retried = `
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: retried, namespace: default}
spec:
  hosts: [retried.shop.svc.cluster.local]
  http: [{route: [{destination: {host: order.shop.svc.cluster.local}}], retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}}]
`
	tn := newTown(t, retried, true)
	var requests atomic.Int32
	tn.serveHTTP(t, func(w http.ResponseWriter, _ *http.Request) {
		if requests.Add(1) <= 2 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	if code := do(t, tn.web, http.MethodGet, "http://retried.shop.svc.cluster.local/", ""); code != 200 {
		t.Errorf("answered with %d", code)
	}
	await.True(t, "three requests at the destination", func() bool { return tn.destination.total(t, "istio_requests_total") == 3 })
	tn.source.is(t, 1, "istio_requests_total", "response_code", "200", "response_flags", "-")
	tn.source.is(t, 1, "istio_request_duration_milliseconds")
	tn.destination.is(t, 2, "istio_requests_total", "response_code", "503", "response_flags", "-")
	tn.destination.is(t, 1, "istio_requests_total", "response_code", "200", "response_flags", "-")
}

func TestLabelsOfGRPC(t *testing.T) {
	modes(t, func(t *testing.T, secure bool) {
		tn := newTown(t, "", secure)
		ln := rawtest.Listen(t)
		tn.add(t, host, ln.Addr().String())
		var wait sync.WaitGroup
		wait.Add(1)
		grpctest.ServeOn(t, tn.order.Listen(ln), &grpctest.Service{
			Unary: func(_ context.Context, in *grpctest.Request) (*grpctest.Response, error) {
				if in.GetFillUsername() {
					return nil, status.Error(codes.NotFound, "no such order")
				}
				return &grpctest.Response{}, nil
			},
			Bidi: func(stream grpctest.BidiServer) error {
				for {
					if _, err := stream.Recv(); err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
					if err := stream.Send(&grpctest.Out{}); err != nil {
						return err
					}
				}
			},
		}, meshgrpc.ServerOptions(tn.order)...)
		conn, err := grpc.NewClient("mesh:///"+host, meshgrpc.DialOptions(tn.web)...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		client := grpctest.NewClient(conn)
		for _, lost := range []bool{false, true, false} {
			_, err := client.UnaryCall(t.Context(), &grpctest.Request{FillUsername: lost})
			if got := status.Code(err) == codes.NotFound; got != lost {
				t.Errorf("answered with %v", err)
			}
		}
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := stream.Send(&grpctest.In{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
		}
		// While it goes on the destination knows all messages, and the source those of the calls before.
		await.True(t, "messages of a stream that goes on", func() bool {
			return tn.destination.total(t, "istio_request_messages_total") == 6 && tn.destination.total(t, "istio_response_messages_total") == 5
		})
		if n := tn.source.total(t, "istio_requests_total"); n != 3 {
			t.Errorf("%v calls have ended, want 3", n)
		}
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			t.Fatal(err)
		}
		await.True(t, "the end of the stream", func() bool { return tn.source.total(t, "istio_requests_total") == 4 })
		tn.settled(t, "istio_requests_total")
		golden(t, "grpc"+suffix(secure), tn.lines(t, counters...))
		takenByKiali(t, tn.source)
		takenByKiali(t, tn.destination)
		if secure {
			tn.agree(t, "istio_requests_total", "istio_request_messages_total", "istio_response_messages_total")
		}
	})
}

func TestLabelsOfTCP(t *testing.T) {
	modes(t, func(t *testing.T, secure bool) {
		tn := newTown(t, "", secure)
		ln := rawtest.Listen(t)
		tn.add(t, host, ln.Addr().String())
		raw := tn.order.ListenTCP(ln)
		rawtest.Serve(t, raw, func(conn net.Conn) {
			io.CopyN(conn, conn, 5)
			io.WriteString(conn, "bye")
			io.Copy(io.Discard, conn)
		})
		conn, err := tn.web.DialContext(t.Context(), "tcp", host+":80")
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "hello")
		if _, err := io.ReadFull(conn, make([]byte, 8)); err != nil {
			t.Fatal(err)
		}
		// What went over it so far is known while it is open.
		for _, p := range []*process{tn.source, tn.destination} {
			await.True(t, "what went over an open connection", func() bool {
				return p.total(t, "istio_tcp_received_bytes_total") == 5 && p.total(t, "istio_tcp_sent_bytes_total") == 8 &&
					p.total(t, "istio_tcp_connections_opened_total") == 1 && p.total(t, "istio_tcp_connections_closed_total") == 0
			})
		}
		io.WriteString(conn, "!")
		conn.Close()
		for _, p := range []*process{tn.source, tn.destination} {
			await.True(t, "the end of the connection", func() bool { return p.total(t, "istio_tcp_connections_closed_total") == 1 })
		}
		golden(t, "tcp"+suffix(secure), tn.lines(t, counters...))
		takenByKiali(t, tn.source)
		takenByKiali(t, tn.destination)
	})
}

// HTTP/2 without TLS has the same labels as HTTP/1.
func TestLabelsOfPlaintextHTTP2(t *testing.T) {
	leak.Check(t)
	const upgrade = `
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: order, namespace: default}
spec: {host: order.shop.svc.cluster.local, trafficPolicy: {connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}}
`
	tn := newTown(t, upgrade, false)
	tn.serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 || r.TLS != nil {
			t.Errorf("called over %s, TLS: %t", r.Proto, r.TLS != nil)
		}
	})
	if code := do(t, tn.web, http.MethodPost, "http://"+host+"/", "body"); code != 200 {
		t.Error(code)
	}
	tn.settled(t, "istio_requests_total")
	for _, p := range []*process{tn.source, tn.destination} {
		if s := p.one(t, "istio_requests_total"); !s.has("response_code", "200", "request_protocol", "http", "connection_security_policy", "none") {
			t.Errorf("counted as %v", s)
		}
		takenByKiali(t, p)
	}
}

// A server that refuses a request says why; its caller knows the code.
func TestLabelsOfRefusals(t *testing.T) {
	leak.Check(t)
	p := newProcess(t, metrics.Config{})
	m := meshtest.New(t, "", mesh.WithObserver(p.Observer()), mesh.WithServer(mesh.ServerConfig{
		RateLimit: limit.RateConfig{PerSecond: 0.001, Burst: 1}, MaxRequests: 1,
	}))
	var inside http.Handler
	inside = m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inside.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil)) // beyond MaxRequests
	}))
	for range 2 {
		inside.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/", nil))
	}
	for code, flags := range map[string]string{"200": "-", "503": "UO", "429": "RL"} {
		if s := p.one(t, "istio_requests_total", "response_code", code); s.value() != 1 || !s.has("response_flags", flags) {
			t.Errorf("%s: %v", code, s)
		}
	}
}

// Calls that reach nobody, or nobody of the mesh.
func TestLabelsWithoutDestination(t *testing.T) {
	leak.Check(t)
	tn := newTown(t, "", false, mesh.WithRegistryOnly())
	tn.registry.Set("empty.shop.svc.cluster.local")
	tn.registry.Set("down.shop.svc.cluster.local", meshtest.Refusing(t))
	for _, name := range []string{"empty.shop.svc.cluster.local", "down.shop.svc.cluster.local", "a.example.com", "b.example.com"} {
		if code := do(t, tn.web, http.MethodGet, "http://"+name+"/", ""); code != 0 {
			t.Errorf("%s is answered with %d", name, code)
		}
	}
	if conn, err := tn.web.DialContext(t.Context(), "tcp", "down.shop.svc.cluster.local:80"); err == nil {
		conn.Close()
		t.Error("a connection to nobody")
	}
	golden(t, "nobody", tn.lines(t, counters...))
	takenByKiali(t, tn.source)
}

// Somebody outside is told nothing, whether a document names it or not.
func TestOutsideIsToldNothing(t *testing.T) {
	leak.Check(t)
	var told atomic.Int32
	server := meshtest.Serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get(asserted.PeerMetadata) != "" && r.Header.Get(asserted.PeerMetadataID) != "" {
			told.Add(1)
		} else if r.Header.Get(asserted.PeerMetadata) != "" || r.Header.Get(asserted.PeerMetadataID) != "" {
			t.Errorf("told %v", r.Header)
		}
	})
	address := fmt.Sprintf("%s:%d", server.Address, server.Port)
	tn := newTown(t, fmt.Sprintf(`
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: outside, namespace: default}
spec:
  hosts: [api.example.com]
  location: MESH_EXTERNAL
  resolution: STATIC
  ports: [{number: 80, name: http, protocol: HTTP}]
  endpoints: [{address: %s, ports: {http: %d}}]
`, server.Address, server.Port), false)
	for name, want := range map[string]int32{address: 0, "api.example.com": 0, host: 1} {
		told.Store(0)
		tn.add(t, host, address)
		if code := do(t, tn.web, http.MethodGet, "http://"+name+"/", ""); code != 200 {
			t.Error(name, code)
		}
		if got := told.Load(); got != want {
			t.Errorf("%s is told %d times who calls, want %d", name, got, want)
		}
	}
	s := tn.source.one(t, "istio_requests_total", "destination_service_name", "PassthroughCluster")
	if !s.has("destination_service", "unknown", "response_code", "200", "response_flags", "-") {
		t.Errorf("counted as %v", s)
	}
	tn.source.is(t, 1, "istio_requests_total", "destination_service", "api.example.com", "destination_service_name", "api.example.com")
	takenByKiali(t, tn.source)
}

// A caller that gives up is the same for both ends: nothing was answered.
func TestLabelsOfCallersThatGiveUp(t *testing.T) {
	modes(t, func(t *testing.T, secure bool) {
		tn := newTown(t, "", secure)
		tn.named = true // since there is no answer that says it
		arrived := make(chan struct{}, 1)
		tn.serveHTTP(t, func(w http.ResponseWriter, r *http.Request) {
			arrived <- struct{}{}
			<-r.Context().Done()
		})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			<-arrived
			cancel()
		}()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		if resp, err := tn.web.Client().Do(req); err == nil {
			resp.Body.Close()
			t.Error("answered")
		}
		tn.gaveUp(t, secure, "http")
	})
}

func TestLabelsOfGRPCCallersThatGiveUp(t *testing.T) {
	modes(t, func(t *testing.T, secure bool) {
		tn := newTown(t, "", secure)
		tn.named = true // since there is no answer that says it
		ln := rawtest.Listen(t)
		tn.add(t, host, ln.Addr().String())
		arrived := make(chan struct{}, 1)
		grpctest.ServeOn(t, tn.order.Listen(ln), &grpctest.Service{
			Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
				arrived <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			},
		}, meshgrpc.ServerOptions(tn.order)...)
		conn, err := grpc.NewClient("mesh:///"+host, meshgrpc.DialOptions(tn.web)...)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			<-arrived
			cancel()
		}()
		if _, err := grpctest.NewClient(conn).UnaryCall(ctx, &grpctest.Request{}); status.Code(err) != codes.Canceled {
			t.Error(err)
		}
		tn.gaveUp(t, secure, "grpc")
	})
}

func (tn *town) gaveUp(t *testing.T, secure bool, protocol string) {
	t.Helper()
	for _, p := range []*process{tn.source, tn.destination} {
		await.True(t, "a call that was given up", func() bool { return p.total(t, "istio_requests_total") == 1 })
		if s := p.one(t, "istio_requests_total"); !s.has("response_code", "0", "response_flags", "DC", "grpc_response_status", "", "request_protocol", protocol) {
			t.Errorf("counted as %v", s)
		}
		takenByKiali(t, p)
	}
	if secure {
		tn.agree(t, "istio_requests_total")
	}
}
