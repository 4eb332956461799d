package realservers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/metrics"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
)

// The program of these tests is also that of the processes which they scrape: with these variables it is one of them.
const (
	roleVariable  = "MESH_TEST_ROLE"
	certsVariable = "MESH_TEST_CERTS"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role == canaryRole {
		if err := callCanary(os.Stdin, os.Stdout); err != nil {
			log.Fatal(err)
		}
		return
	} else if role == watcherRole {
		if err := runWatcher(); err != nil {
			log.Fatal(err)
		}
		return
	} else if role != "" {
		if err := serveRole(role, os.Getenv(certsVariable)); err != nil {
			log.Fatal(err)
		}
		return
	}
	os.Exit(leak.Run(m))
}

// townDocuments are those of both processes. What goes to services of other names than the two ends at the one of them, too, where it
// fails in ways that the dashboards are to show.
const townDocuments = `
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: order-service, namespace: default}
spec:
  hosts: [order-service]
  http:
  - match: [{uri: {prefix: /upload}}]
    route: [{destination: {host: order-service}}]
    mirror: {host: user-service}
  - route: [{destination: {host: order-service}}]
    retries: {attempts: 0}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: slow-service, namespace: default}
spec:
  host: slow-service
  trafficPolicy:
    connectionPool: {tcp: {maxConnections: 10}, http: {http1MaxPendingRequests: 1, http2MaxRequests: 1, maxRetries: 1}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: failing-service, namespace: default}
spec:
  host: failing-service
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 3, interval: 1h, baseEjectionTime: 1h, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: kept-service, namespace: default}
spec: {host: kept-service, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 3, interval: 1h}}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: retried-service, namespace: default}
spec:
  hosts: [retried-service]
  http: [{route: [{destination: {host: retried-service}}], retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: exhausted-service, namespace: default}
spec:
  hosts: [exhausted-service]
  http: [{route: [{destination: {host: exhausted-service}}], retries: {attempts: 2, retryOn: 5xx, backoff: 1ms}}]
`

// tokens says whose tokens are verified, with the keys at a URL. No call has one.
const tokens = `---
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: users, namespace: default}
spec: {jwtRules: [{issuer: users, jwksUri: %q}]}
`

// addresses are where a process listens.
type addresses struct{ Service, HTTP, GRPC, TCP, Control string }

// lost fails to find one service.
type lost struct{ discovery.Memory }

func (l *lost) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	if !strings.HasPrefix(service.Host, "lost-service.") {
		return l.Memory.Watch(ctx, service)
	}
	return func(yield func([]discovery.Endpoint, error) bool) {
		if yield(nil, errors.New("the registry is down")) {
			<-ctx.Done()
		}
	}
}

// town is one process: a service that is called over HTTP, gRPC and raw TCP, and calls the other one when it is told to.
type town struct {
	*mesh.Mesh
	registry lost
	conn     *grpc.ClientConn // to the other service
	other    string
	lose     sync.Once
}

func serveRole(service, certs string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	workload := policy.Workload{Namespace: "default", Labels: map[string]string{
		"app": service, "version": "v1", "service.istio.io/workload-name": service + "-v1"}}
	access, err := accesslog.New(accesslog.Config{Writer: io.Discard})
	if err != nil {
		return err
	}
	defer access.Close()
	recorded, err := metrics.New(metrics.Config{Workload: workload, MaxEndpoints: 20, Dropped: map[string]func() uint64{"access_log": access.Dropped}})
	if err != nil {
		return err
	}
	keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, jwttest.KeySet(jwttest.New("a")))
	}))
	defer keys.Close()
	p := &town{other: map[string]string{"user-service": "order-service", "order-service": "user-service"}[service]}
	p.Mesh, err = mesh.New(ctx, mesh.WithPolicy(policy.Source{Name: "town.yaml", Data: []byte(townDocuments + fmt.Sprintf(tokens, keys.URL))}),
		mesh.WithWorkload(workload), mesh.WithDiscovery(&p.registry), mesh.WithIdentity(tlsid.Files{Dir: certs}),
		mesh.WithObserver(recorded.Observer()), mesh.WithObserver(access.Observer()),
		mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{}}, "tripped-service"),
		mesh.WithProtection(mesh.Protection{RetryBudget: &retry.BudgetConfig{}}, "retried-service"),
		mesh.WithProtection(mesh.Protection{RetryBudget: &retry.BudgetConfig{MinPerSecond: -1, Ratio: 0.01}}, "exhausted-service"))
	if err != nil {
		return err
	}
	defer p.Close()
	if p.conn, err = grpc.NewClient("mesh:///"+p.other, meshgrpc.DialOptions(p.Mesh)...); err != nil {
		return err
	}
	defer p.conn.Close()

	at := addresses{Service: service}
	var listeners [4]net.Listener
	for i, address := range []*string{&at.HTTP, &at.GRPC, &at.TCP, &at.Control} {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
		*address = listeners[i].Addr().String()
	}
	overHTTP := &http.Server{Handler: p.Handler(http.HandlerFunc(answer)), ErrorLog: log.New(io.Discard, "", 0)}
	overGRPC := grpc.NewServer(meshgrpc.ServerOptions(p.Mesh)...)
	grpctest.Register(overGRPC, &grpctest.Service{
		Unary: func(_ context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if in.ResponseSize > 0 {
				return nil, status.Error(codes.NotFound, "no such order")
			}
			return &grpctest.Response{}, nil
		},
		Bidi: grpctest.EchoStream,
	})
	control := &http.Server{Handler: p.control()}
	var serving sync.WaitGroup
	serving.Go(func() { _ = overHTTP.Serve(p.Listen(listeners[0])) })
	serving.Go(func() { _ = overGRPC.Serve(p.Listen(listeners[1])) })
	raw := p.ListenTCP(listeners[2])
	serving.Go(func() { echo(raw) })
	serving.Go(func() { _ = control.Serve(listeners[3]) })
	if err := json.NewEncoder(os.Stdout).Encode(at); err != nil {
		return err
	}
	<-ctx.Done()
	overHTTP.Close()
	overGRPC.Stop()
	raw.Close()
	control.Close()
	serving.Wait()
	return nil
}

func echo(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

// answer is the service: its paths are statuses, or slow.
func answer(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	if r.URL.Path == "/slow" {
		select {
		case <-time.After(30 * time.Millisecond):
		case <-r.Context().Done():
		}
		w.WriteHeader(http.StatusAccepted)
	}
	if code, err := strconv.Atoi(strings.Trim(r.URL.Path, "/")); err == nil {
		w.WriteHeader(code)
	}
	fmt.Fprintln(w, "hello")
}

// control is for the test: the metrics, the registry, and rounds of calls.
func (p *town) control() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.Handler())
	mux.HandleFunc("POST /registry", func(w http.ResponseWriter, r *http.Request) {
		var all []addresses
		if err := json.NewDecoder(r.Body).Decode(&all); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		for _, a := range all {
			p.register(a)
		}
	})
	mux.HandleFunc("POST /calls", func(w http.ResponseWriter, r *http.Request) {
		if err := p.round(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	return mux
}

// register tells discovery where a service is. Its ports are those of the calls that are made to it.
func (p *town) register(a addresses) {
	endpoint := func(address string) discovery.Endpoint {
		host, port, _ := net.SplitHostPort(address)
		n, _ := strconv.Atoi(port)
		return discovery.Endpoint{Address: host, Port: n, ServiceAccount: "default/" + a.Service, Labels: map[string]string{
			"app": a.Service, "version": "v1", "service.istio.io/workload-name": a.Service + "-v1"}}
	}
	const domain = ".default.svc.cluster.local"
	p.registry.Set(a.Service+domain, endpoint(a.HTTP))
	p.registry.Set("grpc-"+a.Service+domain, endpoint(a.GRPC))
	p.registry.Set("tcp-"+a.Service+domain, endpoint(a.TCP))
	if a.Service == p.other {
		for _, name := range []string{"slow", "failing", "kept", "tripped", "retried", "exhausted"} {
			p.registry.Set(name+"-service"+domain, endpoint(a.HTTP))
		}
	}
}

// round makes a number of calls of each kind. Only those fail that are meant to.
func (p *town) round(ctx context.Context) error {
	var errs []error
	want := func(url string, code int) {
		if got := p.get(ctx, http.MethodGet, url, nil); got != code {
			errs = append(errs, fmt.Errorf("%s is answered with %d, want %d", url, got, code))
		}
	}
	for range 20 {
		want("http://"+p.other+"/orders", 200)
	}
	want("http://"+p.other+"/500", 500)
	want("http://"+p.other+"/404", 404)
	want("http://retried-service/503", 503)
	want("http://exhausted-service/503", 503)
	for range 10 { // until the endpoint is ejected, and the circuit open
		p.get(ctx, http.MethodGet, "http://failing-service/500", nil)
		p.get(ctx, http.MethodGet, "http://kept-service/500", nil) // whose only endpoint may not be ejected
		p.get(ctx, http.MethodGet, "http://tripped-service/500", nil)
	}
	p.get(ctx, http.MethodPut, "http://"+p.other+"/upload", io.MultiReader(strings.NewReader(strings.Repeat("x", 100<<10))))
	p.lose.Do(func() {
		brief, cancel := context.WithTimeout(ctx, 2*time.Second) // or else it waits longer for the registry
		defer cancel()
		p.get(brief, http.MethodGet, "http://lost-service/", nil)
	})
	var slow sync.WaitGroup
	var full atomic.Int32
	for range 6 {
		slow.Go(func() {
			if p.get(ctx, http.MethodGet, "http://slow-service/slow", nil) == 503 {
				full.Add(1)
			}
		})
	}
	slow.Wait()
	if full.Load() == 0 {
		errs = append(errs, errors.New("no call found the pool full"))
	}
	return errors.Join(append(errs, p.roundGRPC(ctx), p.roundTCP(ctx))...)
}

func (p *town) roundGRPC(ctx context.Context) error {
	conn, err := grpc.NewClient("mesh:///grpc-"+p.other, meshgrpc.DialOptions(p.Mesh)...)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := grpctest.NewClient(conn)
	for i := range 10 {
		_, err := client.UnaryCall(ctx, &grpctest.Request{ResponseSize: int32(i % 2)})
		if got, want := status.Code(err), []codes.Code{codes.OK, codes.NotFound}[i%2]; got != want {
			return fmt.Errorf("gRPC: %v", err)
		}
	}
	return nil
}

func (p *town) roundTCP(ctx context.Context) error {
	conn, err := p.DialContext(ctx, "tcp", "tcp-"+p.other+":80")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "hello"); err != nil {
		return err
	}
	_, err = io.ReadFull(conn, make([]byte, 5))
	return err
}

// get makes a call and returns the status, 0 without one.
func (p *town) get(ctx context.Context, method, url string, body io.Reader) int {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return 0
	}
	resp, err := p.Client().Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// startProcess starts this program as a service, which is stopped with the test.
func startProcess(t *testing.T, service, certs string) addresses {
	t.Helper()
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), roleVariable+"="+service, certsVariable+"="+certs)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	var at addresses
	if err := json.NewDecoder(out).Decode(&at); err != nil {
		t.Fatalf("%s does not say where it is: %v", service, err)
	}
	return at
}
