package limit_test

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy/limit"
)

// upgrade switches protocols, and sends back all that it gets once the client has closed its side.
func upgrade(w http.ResponseWriter, req *http.Request) {
	if !strings.Contains(strings.ToLower(strings.Join(req.Header["Connection"], ",")), "upgrade") {
		http.Error(w, "Connection: "+strings.Join(req.Header["Connection"], ","), http.StatusUpgradeRequired)
		return
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	sent, _ := io.ReadAll(rw)
	conn.Write(sent)
}

// TestHalfCloseReachesThePeerThroughAReverseProxy sends a client's end of an upgraded connection through a proxy whose
// transport is ours.
func TestHalfCloseReachesThePeerThroughAReverseProxy(t *testing.T) {
	backend := serve(t, plain, upgrade)
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	transport := &limit.Transport{Base: backend.template, Config: limit.PoolConfig{MaxConnections: 2}}
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		Transport: transport,
	})
	defer proxy.Close()
	defer transport.CloseIdleConnections()

	conn, err := net.Dial("tcp", proxy.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("status = %s", resp.Status)
	}
	io.WriteString(conn, "all that there is")
	conn.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(r)
	if err != nil || string(got) != "all that there is" {
		t.Errorf("after half-close: %q, %v", got, err)
	}
}

// TestLastCallOfAConnectionKeepsItsConnectionOptions upgrades on a connection that takes one more call only.
func TestLastCallOfAConnectionKeepsItsConnectionOptions(t *testing.T) {
	backend := serve(t, plain, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/options" {
			io.WriteString(w, strings.Join(req.Header["Connection"], "|"))
			return
		}
		upgrade(w, req)
	})
	pool, err := limit.NewPool(limit.PoolConfig{MaxRequestsPerConnection: 2})
	if err != nil {
		t.Fatal(err)
	}
	c := conns(t, pool, backend.template)
	get(t, c, backend.URL+"/options")
	req := httptest.NewRequest("GET", backend.URL, nil)
	req.RequestURI = ""
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", "echo")
	resp, err := c.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		text, _ := io.ReadAll(resp.Body)
		t.Errorf("status = %s, %s", resp.Status, text)
	}
	resp.Body.Close()

	get(t, c, backend.URL+"/options")
	req = httptest.NewRequest("GET", backend.URL+"/options", nil)
	req.RequestURI = ""
	req.Header["Connection"] = []string{"X-One", "X-Two"}
	if resp, err = c.RoundTrip(req); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got, _ := io.ReadAll(resp.Body); string(got) != "close|X-One|X-Two" {
		t.Errorf("Connection = %q", got)
	}
	if got := req.Header["Connection"]; len(got) != 2 {
		t.Errorf("the caller's header was changed: %q", got)
	}
}

// TestARefusedUpgradeCountsAsACall has the last call that a connection takes ask for an upgrade in vain.
func TestARefusedUpgradeCountsAsACall(t *testing.T) {
	for _, most := range []int{1, 2} {
		backend := serve(t, plain, hello)
		c := conns(t, newPool(t, limit.PoolConfig{MaxRequestsPerConnection: most}), backend.template)
		for range most {
			req := httptest.NewRequest(http.MethodGet, backend.URL, nil)
			req.Header.Set("Connection", "Upgrade")
			req.Header.Set("Upgrade", "echo")
			resp, err := c.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		get(t, c, backend.URL)
		if n := backend.conns.Load(); n != 2 {
			t.Errorf("%d connections for %d calls, want 2 with %d calls each at most", n, most+1, most)
		}
	}
}
