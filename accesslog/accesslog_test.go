package accesslog_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

// lines is a writer that tests read.
type lines struct {
	mu     sync.Mutex
	text   bytes.Buffer
	writes int
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes++
	return l.text.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Split(strings.TrimSuffix(l.text.String(), "\n"), "\n")
}

// newLog returns a log to a writer that is closed with the test, if not before.
func newLog(t testing.TB, c accesslog.Config) (*accesslog.Log, *lines) {
	t.Helper()
	out := new(lines)
	if c.Writer == nil && c.Handler == nil {
		c.Writer = out
	}
	access, err := accesslog.New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { access.Close() })
	return access, out
}

// closed returns the lines of a log after closing it, as JSON.
func closed(t testing.TB, access *accesslog.Log, out *lines) (all []map[string]any) {
	t.Helper()
	if err := access.Close(); err != nil {
		t.Fatal(err)
	}
	for _, line := range out.all() {
		if line == "" {
			continue
		}
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		all = append(all, fields)
	}
	return all
}

func want(t *testing.T, line map[string]any, fields map[string]any) {
	t.Helper()
	for key, value := range fields {
		if n, ok := value.(int); ok {
			value = float64(n)
		}
		if line[key] != value {
			t.Errorf("%s is %v, want %v", key, line[key], value)
		}
	}
}

func get(t *testing.T, m *mesh.Mesh, method, url string, body io.Reader, header http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range header {
		req.Header[name] = values
	}
	resp, err := m.Transport().RoundTrip(req)
	if err != nil {
		return // it is logged
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
}

const documents = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
  - name: broken
    match: [{uri: {prefix: /broken}}]
    route: [{destination: {host: nobody}}]
  - name: away
    match: [{uri: {prefix: /away}}]
    redirect: {uri: /there}
  - name: fault
    match: [{uri: {prefix: /fault}}]
    fault: {abort: {httpStatus: 418, percentage: {value: 100}}}
    route: [{destination: {host: orders}}]
  - name: all
    match: [{uri: {prefix: /orders}}]
    route: [{destination: {host: orders}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: nobody}
spec:
  host: nobody
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: default}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: ["/orders/secret*"]}}]}]
`

// A call is logged by its client and by its server, with the same facts.
func TestCallsAndRequests(t *testing.T) {
	leak.Check(t)
	access, out := newLog(t, accesslog.Config{})
	served, servedOut := newLog(t, accesslog.Config{})
	var registry discovery.Memory
	server := meshtest.New(t, documents, mesh.WithObserver(served.Observer()))
	orders := meshtest.Serve(t, server.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("X-Envoy-Upstream-Service-Time", "7")
		w.WriteHeader(http.StatusCreated)
		_, _ = io.WriteString(w, "ordered")
	})).ServeHTTP)
	registry.Set("orders.default.svc.cluster.local", orders)
	registry.Set("nobody.default.svc.cluster.local", meshtest.Refusing(t))
	client := meshtest.New(t, documents, mesh.WithObserver(access.Observer()), mesh.WithDiscovery(&registry))
	header := http.Header{"User-Agent": {"test/1"}, "X-Request-Id": {"abc"}}
	for _, path := range []string{"/orders?a=%20b", "/orders/secret", "/broken", "/away", "/fault", "/none"} {
		get(t, client, http.MethodPost, "http://orders"+path, strings.NewReader("0123456789"), header)
	}
	client.Close()
	all := closed(t, access, out)
	if len(all) != 6 {
		t.Fatalf("%d lines, want 6: %v", len(all), all)
	}
	const cluster = "outbound|80||orders.default.svc.cluster.local"
	address := net.JoinHostPort(orders.Address, strconv.Itoa(orders.Port))
	want(t, all[0], map[string]any{
		"method": "POST", "path": "/orders?a=%20b", "protocol": "HTTP/1.1", "response_code": 201, "response_flags": "-",
		"response_code_details": "via_upstream", "authority": "orders", "user_agent": "test/1", "request_id": "abc",
		"route_name": "all", "upstream_cluster": cluster, "connection_termination_details": "-", "x_forwarded_for": "-",
		"upstream_transport_failure_reason": "-", "downstream_remote_address": "-", "requested_server_name": "-",
		"bytes_received": 10, "bytes_sent": 7, "upstream_host": address, "upstream_service_time": "7",
	})
	want(t, all[1], map[string]any{"response_code": 403, "response_code_details": "via_upstream"})
	want(t, all[2], map[string]any{
		"response_code": 503, "response_flags": "UF,URX", "route_name": "broken", "upstream_service_time": "-",
		"response_code_details": "upstream_reset_before_response_started{connection_failure}",
	})
	if reason := all[2]["upstream_transport_failure_reason"]; !strings.Contains(reason.(string), "refused") {
		t.Errorf("the transport failed with %v", reason)
	}
	want(t, all[3], map[string]any{"response_code": 301, "response_code_details": "direct_response", "upstream_cluster": "-"})
	want(t, all[4], map[string]any{"response_code": 418, "response_flags": "FI", "response_code_details": "fault_filter_abort"})
	want(t, all[5], map[string]any{"response_code": 404, "response_flags": "NR", "response_code_details": "route_not_found", "route_name": "-"})

	in := closed(t, served, servedOut)
	if len(in) != 2 {
		t.Fatalf("%d lines of the server, want 2: %v", len(in), in)
	}
	port := address[strings.LastIndexByte(address, ':')+1:]
	want(t, in[0], map[string]any{
		"method": "POST", "path": "/orders?a=%20b", "protocol": "HTTP/1.1", "response_code": 201, "response_flags": "-",
		"response_code_details": "via_upstream", "authority": "orders", "user_agent": "test/1", "route_name": "default",
		"upstream_cluster": "inbound|" + port + "||", "downstream_local_address": address, "upstream_host": "-",
		"bytes_received": 10, "bytes_sent": 7,
	})
	if remote := in[0]["downstream_remote_address"].(string); !strings.HasPrefix(remote, "127.0.0.1:") || remote == address {
		t.Errorf("the peer is %s", remote)
	}
	want(t, in[1], map[string]any{
		"response_code": 403, "response_code_details": "rbac_access_denied_matched_policy[ns[default]-policy[secrets]-rule[0]]",
	})
}

func TestGRPC(t *testing.T) {
	leak.Check(t)
	access, out := newLog(t, accesslog.Config{})
	served, servedOut := newLog(t, accesslog.Config{})
	var registry discovery.Memory
	server := meshtest.New(t, "", mesh.WithObserver(served.Observer()))
	registry.Set("echo", meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{
		Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
			return nil, status.Error(codes.NotFound, "none")
		},
	}, meshgrpc.ServerOptions(server)...)))
	client := meshtest.New(t, "", mesh.WithObserver(access.Observer()), mesh.WithDiscovery(&registry))
	conn, err := grpc.NewClient("mesh:///echo", meshgrpc.DialOptions(client)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	server.Close()
	for side, all := range map[string][]map[string]any{"client": closed(t, access, out), "server": closed(t, served, servedOut)} {
		if len(all) != 1 {
			t.Fatalf("%s: %d lines, want 1: %v", side, len(all), all)
		}
		want(t, all[0], map[string]any{
			"method": "POST", "path": "/grpc.testing.TestService/UnaryCall", "protocol": "HTTP/2", "response_code": 200,
			"response_code_details": "via_upstream", "authority": "echo", "bytes_received": 5, "bytes_sent": 0,
		})
	}
}

var textLine = regexp.MustCompile(`^\[\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\] "GET /orders/7 HTTP/1\.1" 200 - via_upstream - "-" \d+ \d+ \d+ - "-" "test/1" "-" "orders" "[^"]+" outbound\|80\|\|orders\.default\.svc\.cluster\.local \S+ - - - default$`)

func TestTextHasIstiosOrder(t *testing.T) {
	leak.Check(t)
	access, out := newLog(t, accesslog.Config{Format: accesslog.Text})
	var registry discovery.Memory
	registry.Set("orders", meshtest.Serve(t, func(http.ResponseWriter, *http.Request) {}))
	m := meshtest.New(t, "", mesh.WithObserver(access.Observer()), mesh.WithDiscovery(&registry))
	get(t, m, http.MethodGet, "http://orders/orders/7", nil, http.Header{"User-Agent": {"test/1"}})
	m.Close()
	access.Close()
	if all := out.all(); len(all) != 1 || !textLine.MatchString(all[0]) {
		t.Errorf("logged %q", all)
	}
}

func TestHandlerGetsTheSameKeys(t *testing.T) {
	leak.Check(t)
	out := new(lines)
	access, _ := newLog(t, accesslog.Config{Handler: slog.NewJSONHandler(out, nil).WithAttrs([]slog.Attr{slog.String("app", "shop")})})
	m := meshtest.New(t, "", mesh.WithObserver(access.Observer()))
	m.Handler(http.NotFoundHandler()).ServeHTTP(discard{}, newRequest("/x"))
	m.Close()
	all := closed(t, access, out)
	if len(all) != 1 || len(all[0]) != 24+4 {
		t.Fatalf("logged %v", all)
	}
	want(t, all[0], map[string]any{"app": "shop", "level": "INFO", "msg": "access", "response_code": 404, "path": "/x", "method": "GET"})
}

type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(p []byte) (int, error) { return len(p), nil }
func (discard) WriteHeader(int)             {}

func newRequest(path string) *http.Request {
	r, _ := http.NewRequest(http.MethodGet, "http://shop"+path, nil)
	return r
}

func TestFilter(t *testing.T) {
	ended := func(status, grpcStatus int, d time.Duration, flags mesh.Flags, err error) *mesh.Call {
		return &mesh.Call{Request: newRequest("/"), Status: status, GRPCStatus: grpcStatus, Duration: d, Flags: flags, Err: err}
	}
	failed := errors.New("failed")
	for _, tt := range []struct {
		name   string
		filter accesslog.Filter
		call   *mesh.Call
		want   bool
	}{
		{"none", accesslog.Filter{}, ended(200, -1, 0, 0, nil), true},
		{"code below", accesslog.Filter{Code: 500}, ended(404, -1, 0, 0, nil), false},
		{"code", accesslog.Filter{Code: 500}, ended(500, -1, 0, 0, nil), true},
		{"no answer", accesslog.Filter{Code: 500}, ended(0, -1, 0, 0, failed), true},
		{"no answer, with a flag", accesslog.Filter{Code: 503}, ended(0, -1, 0, mesh.FlagConnectFailure, failed), true},
		{"caller gave up", accesslog.Filter{Code: 500}, ended(0, -1, 0, mesh.FlagCallerGone, failed), false},
		{"gRPC unavailable", accesslog.Filter{Code: 500}, ended(200, 14, 0, 0, nil), true},
		{"gRPC not found", accesslog.Filter{Code: 500}, ended(200, 5, 0, 0, nil), false},
		{"gRPC not found", accesslog.Filter{Code: 400}, ended(200, 5, 0, 0, nil), true},
		{"fast", accesslog.Filter{Duration: time.Second}, ended(500, -1, time.Second-1, 0, nil), false},
		{"slow", accesslog.Filter{Duration: time.Second}, ended(200, -1, time.Second, 0, nil), true},
		{"other flags", accesslog.Filter{Flags: mesh.FlagOverflow}, ended(503, -1, 0, mesh.FlagNoRoute, nil), false},
		{"flags", accesslog.Filter{Flags: mesh.FlagOverflow | mesh.FlagNoRoute}, ended(503, -1, 0, mesh.FlagNoRoute, nil), true},
		{"any flag", accesslog.Filter{Flags: ^mesh.Flags(0)}, ended(503, -1, 0, mesh.FlagDelayInjected, nil), true},
		{"any of them", accesslog.Filter{Code: 500, Duration: time.Second}, ended(200, -1, time.Second, 0, nil), true},
	} {
		access, out := newLog(t, accesslog.Config{Filter: tt.filter})
		access.Observer().CallEnd(t.Context(), tt.call)
		if got := len(closed(t, access, out)) == 1; got != tt.want || access.Dropped() != 0 {
			t.Errorf("%s: logged: %t, want %t; %d dropped", tt.name, got, tt.want, access.Dropped())
		}
	}
}

// A request that was cut off without a response counts as failed, as a call does.
func TestFilterKeepsRequestsWithoutResponse(t *testing.T) {
	leak.Check(t)
	served, out := newLog(t, accesslog.Config{Filter: accesslog.Filter{Code: 500}})
	server := meshtest.New(t, documents, mesh.WithObserver(served.Observer()))
	var registry discovery.Memory
	registry.Set("orders.default.svc.cluster.local", meshtest.Serve(t, server.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/orders/aborted" {
			panic(http.ErrAbortHandler)
		}
	})).ServeHTTP))
	client := meshtest.New(t, documents, mesh.WithDiscovery(&registry))
	for _, path := range []string{"/orders/served", "/orders/aborted"} {
		get(t, client, http.MethodPost, "http://orders"+path, nil, nil)
	}
	client.Close()
	server.Close()
	all := closed(t, served, out)
	if len(all) != 1 {
		t.Fatalf("%d lines, want 1: %v", len(all), all)
	}
	want(t, all[0], map[string]any{"path": "/orders/aborted", "response_code": 0})
}

func TestSampling(t *testing.T) {
	access, out := newLog(t, accesslog.Config{Sampling: 0.25, Queue: 20000})
	call := &mesh.Call{Request: newRequest("/"), Status: 200, GRPCStatus: -1}
	for range 20000 {
		access.Observer().CallEnd(t.Context(), call)
	}
	// 5,000 with a standard deviation of 61.
	if n := len(closed(t, access, out)); n < 4500 || n > 5500 {
		t.Errorf("%d of 20,000 lines, want a quarter", n)
	}
}

// gate is a writer that waits.
type gate struct {
	lines
	entered chan struct{}
	open    chan struct{}
}

func newGate() *gate { return &gate{entered: make(chan struct{}, 1000), open: make(chan struct{})} }

func (g *gate) Write(p []byte) (int, error) {
	g.entered <- struct{}{}
	<-g.open
	return g.lines.Write(p)
}

func TestFullQueueDropsAndCounts(t *testing.T) {
	leak.Check(t)
	out := newGate()
	access, _ := newLog(t, accesslog.Config{Writer: out, Queue: 10})
	call := &mesh.Call{Request: newRequest("/"), Status: 200, GRPCStatus: -1}
	access.Observer().CallEnd(t.Context(), call)
	await.Receive(t, "the first line", out.entered) // and the writer is held up
	for range 25 {
		access.Observer().CallEnd(t.Context(), call)
	}
	if n := access.Dropped(); n != 15 {
		t.Errorf("%d dropped, want 15", n)
	}
	close(out.open)
	if n := len(closed(t, access, &out.lines)); n != 11 {
		t.Errorf("%d lines, want 11", n)
	}
	access.Observer().CallEnd(t.Context(), call)
	if n := access.Dropped(); n != 16 {
		t.Errorf("%d dropped after Close, want 16", n)
	}
	if err := access.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}

func TestCloseDoesNotWaitForever(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newGate()
		access, err := accesslog.New(accesslog.Config{Writer: out})
		if err != nil {
			t.Fatal(err)
		}
		access.Observer().CallEnd(t.Context(), &mesh.Call{Request: newRequest("/"), Status: 200, GRPCStatus: -1})
		began := time.Now()
		if err := access.Close(); err == nil || time.Since(began) != 10*time.Second {
			t.Errorf("Close returned %v after %v", err, time.Since(began))
		}
		close(out.open)
		if err := access.Close(); err != nil || len(out.all()) != 1 {
			t.Errorf("Close returned %v with the lines %q", err, out.all())
		}
	})
}

// Whatever ended before Close has its line; what ends meanwhile has one, or is counted.
func TestCloseUnderLoad(t *testing.T) {
	leak.Check(t)
	for range 20 {
		access, out := newLog(t, accesslog.Config{Queue: 100000})
		call := &mesh.Call{Request: newRequest("/"), Status: 200, GRPCStatus: -1}
		const before, callers, each = 100, 4, 500
		for range before {
			access.Observer().CallEnd(t.Context(), call)
		}
		var load sync.WaitGroup
		for range callers {
			load.Go(func() {
				for range each {
					access.Observer().CallEnd(t.Context(), call)
				}
			})
		}
		n := len(closed(t, access, out))
		load.Wait()
		if dropped := int(access.Dropped()); n < before || n+dropped != before+callers*each {
			t.Fatalf("%d lines and %d dropped of %d", n, dropped, before+callers*each)
		}
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, errFull }

var errFull = errors.New("disk full")

func TestErrorsOfTheWriter(t *testing.T) {
	access, _ := newLog(t, accesslog.Config{Writer: failing{}})
	for range 3 {
		access.Observer().CallEnd(t.Context(), &mesh.Call{Request: newRequest("/"), Status: 200, GRPCStatus: -1})
	}
	if err := access.Close(); !errors.Is(err, errFull) || access.Dropped() != 3 {
		t.Errorf("Close returned %v, %d dropped", err, access.Dropped())
	}
}

// panicking is a Handler and a Writer that panics once, and then takes what it gets.
type panicking struct {
	slog.Handler
	io.Writer
	panicked bool
}

func (p *panicking) once() {
	if !p.panicked {
		p.panicked = true
		panic("broken")
	}
}

func (p *panicking) Write(b []byte) (int, error) {
	p.once()
	return p.Writer.Write(b)
}

func (p *panicking) Handle(ctx context.Context, r slog.Record) error {
	p.once()
	return p.Handler.Handle(ctx, r)
}

// A Handler or Writer that panics costs the lines it was given, and does not end the program.
func TestPanicsOfTheHandlerAndWriter(t *testing.T) {
	leak.Check(t)
	out := new(lines)
	for name, c := range map[string]accesslog.Config{
		"Handler": {Handler: &panicking{Handler: slog.NewJSONHandler(out, nil)}},
		"Writer":  {Writer: &panicking{Writer: out}},
	} {
		access, _ := newLog(t, c)
		log := func() {
			access.Observer().CallEnd(t.Context(), &mesh.Call{Request: newRequest("/"), Status: 200, GRPCStatus: -1})
		}
		log()
		await.True(t, "the panic", func() bool { return access.Dropped() == 1 })
		log()
		if err := access.Close(); err == nil || !strings.Contains(err.Error(), "broken") || access.Dropped() != 1 {
			t.Errorf("%s: Close returned %v, %d dropped", name, err, access.Dropped())
		}
	}
	if all := out.all(); len(all) != 2 {
		t.Errorf("lines %q, want the second of each log", all)
	}
}

// unspeakable is an error that panics when it is asked what it says.
type unspeakable struct{}

func (unspeakable) Error() string { panic("broken") }

// So does an error that panics, which is of the program's own dialer, say.
func TestPanicsOfErrors(t *testing.T) {
	leak.Check(t)
	access, out := newLog(t, accesslog.Config{})
	access.Observer().CallEnd(t.Context(), &mesh.Call{Request: newRequest("/"), GRPCStatus: -1, Err: unspeakable{}, Flags: mesh.FlagConnectFailure})
	access.Observer().CallEnd(t.Context(), &mesh.Call{Request: newRequest("/"), Status: 200, GRPCStatus: -1})
	if err := access.Close(); err == nil || access.Dropped() != 1 || len(out.all()) != 1 {
		t.Errorf("Close returned %v, %d dropped, lines %q", err, access.Dropped(), out.all())
	}
}

func TestInvalidConfig(t *testing.T) {
	handler := slog.DiscardHandler
	for want, c := range map[string]accesslog.Config{
		"neither":    {},
		"and a":      {Writer: io.Discard, Handler: handler},
		"Format 7":   {Writer: io.Discard, Format: 7},
		"has its":    {Handler: handler, Format: accesslog.Text},
		"Sampling":   {Writer: io.Discard, Sampling: 1.5},
		"Queue":      {Writer: io.Discard, Queue: -1},
		"a negative": {Writer: io.Discard, Filter: accesslog.Filter{Code: -1}},
	} {
		if _, err := accesslog.New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}

// The second and the addresses that lines share are kept from one to the next, and no longer.
func TestTimesAndAddressesOfManyLines(t *testing.T) {
	access, out := newLog(t, accesslog.Config{})
	o := access.Observer()
	in := sampleInbound()
	cases := []struct {
		start, wantStart string
		local            net.Addr
		wantLocal, port  string
	}{
		{"2026-08-01T10:00:00.000Z", "", &net.TCPAddr{IP: net.IPv4(10, 0, 0, 8), Port: 80}, "10.0.0.8:80", "80"},
		{"2026-08-01T10:00:00.999Z", "", &net.TCPAddr{IP: net.IPv4(10, 0, 0, 8), Port: 81}, "10.0.0.8:81", "81"},
		{"2026-08-01T10:00:01.007Z", "", &net.TCPAddr{IP: net.IPv4(10, 0, 0, 8).To4(), Port: 81}, "10.0.0.8:81", "81"},
		{"2026-08-01T12:00:01.07+02:00", "2026-08-01T10:00:01.070Z", &net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 81, Zone: "eth0"}, "[fe80::1%eth0]:81", "81"},
		{"1969-12-31T23:59:59.5Z", "1969-12-31T23:59:59.500Z", &net.TCPAddr{IP: net.ParseIP("fe80::1"), Port: 81, Zone: "eth1"}, "[fe80::1%eth1]:81", "81"},
		{"1970-01-01T00:00:00Z", "1970-01-01T00:00:00.000Z", &net.TCPAddr{}, ":0", "0"},
		{"1970-01-01T00:00:00.001Z", "", &net.UnixAddr{Name: "/run/orders", Net: "unix"}, "/run/orders", ""},
		{"1970-01-01T00:00:00.002Z", "", nil, "-", ""},
		{"1970-01-01T00:00:00.003Z", "", (*net.TCPAddr)(nil), "<nil>", ""},
	}
	for _, c := range cases {
		at, err := time.Parse(time.RFC3339Nano, c.start)
		if err != nil {
			t.Fatal(err)
		}
		in.Start = at
		in.Request = in.Request.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, c.local))
		o.InboundEnd(t.Context(), in)
	}
	for i, line := range closed(t, access, out) {
		c := cases[i]
		want(t, line, map[string]any{
			"start_time": cmp.Or(c.wantStart, c.start), "downstream_local_address": c.wantLocal, "upstream_cluster": "inbound|" + c.port + "||",
		})
	}
}

// Mirrored copies are not what anybody asked for.
func TestMirrorsHaveNoLines(t *testing.T) {
	access, out := newLog(t, accesslog.Config{})
	access.Observer().CallEnd(t.Context(), &mesh.Call{Request: newRequest("/"), Mirror: true})
	if all := closed(t, access, out); len(all) != 0 {
		t.Errorf("logged %v", all)
	}
}
