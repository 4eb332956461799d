package mesh_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
)

const corsDocuments = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http:
  - match: [{uri: {prefix: /web}, sourceLabels: {app: web}}]
    route: [{destination: {host: shop}}]
    corsPolicy: {allowOrigins: [{exact: https://evil.example}]}
  - match: [{uri: {prefix: /ignore}}]
    route: [{destination: {host: shop}}]
    corsPolicy: {allowOrigins: [{exact: https://app.example}], allowMethods: [GET], unmatchedPreflights: IGNORE}
  - match: [{uri: {prefix: /plain}}]
    route: [{destination: {host: shop}}]
  - match: [{port: 8443}]
    route: [{destination: {host: shop}}]
  - match: [{uri: {prefix: /moved}}]
    redirect: {uri: /}
    corsPolicy: {allowOrigins: [{exact: https://app.example}]}
  - match: [{uri: {prefix: /v2}}]
    delegate: {name: v2}
    corsPolicy: {allowOrigins: [{exact: https://inherited.example}]}
  - route: [{destination: {host: shop}}]
    corsPolicy:
      allowOrigins: [{exact: https://app.example}, {regex: 'https://[a-z]+\.team\.example'}]
      allowMethods: [GET, PUT]
      allowHeaders: ["*"]
      exposeHeaders: [x-trace]
      maxAge: 24h
      allowCredentials: true
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v2}
spec:
  http:
  - match: [{uri: {prefix: /v2/own}}]
    route: [{destination: {host: shop}}]
    corsPolicy: {allowOrigins: [{exact: https://own.example}]}
  - route: [{destination: {host: shop}}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: second}
spec:
  hosts: [shop]
  http:
  - route: [{destination: {host: shop}}]
    corsPolicy: {allowOrigins: [{exact: https://evil.example}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: wild}
spec:
  hosts: ["*.shop.example", plain.example]
  http:
  - match: [{headers: {x-canary: {exact: "1"}}}]
    route: [{destination: {host: shop}}]
    corsPolicy: {allowOrigins: [{exact: https://canary.example}]}
  - route: [{destination: {host: shop}}]
    corsPolicy: {allowOrigins: [{exact: https://app.example}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: exact}
spec:
  hosts: [quiet.shop.example]
  http: [{route: [{destination: {host: shop}}]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: edge}
spec:
  hosts: [edge.example]
  gateways: [edge]
  http:
  - route: [{destination: {host: shop}}]
    corsPolicy: {allowOrigins: [{exact: https://app.example}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: cart}
spec:
  parentRefs: [{group: "", kind: Service, name: cart}]
  rules:
  - filters: [{type: CORS, cors: {allowOrigins: ["https://*.example", "http://app.example:80"], allowMethods: ["*"]}}]
    backendRefs: [{name: cart, port: 80}]
  - matches: [{path: {value: /all}}]
    filters: [{type: CORS, cors: {allowOrigins: ["*"], maxAge: 60}}]
    backendRefs: [{name: cart, port: 80}]
`

// serveCORS serves h behind a mesh, over HTTP/1.1 and, without TLS, HTTP/2. It returns the address, and a client for each version.
func serveCORS(t *testing.T, m *mesh.Mesh, h http.HandlerFunc) (address string, clients map[string]*http.Client) {
	t.Helper()
	ln := rawtest.Listen(t)
	srv := &http.Server{Handler: m.Handler(h), Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	var serving sync.WaitGroup
	serving.Go(func() { srv.Serve(m.Listen(ln)) })
	clients = make(map[string]*http.Client)
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		transport := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true}
		transport.Protocols.SetHTTP1(version == "HTTP/1.1")
		transport.Protocols.SetUnencryptedHTTP2(version == "HTTP/2.0")
		clients[version] = &http.Client{Transport: transport}
		t.Cleanup(transport.CloseIdleConnections)
	}
	t.Cleanup(func() { srv.Close(); serving.Wait() })
	return ln.Addr().String(), clients
}

// visit sends a request, and returns the answer with the fields about other origins, sorted.
func visit(t *testing.T, c *http.Client, method, url string, body io.Reader, header ...string) (answer, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Add(header[i], header[i+1])
		}
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var fields []string
	for name, values := range resp.Header {
		if short, ok := strings.CutPrefix(name, "Access-Control-"); ok || name == "Vary" {
			fields = append(fields, short+": "+strings.Join(values, "|"))
		}
	}
	slices.Sort(fields)
	return answer{resp.StatusCode, string(text), resp.Header, resp}, strings.Join(fields, "; ")
}

func TestCORS(t *testing.T) {
	noLeaks(t)
	m := newMesh(t, corsDocuments)
	address, clients := serveCORS(t, m, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Header.Get("X-Own") != "" {
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.Header().Set("Vary", "Accept")
		}
		if r.Header.Get("X-Silent") == "" {
			fmt.Fprintf(w, "handled %s %s", r.Method, b)
		}
	})
	const app, evil = "https://app.example", "https://evil.example"
	const simple = "Allow-Credentials: true; Allow-Origin: " + app + "; Expose-Headers: x-trace; Vary: Origin"
	const preflight = "Allow-Credentials: true; Allow-Headers: x-b; Allow-Methods: GET,PUT; Allow-Origin: " + app + "; Max-Age: 86400; Vary: Origin"
	asks := func(origin string, more ...string) []string {
		return append([]string{"Origin", origin, "Access-Control-Request-Method", "PUT", "Access-Control-Request-Headers", "x-b"}, more...)
	}
	origin := func(origin string, more ...string) []string { return append([]string{"Origin", origin}, more...) }
	for _, test := range []struct {
		name, method, host, path string
		header                   []string
		ends                     bool
		want                     string
	}{
		{"no origin", "GET", "shop", "/", nil, false, ""},
		{"OPTIONS without an origin", "OPTIONS", "shop", "/", nil, false, ""},
		{"simple", "GET", "shop", "/", origin(app), false, simple},
		{"over the handler's", "GET", "shop", "/", origin(app, "X-Own", "1"), false, strings.Replace(simple, "Vary: Origin", "Vary: Accept|Origin", 1)},
		{"an answer that net/http begins", "GET", "shop", "/", origin(app, "X-Silent", "1"), false, simple},
		{"HEAD", "HEAD", "shop", "/", origin(app), false, simple},
		{"by the expression", "GET", "shop", "/", origin("https://x.team.example"), false, strings.Replace(simple, app, "https://x.team.example", 1)},
		{"not by a part of it", "GET", "shop", "/", origin("https://x.team.example.evil"), false, "Vary: Origin"},
		{"not allowed", "GET", "shop", "/", origin(evil), false, "Vary: Origin"},
		{"not allowed, but by the handler", "GET", "shop", "/", origin(evil, "X-Own", "1"), false, "Allow-Origin: *; Vary: Accept|Origin"},
		{"null", "GET", "shop", "/", origin("null"), false, "Vary: Origin"},
		{"upper case", "GET", "shop", "/", origin("https://APP.example"), false, "Vary: Origin"},
		{"two origins", "GET", "shop", "/", origin(app, "Origin", app), false, "Vary: Origin"},
		{"preflight", "OPTIONS", "shop", "/", asks(app), true, preflight},
		{"preflight not allowed", "OPTIONS", "shop", "/", asks(evil), false, "Vary: Origin"},
		{"OPTIONS of an allowed origin", "OPTIONS", "shop", "/", origin(app), false, simple},
		{"ignore", "OPTIONS", "shop", "/ignore", asks(evil), true, "Allow-Methods: GET; Vary: Origin"},
		{"host in capitals with a port", "OPTIONS", "SHOP:8080", "/", asks(app), true, preflight},
		{"host with a namespace", "OPTIONS", "shop.default", "/", asks(app), true, preflight},
		{"host with a namespace and svc", "OPTIONS", "shop.default.svc", "/", asks(app), true, preflight},
		{"full host with a dot", "OPTIONS", "shop.default.svc.cluster.local.", "/", asks(app), true, preflight},
		{"host of another namespace", "OPTIONS", "shop.other", "/", asks(app), false, ""},
		{"another host", "OPTIONS", "other", "/", asks(app), false, ""},
		{"an address", "OPTIONS", "127.0.0.1", "/", asks(app), false, ""},
		{"labels of the sender are not known", "GET", "shop", "/web", origin(evil), false, "Vary: Origin"},
		{"first match without a policy", "OPTIONS", "shop", "/plain", asks(app), false, ""},
		{"port", "OPTIONS", "shop:8443", "/", asks(app), false, ""},
		{"redirect", "OPTIONS", "shop", "/moved", asks(app), false, ""},
		{"delegate's own", "GET", "shop", "/v2/own", origin("https://own.example"), false, "Allow-Origin: https://own.example; Vary: Origin"},
		{"delegate's own alone", "GET", "shop", "/v2/own", origin("https://inherited.example"), false, "Vary: Origin"},
		{"delegate's inherited", "GET", "shop", "/v2/x", origin("https://inherited.example"), false, "Allow-Origin: https://inherited.example; Vary: Origin"},
		{"wildcard", "GET", "a.shop.example", "/", origin(app), false, "Allow-Origin: " + app + "; Vary: Origin"},
		{"wildcard, by a header", "GET", "a.shop.example", "/", origin("https://canary.example", "X-Canary", "1"), false, "Allow-Origin: https://canary.example; Vary: Origin"},
		{"one of several hosts", "GET", "plain.example", "/", origin(app), false, "Allow-Origin: " + app + "; Vary: Origin"},
		{"a more specific host without a policy", "GET", "quiet.shop.example", "/", origin(app), false, ""},
		{"for gateways", "GET", "edge.example", "/", origin(app), false, ""},
		{"HTTPRoute", "OPTIONS", "cart", "/", asks("https://a.b.example"), true, "Allow-Methods: PUT; Allow-Origin: https://a.b.example; Max-Age: 5; Vary: Origin"},
		{"HTTPRoute, default port", "GET", "cart", "/", origin("http://app.example"), false, "Allow-Origin: http://app.example; Vary: Origin"},
		{"HTTPRoute, another port", "GET", "cart", "/", origin("https://a.example:444"), false, "Vary: Origin"},
		{"HTTPRoute, not allowed", "OPTIONS", "cart", "/", asks("https://a.example.evil"), true, "Vary: Origin"},
		{"HTTPRoute, all", "OPTIONS", "cart.default", "/all/x", asks("null"), true, "Allow-Origin: null; Max-Age: 60; Vary: Origin"},
	} {
		for version, client := range clients {
			t.Run(test.name+" "+version, func(t *testing.T) {
				var body io.Reader
				if test.method == "OPTIONS" && test.ends {
					body = strings.NewReader("a body") // which nobody needs
				}
				a, got := visit(t, client, test.method, "http://"+address+test.path, body, append(test.header, "Host", test.host)...)
				if a.status != 200 || a.resp.Proto != version || strings.HasPrefix(a.body, "handled") != (!test.ends && test.method != "HEAD" && !strings.Contains(test.name, "begins")) {
					t.Errorf("answered %s %d %q", a.resp.Proto, a.status, a.body)
				}
				if got != test.want {
					t.Errorf("the fields are\n%s\nwant\n%s", got, test.want)
				}
			})
		}
	}
}

// Answers of the mesh have the fields if they come after the policy, and only then. Preflights do not count for the limits, but are observed.
func TestCORSStages(t *testing.T) {
	noLeaks(t)
	const deny = `
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: deny, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/secret]}}]}]}
`
	var mu sync.Mutex
	var seen []string
	for _, observed := range []bool{false, true} {
		opts := []mesh.Option{mesh.WithServer(mesh.ServerConfig{RateLimit: limit.RateConfig{PerSecond: 1e-9, Burst: 1}, ReportLoad: true})}
		if observed {
			opts = append(opts, mesh.WithObserver(mesh.Observer{InboundEnd: func(_ context.Context, in *mesh.Inbound) {
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, fmt.Sprintf("%s %s %d %v", in.Request.Method, in.Request.URL.Path, in.Status, in.Decision.Allowed))
			}}))
		}
		m := newMesh(t, corsDocuments+deny, opts...)
		address, clients := serveCORS(t, m, says("ok"))
		client := clients["HTTP/1.1"]
		const app = "https://app.example"
		preflight := []string{"Host", "shop", "Origin", app, "Access-Control-Request-Method", "PUT"}
		for range 3 {
			if a, fields := visit(t, client, "OPTIONS", "http://"+address+"/", nil, preflight...); a.status != 200 || !strings.Contains(fields, "Allow-Origin: "+app) || a.header.Get("Content-Length") != "0" {
				t.Errorf("a preflight: %d %s", a.status, fields)
			}
		}
		if a, fields := visit(t, client, "OPTIONS", "http://"+address+"/secret", nil, preflight...); a.status != 403 || fields != "" {
			t.Errorf("a preflight that is denied: %d %s, want 403 without a field", a.status, fields)
		}
		for i, want := range []int{200, 429} {
			if a, fields := visit(t, client, "GET", "http://"+address+"/", nil, "Host", "shop", "Origin", app); a.status != want || !strings.Contains(fields, "Allow-Origin: "+app) {
				t.Errorf("call %d: %d %s, want %d with the fields", i, a.status, fields, want)
			}
		}
	}
	mu.Lock()
	defer mu.Unlock()
	want := "OPTIONS / 200 true|OPTIONS / 200 true|OPTIONS / 200 true|OPTIONS /secret 403 false|GET / 200 true|GET / 429 true"
	if got := strings.Join(seen, "|"); got != want {
		t.Errorf("observed\n%s\nwant\n%s", got, want)
	}
}

// The header gets its fields in whatever way a handler begins its answer, and everything else is as without a policy.
func TestCORSWriters(t *testing.T) {
	noLeaks(t)
	plain := newMesh(t, "")
	with := newMesh(t, corsDocuments)
	observed := newMesh(t, corsDocuments, mesh.WithObserver(mesh.Observer{InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx }}))
	for name, h := range map[string]http.HandlerFunc{
		"nothing": func(http.ResponseWriter, *http.Request) {},
		"WriteHeader": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(404)
			w.Header().Set("Access-Control-Allow-Origin", "late")
		},
		"empty ReadFrom": func(w http.ResponseWriter, _ *http.Request) {
			io.Copy(w, onlyReader{strings.NewReader("")})
			w.Header().Set("Access-Control-Allow-Origin", "*")
			w.WriteHeader(500)
		},
		"ReadFrom": func(w http.ResponseWriter, _ *http.Request) { io.Copy(w, onlyReader{strings.NewReader("text")}) },
		"flush":    func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); io.WriteString(w, "text") },
		"control": func(w http.ResponseWriter, _ *http.Request) {
			c := http.NewResponseController(w)
			fmt.Fprint(w, c.SetWriteDeadline(time.Time{}), c.SetReadDeadline(time.Time{}), c.EnableFullDuplex(), c.Flush())
		},
		"hints": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Link", "x")
			w.WriteHeader(103)
			io.WriteString(w, "text")
		},
		"panic": func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) },
		"upgrade": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "echo")
			w.WriteHeader(101)
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err == nil {
				rw.WriteString("over")
				rw.Flush()
				conn.Close()
			}
		},
		"take over": func(w http.ResponseWriter, _ *http.Request) {
			conn, rw, err := w.(http.Hijacker).Hijack()
			if err == nil {
				rw.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				rw.Flush()
				conn.Close()
			}
		},
	} {
		const text = "GET / HTTP/1.1\r\nHost: shop\r\nOrigin: https://app.example\r\nConnection: close\r\n\r\n"
		exchanged := func(m *mesh.Mesh) (rest, fields string) {
			address, _ := serveCORS(t, m, h)
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			io.WriteString(conn, text)
			all, _ := io.ReadAll(conn)
			head, body, _ := strings.Cut(string(all), "\r\n\r\n")
			final, hints := head, ""
			if strings.HasPrefix(head, "HTTP/1.1 103") {
				hints = head
				final, body, _ = strings.Cut(body, "\r\n\r\n")
			}
			lines, own := []string{}, []string{}
			for line := range strings.SplitSeq(final, "\r\n") {
				switch {
				case strings.HasPrefix(line, "Access-Control-"), strings.HasPrefix(line, "Vary:"):
					own = append(own, line)
				case strings.HasPrefix(line, "Date:"):
				default:
					lines = append(lines, line)
				}
			}
			return fmt.Sprintf("%s|%s|%s", hints, strings.Join(lines, "|"), body), strings.Join(own, "|")
		}
		without, _ := exchanged(plain)
		for kind, m := range map[string]*mesh.Mesh{"a mesh": with, "an observed mesh": observed} {
			rest, fields := exchanged(m)
			want := "Access-Control-Allow-Credentials: true|Access-Control-Allow-Origin: https://app.example|Access-Control-Expose-Headers: x-trace|Vary: Origin"
			if name == "panic" || name == "take over" {
				want = ""
			}
			if rest != without || fields != want {
				t.Errorf("%s, %s: the answer is\n%s with %s\nwant\n%s with %s", name, kind, rest, fields, without, want)
			}
		}
	}
}

// A change of the documents is in force for the next request, while requests are in flight.
func TestCORSReload(t *testing.T) {
	noLeaks(t)
	documents := func(n int) []policy.Source {
		return []policy.Source{{Name: "shop.yaml", Data: fmt.Appendf(nil, `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop]
  http: [{route: [{destination: {host: shop}}], corsPolicy: {allowOrigins: [{regex: 'https://[a-z]+%d\.example'}]}}]
`, n)}}
	}
	feed := make(fed)
	loaded := make(chan struct{}, 100)
	go func() { feed <- documents(0) }()
	m, err := mesh.New(t.Context(), mesh.WithPolicyFeed(feed), mesh.WithObserver(mesh.Observer{
		PolicyLoad: func(mesh.PolicyLoad) { loaded <- struct{}{} },
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	address, clients := serveCORS(t, m, says("ok"))
	var done atomic.Bool
	var calling sync.WaitGroup
	for _, client := range clients {
		calling.Go(func() {
			for !done.Load() {
				_, fields := visit(t, client, "GET", "http://"+address+"/", nil, "Host", "shop", "Origin", "https://a1.example")
				if fields != "Vary: Origin" && fields != "Allow-Origin: https://a1.example; Vary: Origin" {
					t.Errorf("during a reload: %q", fields)
				}
			}
		})
	}
	for generation := range 20 {
		if generation > 0 {
			feed <- documents(generation)
		}
		<-loaded
		_, fields := visit(t, clients["HTTP/1.1"], "GET", "http://"+address+"/", nil, "Host", "shop", "Origin", fmt.Sprintf("https://b%d.example", generation))
		if want := fmt.Sprintf("Allow-Origin: https://b%d.example; Vary: Origin", generation); fields != want {
			t.Errorf("generation %d: %q, want %q", generation, fields, want)
		}
	}
	done.Store(true)
	calling.Wait()
}

// Preflights have no token, so that an ALLOW policy that asks for one denies them.
func TestCORSWithTokens(t *testing.T) {
	allow := func(rules string) string {
		return "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: users, namespace: default}\nspec: {rules: [" + rules + "]}\n"
	}
	const tokens = `{from: [{source: {requestPrincipals: ["*"]}}]}`
	for _, test := range []struct {
		name, rules string
		warned      bool
	}{
		{"tokens", tokens, true},
		{"tokens by a condition", `{when: [{key: "request.auth.claims[sub]", values: [a]}]}`, true},
		{"tokens, others for GET", tokens + ", {to: [{operation: {methods: [GET]}}]}", true},
		{"tokens, others for OPTIONS", tokens + ", {to: [{operation: {methods: [OPTIONS]}}]}", false},
		{"tokens, others for a path", tokens + ", {to: [{operation: {paths: [/a]}}]}", false},
		{"no tokens", `{to: [{operation: {methods: [GET]}}]}`, false},
	} {
		_, findings := policy.Compile([]policy.Source{{Name: "a.yaml", Data: bytes.Join([][]byte{[]byte(corsDocuments), []byte(allow(test.rules))}, nil)}}, policy.Workload{})
		if findings.Err() != nil {
			t.Fatal(findings)
		}
		warned := slices.ContainsFunc(findings, func(f policy.Finding) bool {
			return f.Name == "shop" && strings.Contains(f.Message, "AuthorizationPolicy default/users") && strings.Contains(f.Message, "OPTIONS")
		})
		if warned != test.warned {
			t.Errorf("%s: warned %v; the findings are\n%v", test.name, warned, findings)
		}
	}
}
