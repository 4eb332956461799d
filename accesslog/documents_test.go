package accesslog_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/telemetry/cel"
)

func logging(spec string) policy.Source {
	return policy.Source{Name: "t.yaml", Data: []byte(
		"apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: logs, namespace: default}\nspec: {accessLogging: [" + spec + "]}\n")}
}

// What documents say about lines counts for both sides, and from the moment on at which it is in force.
func TestDocumentsSayWhatIsLogged(t *testing.T) {
	leak.Check(t)
	const only = "{providers: [{name: envoy}], filter: {expression: \"%s\"}}"
	for _, tt := range []struct {
		spec           string
		client, server string // the paths that are logged
	}{
		{"{disabled: true}", "", ""},
		{"{match: {mode: CLIENT}, disabled: true}", "", "/a /b /c"},
		{"{match: {mode: SERVER}, disabled: true}", "/a /b /c", ""},
		{strings.ReplaceAll(only, "%s", "response.code >= 500"), "/b", "/b"},
		{strings.ReplaceAll(only, "%s", "request.headers['x-tenant'] == 'blue'"), "/c", "/c"},
		{strings.ReplaceAll(only, "%s", "request.url_path == '/a' && request.method == 'GET' && !connection.mtls"), "/a", "/a"},
		{strings.ReplaceAll(only, "%s", "!has(request.useragent) || response.duration > duration('1h')"), "", ""},
		{strings.ReplaceAll(only, "%s", "xds.cluster_name == 'outbound|80||orders.default.svc.cluster.local' && destination.port == 80"), "/a /b /c", ""},
		{strings.ReplaceAll(only, "%s", "source.address.startsWith('127.0.0.1:') && xds.cluster_name.startsWith('inbound|')"), "", "/a /b /c"},
		{strings.ReplaceAll(only, "%s", "filter_state.upstream_peer.app == 'orders' && filter_state.upstream_peer.labels['tier'] == 'back' && filter_state.upstream_peer.namespace == 'default'"), "/a /b /c", ""},
		{"{providers: [{name: envoy}]}", "/a /b /c", "/a /b /c"},
	} {
		called, out := newLog(t, accesslog.Config{})
		served, servedOut := newLog(t, accesslog.Config{})
		w := mesh.WithWorkload(policy.Workload{Expressions: cel.Expressions{}})
		server := meshtest.New(t, "", w, mesh.WithObserver(served.Observer()))
		var registry discovery.Memory
		endpoint := meshtest.Serve(t, server.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/b" {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
		})).ServeHTTP)
		endpoint.Labels = map[string]string{"app": "orders", "tier": "back"}
		registry.Set("orders.default.svc.cluster.local", endpoint)
		client := meshtest.New(t, "", w, mesh.WithObserver(called.Observer()), mesh.WithDiscovery(&registry))
		for _, m := range []*mesh.Mesh{client, server} {
			if err := m.Apply(logging(tt.spec)); err != nil {
				t.Fatal(err)
			}
		}
		get(t, client, http.MethodGet, "http://orders/a?x=y", nil, http.Header{"User-Agent": {"test"}})
		get(t, client, http.MethodPost, "http://orders/b", strings.NewReader("x"), http.Header{"User-Agent": {"test"}}) // which is not retried
		get(t, client, http.MethodGet, "http://orders/c", nil, http.Header{"User-Agent": {"test"}, "X-Tenant": {"blue"}})
		client.Close()
		paths := func(all []map[string]any) string {
			var paths []string
			for _, line := range all {
				path, _, _ := strings.Cut(line["path"].(string), "?")
				paths = append(paths, path)
			}
			return strings.Join(paths, " ")
		}
		c, s := paths(closed(t, called, out)), paths(closed(t, served, servedOut))
		if c != tt.client || s != tt.server {
			t.Errorf("%s: logged %q of calls and %q of requests, want %q and %q", tt.spec, c, s, tt.client, tt.server)
		}
		if n := called.Dropped() + served.Dropped(); n != 0 {
			t.Errorf("%s: %d lines were dropped", tt.spec, n)
		}
	}
}

func TestFilterOfGRPCStatus(t *testing.T) {
	leak.Check(t)
	access, out := newLog(t, accesslog.Config{})
	var registry discovery.Memory
	registry.Set("echo", meshtest.EndpointOf(t, grpctest.Serve(t, &grpctest.Service{
		Unary: func(_ context.Context, r *grpctest.Request) (*grpctest.Response, error) {
			if r.GetResponseSize() > 0 {
				return nil, status.Error(codes.NotFound, "none")
			}
			return &grpctest.Response{}, nil
		},
	})))
	m := meshtest.New(t, "", mesh.WithWorkload(policy.Workload{Expressions: cel.Expressions{}}), mesh.WithObserver(access.Observer()), mesh.WithDiscovery(&registry))
	if err := m.Apply(logging("{providers: [{name: envoy}], filter: {expression: 'has(response.grpc_status) && response.grpc_status == 5'}}")); err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient("mesh:///echo", meshgrpc.DialOptions(m)...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 {
		_, _ = grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{})
	}
	_, err = grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{ResponseSize: 1})
	if status.Code(err) != codes.NotFound {
		t.Fatal(err)
	}
	if all := closed(t, access, out); len(all) != 1 {
		t.Errorf("logged %v", all)
	}
}

// Raw connections have lines on both sides, with what went over them.
func TestConnections(t *testing.T) {
	leak.Check(t)
	called, out := newLog(t, accesslog.Config{})
	served, servedOut := newLog(t, accesslog.Config{Format: accesslog.Text})
	server := meshtest.New(t, "", mesh.WithObserver(served.Observer()))
	ln := rawtest.Listen(t)
	raw := server.ListenTCP(ln)
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := raw.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = io.Copy(io.Discard, conn)
		_, _ = conn.Write([]byte("goodbye"))
	}()
	var registry discovery.Memory
	registry.Set("db", meshtest.EndpointOf(t, ln.Addr().String()))
	registry.Set("nobody", meshtest.Refusing(t))
	client := meshtest.New(t, "", mesh.WithObserver(called.Observer()), mesh.WithDiscovery(&registry))
	conn, err := client.DialContext(t.Context(), "tcp", "db:5432")
	if err != nil {
		t.Fatal(err)
	}
	local := conn.LocalAddr().String()
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "goodbye" {
		t.Fatalf("read %q, %v", got, err)
	}
	conn.Close()
	<-done
	raw.Close()
	if _, err := client.DialContext(t.Context(), "tcp", "nobody:5432"); err == nil {
		t.Fatal("nobody answered")
	}
	client.Close()
	server.Close()
	all := closed(t, called, out)
	if len(all) != 2 {
		t.Fatalf("logged %v", all)
	}
	want(t, all[0], map[string]any{
		"method": "-", "path": "-", "protocol": "-", "response_code": 0, "response_flags": "-", "bytes_received": 5, "bytes_sent": 7,
		"upstream_host": ln.Addr().String(), "upstream_local_address": local, "upstream_cluster": "outbound|5432||db.default.svc.cluster.local",
	})
	want(t, all[1], map[string]any{"response_code": 0, "response_flags": "UF", "bytes_received": 0, "upstream_local_address": "-"})
	if reason := all[1]["upstream_transport_failure_reason"].(string); !strings.Contains(reason, "refused") {
		t.Errorf("the connection failed with %q", reason)
	}
	if err := served.Close(); err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	line := servedOut.all()[0]
	if !strings.Contains(line, `] "- - -" 0 - - - "-" 5 7 `) || !strings.HasSuffix(line, ` - "-" "-" "-" "-" "-" inbound|`+port+`|| - `+ln.Addr().String()+" "+local+" - -") {
		t.Errorf("logged %s", line)
	}
}
