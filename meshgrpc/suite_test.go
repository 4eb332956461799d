package meshgrpc_test

import (
	"bytes"
	"context"
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

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// behaviour is a protocol under test: the same service, over HTTP/1.1, HTTP/2 and gRPC.
type behaviour struct {
	name string
	// server serves an endpoint that answers its n-th call as the n-th step of script says, and all further calls as the last step says.
	// It counts the calls in seen.
	server func(t *testing.T, ln net.Listener, version string, script string, seen *atomic.Int64)
	// caller returns a function that calls the service "api" through m. It returns the version of the endpoint or, in one word, what
	// went wrong.
	caller func(t *testing.T, m *mesh.Mesh) func(user string) string
}

// step is what the n-th call gets, counted from 1.
func step(script string, n int64) string {
	steps := strings.Fields(script)
	return steps[min(int(n), len(steps))-1]
}

func overHTTP(name string, protocols http.Protocols) behaviour {
	return behaviour{
		name: name,
		server: func(t *testing.T, ln net.Listener, version, script string, seen *atomic.Int64) {
			srv := &http.Server{Protocols: &protocols, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch step(script, seen.Add(1)) {
				case "unavailable":
					w.WriteHeader(http.StatusServiceUnavailable)
				case "hang":
					<-r.Context().Done()
				case "reset":
					panic(http.ErrAbortHandler)
				default:
					io.WriteString(w, version)
				}
			})}
			var serving sync.WaitGroup
			serving.Go(func() { srv.Serve(ln) })
			t.Cleanup(func() { srv.Close(); serving.Wait() })
		},
		caller: func(t *testing.T, m *mesh.Mesh) func(user string) string {
			client := m.Client()
			return func(user string) string {
				req, _ := http.NewRequest(http.MethodPost, "http://api"+grpctest.UnaryMethod, bytes.NewReader(nil))
				req.Header.Set("x-user", user)
				resp, err := client.Do(req)
				if err != nil {
					return outcomeOf(err)
				}
				defer resp.Body.Close()
				if protocols.UnencryptedHTTP2() && resp.ProtoMajor != 2 && resp.StatusCode == 200 {
					t.Errorf("the call went over %s", resp.Proto)
				}
				if text, _ := io.ReadAll(resp.Body); resp.StatusCode == http.StatusOK {
					return string(text)
				}
				switch resp.StatusCode {
				case http.StatusServiceUnavailable:
					return "unavailable"
				case http.StatusForbidden:
					return "denied"
				}
				return resp.Status
			}
		},
	}
}

func overGRPC() behaviour {
	return behaviour{
		name: "gRPC",
		server: func(t *testing.T, ln net.Listener, version, script string, seen *atomic.Int64) {
			grpctest.ServeOn(t, ln, &grpctest.Service{
				Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
					switch step(script, seen.Add(1)) {
					case "unavailable":
						return nil, status.Error(codes.Unavailable, "")
					case "hang":
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return &grpctest.Response{Username: version}, nil
				},
			})
		},
		caller: func(t *testing.T, m *mesh.Mesh) func(user string) string {
			client := grpctest.NewClient(connect(t, m, "mesh:///api"))
			return func(user string) string {
				ctx := metadata.AppendToOutgoingContext(context.Background(), "x-user", user)
				reply, err := client.UnaryCall(ctx, &grpctest.Request{})
				if err != nil {
					return outcomeOf(err)
				}
				return reply.Username
			}
		},
	}
}

func outcomeOf(err error) string {
	var failed *mesh.Error
	switch {
	case errors.Is(err, context.DeadlineExceeded) && errors.As(err, &failed) && failed.Flags&mesh.FlagUpstreamTimeout != 0:
		return "timeout"
	case status.Code(err) == codes.Unavailable:
		return "unavailable"
	case status.Code(err) == codes.PermissionDenied:
		return "denied"
	}
	return err.Error()
}

func protocols() []behaviour {
	var h1, h2 http.Protocols
	h1.SetHTTP1(true)
	h2.SetUnencryptedHTTP2(true)
	return []behaviour{overHTTP("HTTP/1.1", h1), overHTTP("HTTP/2", h2), overGRPC()}
}

// suiteRule makes HTTP calls use HTTP/2 where the server wants it. It means nothing for gRPC.
func suiteRule(name, more string) string {
	upgrade := ""
	if name == "HTTP/2" {
		upgrade = "\n    connectionPool: {http: {h2UpgradePolicy: UPGRADE}}"
	}
	return `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}` + upgrade + more
}

func suiteRoutes(routes string) string {
	return "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: api}\nspec:\n  hosts: [api]\n  http:\n" + routes
}

// TestSuite checks that documents have the same effect over HTTP/1.1, HTTP/2 and gRPC, for callers and for servers.
func TestSuite(t *testing.T) {
	const outlier = "\n    outlierDetection: {consecutive5xxErrors: 3, interval: 600s, baseEjectionTime: 600s, maxEjectionPercent: 50}"
	for _, test := range []struct {
		name     string
		rule     string   // more of the DestinationRule
		routes   string   // of the VirtualService
		scripts  []string // of the endpoints, v1, v2 ...
		users    string   // who calls, one word per call, in turn
		calls    int
		want     map[string][2]int // what callers see, and how often: from, to
		requests [][2]int          // what each endpoint sees
	}{
		{
			name:  "split",
			rule:  "\n  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]",
			calls: 400, scripts: []string{"ok", "ok"},
			routes: "  - route: [{destination: {host: api, subset: v1}, weight: 90}, {destination: {host: api, subset: v2}, weight: 10}]\n",
			want:   map[string][2]int{"v1": {330, 384}, "v2": {16, 70}},
		},
		{
			name: "by header and path",
			rule: "\n  subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]",
			routes: "  - match: [{headers: {x-user: {exact: tester}}, uri: {exact: " + grpctest.UnaryMethod + "}}]\n" +
				"    route: [{destination: {host: api, subset: v2}}]\n  - route: [{destination: {host: api, subset: v1}}]\n",
			calls: 20, scripts: []string{"ok", "ok"}, users: "tester anybody",
			want: map[string][2]int{"v1": {10, 10}, "v2": {10, 10}},
		},
		{
			name:   "retries",
			routes: "  - route: [{destination: {host: api}}]\n    retries: {attempts: 2, retryOn: \"5xx,unavailable\", backoff: 1ms}\n",
			calls:  12, scripts: []string{"ok", "unavailable", "unavailable"},
			want:     map[string][2]int{"v1": {12, 12}},
			requests: [][2]int{{12, 12}, {4, 12}, {4, 12}},
		},
		{
			name:   "no retries",
			routes: "  - route: [{destination: {host: api}}]\n    retries: {attempts: 0}\n",
			calls:  30, scripts: []string{"ok", "unavailable"},
			want:     map[string][2]int{"v1": {15, 15}, "unavailable": {15, 15}},
			requests: [][2]int{{15, 15}, {15, 15}},
		},
		{
			name: "retries used up",
			routes: "  - route: [{destination: {host: api}}]\n" +
				"    retries: {attempts: 2, retryOn: \"5xx,unavailable\", backoff: 1ms}\n",
			calls: 4, scripts: []string{"unavailable"},
			want: map[string][2]int{"unavailable": {4, 4}}, requests: [][2]int{{12, 12}},
		},
		{
			name: "ejection", rule: outlier,
			routes: "  - route: [{destination: {host: api}}]\n    retries: {attempts: 0}\n",
			calls:  60, scripts: []string{"ok", "unavailable"},
			want: map[string][2]int{"v1": {57, 57}, "unavailable": {3, 3}}, requests: [][2]int{{57, 57}, {3, 3}},
		},
		{
			name: "ejection of a slow endpoint", rule: outlier,
			routes: "  - route: [{destination: {host: api}}]\n    retries: {attempts: 1, perTryTimeout: 60ms, retryOn: 5xx}\n",
			calls:  30, scripts: []string{"ok", "hang"},
			want: map[string][2]int{"v1": {30, 30}}, requests: [][2]int{{30, 30}, {3, 3}},
		},
		{
			name:   "timeout",
			routes: "  - route: [{destination: {host: api}}]\n    timeout: 60ms\n",
			calls:  3, scripts: []string{"hang"},
			want: map[string][2]int{"timeout": {3, 3}}, requests: [][2]int{{3, 3}},
		},
		{
			name:   "per-try timeout",
			routes: "  - route: [{destination: {host: api}}]\n    retries: {attempts: 1, perTryTimeout: 60ms, retryOn: 5xx}\n",
			calls:  2, scripts: []string{"hang"},
			want: map[string][2]int{"timeout": {2, 2}}, requests: [][2]int{{4, 4}},
		},
		{
			name: "fault",
			routes: "  - match: [{headers: {x-user: {exact: tester}}}]\n    route: [{destination: {host: api}}]\n" +
				"    fault: {abort: {httpStatus: 503, percentage: {value: 100}}}\n  - route: [{destination: {host: api}}]\n",
			calls: 20, scripts: []string{"ok"}, users: "tester anybody",
			want: map[string][2]int{"v1": {10, 10}, "unavailable": {10, 10}}, requests: [][2]int{{10, 10}},
		},
		{
			name:   "denial by fault of 403",
			routes: "  - route: [{destination: {host: api}}]\n    fault: {abort: {httpStatus: 403, percentage: {value: 100}}}\n",
			calls:  5, scripts: []string{"ok"},
			want: map[string][2]int{"denied": {5, 5}}, requests: [][2]int{{0, 0}},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, p := range protocols() {
				t.Run(p.name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						var network memnet.Network
						var registry discovery.Memory
						var endpoints []discovery.Endpoint
						seen := make([]atomic.Int64, len(test.scripts))
						for i, script := range test.scripts {
							version := fmt.Sprintf("v%d", i+1)
							e := discovery.Endpoint{Address: fmt.Sprintf("10.0.0.%d", i+1), Port: 80, Labels: map[string]string{"version": version}}
							p.server(t, network.Listen(e.ID()), version, script, &seen[i])
							endpoints = append(endpoints, e)
						}
						registry.Set("api", endpoints...)
						rule := suiteRule(p.name, test.rule)
						call := p.caller(t, meshtest.New(t, rule+"\n"+suiteRoutes(test.routes), mesh.WithDiscovery(&registry),
							mesh.WithTransport(&http.Transport{DialContext: network.DialContext})))
						got := map[string]int{}
						users := strings.Fields(test.users + " ")
						for i := range test.calls {
							user := "somebody"
							if len(users) > 0 {
								user = users[i%len(users)]
							}
							got[call(user)]++
						}
						for what, n := range got {
							if limits, ok := test.want[what]; !ok || n < limits[0] || n > limits[1] {
								t.Errorf("callers saw %q %d times, want %v", what, n, limits)
							}
						}
						if len(got) != len(test.want) {
							t.Errorf("callers saw %v, want %v", got, test.want)
						}
						for i, limits := range test.requests {
							if n := int(seen[i].Load()); n < limits[0] || n > limits[1] {
								t.Errorf("endpoint %d saw %d requests, want %v", i+1, n, limits)
							}
						}
					})
				})
			}
		})
	}
}

// A denial by the server looks the same over all protocols.
func TestSuite_Denials(t *testing.T) {
	const policies = `---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: testers, namespace: default}
spec:
  selector: {matchLabels: {app: payment}}
  action: DENY
  rules: [{from: [{source: {principals: ["cluster.local/ns/default/sa/order"]}}], when: [{key: "request.headers[x-user]", values: [tester]}]}]
`
	leak.Check(t)
	w := newTown(t)
	server := w.member(t, "payment", strict+policies)
	_, e := w.serve(t, server, "payment", &grpctest.Service{
		Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
			return &grpctest.Response{Username: "ok"}, nil
		},
	})
	_ = e
	m := w.member(t, "order", strict)
	client := grpctest.NewClient(connect(t, m, "mesh:///payment"))
	overGRPC := func(user string) string {
		reply, err := client.UnaryCall(metadata.AppendToOutgoingContext(t.Context(), "x-user", user), &grpctest.Request{})
		if err != nil {
			return outcomeOf(err)
		}
		return reply.Username
	}
	web := httptest.NewUnstartedServer(server.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, "ok")
	})))
	web.Listener = server.Listen(web.Listener)
	web.Start()
	t.Cleanup(web.Close)
	at := meshtest.EndpointOf(t, web.Listener.Addr().String())
	at.ServiceAccount = "payment"
	w.registry.Set("web", at)
	overHTTP := func(user string) string {
		req, _ := http.NewRequest(http.MethodPost, "http://web"+grpctest.UnaryMethod, nil)
		req.Header.Set("x-user", user)
		resp, err := m.Client().Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode == http.StatusForbidden {
			return "denied"
		}
		return string(text)
	}
	for _, user := range []string{"tester", "anybody"} {
		want := map[string]string{"tester": "denied", "anybody": "ok"}[user]
		if g, h := overGRPC(user), overHTTP(user); g != want || h != want {
			t.Errorf("%s: gRPC %q, HTTP %q, want %q", user, g, h, want)
		}
	}
}
