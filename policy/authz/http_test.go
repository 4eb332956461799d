package authz_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/nosidecar/mesh/policy/authz"
)

// serve starts a server that speaks HTTP/1 and unencrypted HTTP/2, with h in front of a handler that answers "served", and
// returns its address and the number of requests served.
func serve(t *testing.T, h *authz.Handler) (addr string, served *atomic.Int32) {
	t.Helper()
	served = new(atomic.Int32)
	h.Next = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		served.Add(1)
		io.WriteString(w, "served")
	})
	server := httptest.NewUnstartedServer(h)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String(), served
}

// sendHTTP1 sends a request line as it is and returns status and body.
func sendHTTP1(t *testing.T, addr, method, target string, header ...string) (int, string) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	header = append(header, "Host: shop.example", "Connection: close", "", "")
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\n%s", method, target, strings.Join(header, "\r\n"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// sendHTTP2 sends a :path as it is and returns the status, or 400 if the server resets the stream.
func sendHTTP2(t *testing.T, addr, path string) int {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, http2.ClientPreface)
	framer := http2.NewFramer(conn, conn)
	framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	framer.WriteSettings()
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "shop.example"}, {":path", path}} {
		encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: 1, BlockFragment: []byte(block.String()), EndStream: true, EndHeaders: true,
	})
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			status := 0
			fmt.Sscan(frame.PseudoValue("status"), &status)
			return status
		case *http2.RSTStreamFrame:
			return http.StatusBadRequest
		}
	}
}

// http.ServeMux finds a pattern with a host for more spellings of the host than one.
func TestHostsOfServeMux(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("secret.example/", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "secret") })
	denying := compile(t, deny(to(authz.Operation{Hosts: []string{"secret.example", "secret.example:*"}})))
	server := httptest.NewServer(&authz.Handler{Authorizer: denying, Next: mux})
	defer server.Close()
	for _, host := range []string{"secret.example", "secret.example:80", "secret.example:", "[secret.example]:80", "[secret.example]:"} {
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
		answer, _ := io.ReadAll(conn)
		conn.Close()
		if !strings.HasPrefix(string(answer), "HTTP/1.1 403 ") {
			t.Errorf("a DENY of secret.example, and the host %q: %q", host, answer)
		}
	}
}

func TestPathTricksOverTheWire(t *testing.T) {
	denying, servedDespite := serve(t, &authz.Handler{Authorizer: compile(t, deny(paths("/admin")))})
	allowing, servedBeyond := serve(t, &authz.Handler{Authorizer: compile(t, allow(paths("/x*", "/app/*", "/public")))})
	want := func(name, target string, status int) {
		t.Helper()
		if status != http.StatusForbidden && status != http.StatusBadRequest {
			t.Errorf("%s: %s: status %d, want 403 or 400", name, target, status)
		}
	}
	for name, target := range odd {
		for _, addr := range []string{denying, allowing} {
			status, _ := sendHTTP1(t, addr, "GET", target)
			want(name, target, status)
			want(name+" over HTTP/2", target, sendHTTP2(t, addr, target))
			status, _ = sendHTTP1(t, addr, "GET", "http://shop.example"+target)
			want(name+" in absolute form", target, status)
		}
	}
	for _, target := range []string{"/public%00", "/public%c0%ae", "/public%ff/../public", "http:public"} {
		if status, _ := sendHTTP1(t, allowing, "GET", target); status != http.StatusBadRequest {
			t.Errorf("%s: status %d, want 400", target, status)
		}
		if status := sendHTTP2(t, allowing, target); status != http.StatusBadRequest {
			t.Errorf("%s over HTTP/2: status %d, want 400", target, status)
		}
	}
	// net/http takes what follows the authority for a path.
	if status, _ := sendHTTP1(t, denying, "CONNECT", "shop.example:80/admin"); status != http.StatusBadRequest {
		t.Errorf("CONNECT with a path: status %d, want 400", status)
	}
	if n := servedDespite.Load() + servedBeyond.Load(); n != 0 {
		t.Errorf("%d requests were served", n)
	}
	for _, target := range []string{"/public", "/public?a=/../admin", "/x/y", "http://shop.example/public"} {
		if status, text := sendHTTP1(t, allowing, "GET", target); status != http.StatusOK || text != "served" {
			t.Errorf("%s: status %d %q, want 200", target, status, text)
		}
	}
	if status := sendHTTP2(t, allowing, "/public"); status != http.StatusOK {
		t.Errorf("/public over HTTP/2: status %d, want 200", status)
	}
	if n := servedBeyond.Load(); n != 5 {
		t.Errorf("%d requests were served, want 5", n)
	}
}

func TestHandler(t *testing.T) {
	var told []authz.Decision
	handler := &authz.Handler{
		Authorizer: compile(t, allow(from(authz.Source{Principals: []string{web}}))),
		Principal:  func(r *http.Request) string { return r.Header.Get("X-Test-Principal") },
		OnDecision: func(_ *http.Request, d authz.Decision) { told = append(told, d) },
	}
	handler.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) })
	for _, tt := range []struct {
		name      string
		principal string
		target    string
		grpc      bool
		status    int
		text      string
		code      string
	}{
		{"allowed", web, "/a", false, 200, "/a", ""},
		{"the path stays as it was sent", web, "/a/..//b;c", false, 200, "/a/..//b;c", ""},
		{"denied", admin, "/a", false, 403, "RBAC: access denied", ""},
		{"plaintext", "", "/a", false, 403, "RBAC: access denied", ""},
		{"bad request", web, "/a%00", false, 400, "Bad Request", ""},
		{"gRPC denied", admin, "/pkg.Service/Method", true, 200, "", "7"},
		{"gRPC bad request", web, "/pkg%00", true, 200, "", "13"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			told = nil
			r := httptest.NewRequest("POST", tt.target, nil)
			r.Header.Set("X-Test-Principal", tt.principal)
			if tt.grpc {
				r.Header.Set("Content-Type", "application/grpc+proto")
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			if w.Code != tt.status || w.Body.String() != tt.text || w.Header().Get("Grpc-Status") != tt.code {
				t.Errorf("%d %q %v, want %d %q", w.Code, w.Body, w.Header(), tt.status, tt.text)
			}
			if len(told) != 1 || told[0].Allowed != (tt.status == 200 && !tt.grpc) {
				t.Errorf("told of %+v", told)
			}
		})
	}
	t.Run("zero", func(t *testing.T) {
		w := httptest.NewRecorder()
		(&authz.Handler{Next: handler.Next}).ServeHTTP(w, httptest.NewRequest("GET", "/a", nil))
		if w.Code != 200 {
			t.Errorf("status %d, want 200", w.Code)
		}
	})
}

func TestNewRequest(t *testing.T) {
	local := func(a net.Addr) context.Context {
		return context.WithValue(t.Context(), http.LocalAddrContextKey, a)
	}
	r := httptest.NewRequest("GET", "http://shop.example:8080/a/../b?c", nil).
		WithContext(local(&net.TCPAddr{IP: net.ParseIP("10.0.0.2"), Port: 8080}))
	r.RemoteAddr = "[::ffff:10.0.0.1]:5000"
	r.TLS = &tls.ConnectionState{ServerName: "shop.example"}
	r.Header["X-Forwarded-For"] = []string{"1.1.1.1, 2.2.2.2", "3.3.3.3"}
	got := authz.NewRequest(r, web, 2)
	for _, pair := range [][2]any{
		{got.Principal, web},
		{got.Source, netip.MustParseAddr("10.0.0.1")},
		{got.Remote, netip.MustParseAddr("2.2.2.2")},
		{got.Destination, netip.MustParseAddrPort("10.0.0.2:8080")},
		{got.SNI, "shop.example"},
		{got.Host, "shop.example:8080"},
		{got.Method, "GET"},
		{got.Target, "http://shop.example:8080/a/../b?c"},
		{got.L4, false},
	} {
		if pair[0] != pair[1] {
			t.Errorf("NewRequest: %v, want %v", pair[0], pair[1])
		}
	}
	t.Run("a Unix socket", func(t *testing.T) {
		r := r.WithContext(local(&net.UnixAddr{Name: "/run/x", Net: "unix"}))
		r.RemoteAddr = "@"
		got := authz.NewRequest(r, "", 0)
		if got.Source.IsValid() || got.Remote.IsValid() || got.Destination.IsValid() {
			t.Errorf("NewRequest = %+v, want no addresses", got)
		}
	})
	t.Run("a request that no server received", func(t *testing.T) {
		r, err := http.NewRequest("GET", "http://shop.example/a%2Fb?c", nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := authz.NewRequest(r, "", 0).Target; got != "/a%2Fb?c" {
			t.Errorf("Target = %q", got)
		}
	})
}

func TestRemoteAddr(t *testing.T) {
	const source = "10.0.0.1"
	for _, tt := range []struct {
		name string
		xff  []string
		hops int
		want string
	}{
		{"no hops", []string{"1.1.1.1"}, 0, source},
		{"negative", []string{"1.1.1.1"}, -1, source},
		{"no header", nil, 1, source},
		{"the last", []string{"1.1.1.1, 2.2.2.2"}, 1, "2.2.2.2"},
		{"the last but one", []string{"1.1.1.1, 2.2.2.2"}, 2, "1.1.1.1"},
		{"too few", []string{"1.1.1.1, 2.2.2.2"}, 3, source},
		{"several lines", []string{"1.1.1.1", "2.2.2.2,3.3.3.3"}, 3, "1.1.1.1"},
		{"spaces and IPv6", []string{" \t fd00::1\t"}, 1, "fd00::1"},
		{"IPv4 in IPv6", []string{"::ffff:1.1.1.1"}, 1, "1.1.1.1"},
		{"with a port", []string{"1.1.1.1, 2.2.2.2:34567"}, 1, "2.2.2.2"},
		{"IPv6 with a port", []string{"[fd00::1]:34567"}, 1, "fd00::1"},
		{"IPv6 in brackets", []string{"[fd00::1]"}, 1, "fd00::1"},
		{"not an address", []string{"1.1.1.1, unknown"}, 1, ""},
		{"not a port", []string{"1.1.1.1, 2.2.2.2:http"}, 1, ""},
		{"an empty place counts", []string{"1.1.1.1,,2.2.2.2"}, 2, ""},
		{"beyond an empty place", []string{"1.1.1.1,,2.2.2.2"}, 3, "1.1.1.1"},
		{"an empty line counts", []string{"1.1.1.1", ""}, 2, "1.1.1.1"},
		{"a leading comma", []string{",1.1.1.1"}, 2, ""},
	} {
		got := authz.RemoteAddr(netip.MustParseAddr(source), tt.xff, tt.hops)
		if want, _ := netip.ParseAddr(tt.want); got != want {
			t.Errorf("%s: RemoteAddr(%q, %d) = %v, want %v", tt.name, tt.xff, tt.hops, got, tt.want)
		}
	}
}

func TestHandlerDoesNotAllocate(t *testing.T) {
	handler := &authz.Handler{
		Next:       http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}),
		Authorizer: compile(t, deny(paths("/admin")), allow(from(authz.Source{Principals: []string{web}}))),
		Principal:  func(*http.Request) string { return web },
	}
	r := httptest.NewRequest("GET", "/v1/items", nil)
	w := httptest.NewRecorder()
	if got := testing.AllocsPerRun(100, func() { handler.ServeHTTP(w, r) }); got != 0 {
		t.Errorf("Handler allocates %v times", got)
	}
}

// A client of whom a trusted proxy knows no address is not taken for the proxy, whose blocks may be allowed.
func TestClientsOfUnknownAddress(t *testing.T) {
	inside := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
	for name, tt := range map[string]struct {
		policy authz.Policy
		want   map[string]int
	}{
		"ALLOW": {allow(from(authz.Source{RemoteIPBlocks: inside})), map[string]int{"": 200, "127.0.0.1:80": 200, "8.8.8.8": 403, "8.8.8.8:80": 403, "unknown": 403}},
		"DENY":  {deny(from(authz.Source{RemoteIPBlocks: inside})), map[string]int{"": 403, "127.0.0.1:80": 403, "8.8.8.8": 200, "8.8.8.8:80": 200, "unknown": 403}},
	} {
		server := httptest.NewServer(&authz.Handler{Authorizer: compile(t, tt.policy), TrustedHops: 1, Next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})})
		defer server.Close()
		for forwarded, want := range tt.want {
			req, _ := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
			if forwarded != "" {
				req.Header.Set("X-Forwarded-For", forwarded)
			}
			resp, err := server.Client().Do(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if resp.StatusCode != want {
				t.Errorf("%s, x-forwarded-for %q: %d, want %d", name, forwarded, resp.StatusCode, want)
			}
		}
	}
}
