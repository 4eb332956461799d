package mesh_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tracing"
)

// dialAs connects to an endpoint as a service account, or without TLS as nobody.
func (w *town) dialAs(t *testing.T, e discovery.Endpoint, account string, protocols ...string) net.Conn {
	t.Helper()
	var c net.Conn
	var err error
	if account == "" {
		c, err = net.Dial("tcp", addressOf(e))
	} else {
		var id *tlsid.Identity
		if id, err = w.Identity("default", account); err != nil {
			t.Fatal(err)
		}
		c, err = tls.Dial("tcp", addressOf(e), &tls.Config{
			InsecureSkipVerify: true, Certificates: []tls.Certificate{*id.Certificate()}, NextProtos: protocols,
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	return c
}

// ask sends a request as it is, and returns the body of the response and its status.
func ask(t *testing.T, c net.Conn, request string) (int, string) {
	t.Helper()
	io.WriteString(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// A peer does not get a proxy behind the handler to drop what the mesh says of it.
func TestPeersDropNothingBehindAProxy(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s|%s", r.Header.Get("X-Forwarded-Client-Cert"), r.Header.Get("X-Hop"))
	}))
	t.Cleanup(backend.Close)
	to, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(to) }}
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	e := serveMesh(t, w.member(t, "payment-service", ""), proxy.ServeHTTP)
	for _, header := range []string{
		"Connection: X-Forwarded-Client-Cert", "Connection: close, x-forwarded-client-cert", "Connection: X_Forwarded_Client_Cert, X-Forwarded-Client-Cert",
		"Connection: keep-alive\r\nConnection: x-forwarded-client-cert,X-Hop\r\nX-Hop: 1",
	} {
		_, body := ask(t, w.dialAs(t, e, "order-service"), "GET / HTTP/1.1\r\nHost: x\r\n"+header+"\r\n\r\n")
		if !strings.Contains(body, "URI=spiffe://cluster.local/ns/default/sa/order-service") || !strings.HasSuffix(body, "|") {
			t.Errorf("%q: behind the proxy is %q", header, body)
		}
	}
}

// What a peer may not say in a header it may not say in a trailer either.
func TestTrailersForgeNothing(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := serveMesh(t, w.member(t, "payment-service", ""), func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %v %v", body, err, r.Trailer)
	})
	const chunks = "Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Forwarded-Client-Cert: URI=admin\r\nX-Envoy-Internal: true\r\nX_Request_Id: 1\r\nChecksum: 7\r\n\r\n"
	for _, account := range []string{"", "order-service"} {
		for name, announced := range map[string]string{
			"announced": "Trailer: X-Forwarded-Client-Cert, X-Envoy-Internal, X_Request_Id, Checksum\r\n", "not announced": "",
		} {
			_, body := ask(t, w.dialAs(t, e, account), "POST / HTTP/1.1\r\nHost: x\r\n"+announced+chunks)
			if want := "hi <nil> map[Checksum:[7]]"; body != want {
				t.Errorf("%q, %s: the handler saw %q, want %q", account, name, body, want)
			}
		}
		h2 := &http.Client{Transport: h2Transport(w, t, account)}
		req, err := http.NewRequest("POST", schemeOf(account)+addressOf(e), io.MultiReader(strings.NewReader("hi")))
		if err != nil {
			t.Fatal(err)
		}
		req.Trailer = http.Header{"X-Forwarded-Client-Cert": {"URI=admin"}, "X-Envoy-Internal": {"true"}, "Checksum": {"7"}}
		if account == "" {
			continue
		}
		resp, err := h2.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if want := "hi <nil> map[Checksum:[7]]"; string(body) != want || resp.ProtoMajor != 2 {
			t.Errorf("%q over %s: the handler saw %q, want %q", account, resp.Proto, body, want)
		}
	}
}

// Handlers do not get what a peer may not say, even if nothing else in the header is out of the ordinary.
func TestOneHeaderOutOfTheOrdinary(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := serveMesh(t, w.member(t, "payment-service", ""), func(w http.ResponseWriter, r *http.Request) {
		r.Header.Del("Via")
		seen := r.Header.Get("X-Forwarded-Client-Cert")
		if strings.HasPrefix(seen, "By=") || strings.Contains(seen, ",By=") {
			r.Header.Del("X-Forwarded-Client-Cert")
		}
		fmt.Fprint(w, r.Header)
	})
	for _, test := range []struct{ sent, nobody, web string }{
		{"Accept: a", "map[Accept:[a]]", "map[Accept:[a]]"},
		{"X-Request-Id: 1", "map[]", "map[X-Request-Id:[1]]"},
		{"X-Envoy-Internal: true", "map[]", "map[X-Envoy-Internal:[true]]"},
		{"x_envoy_internal: true", "map[]", "map[X_envoy_internal:[true]]"},
		{"X-Envoy-Peer-Metadata: a", "map[]", "map[]"},
		{"X-Envoy-Peer-Metadata-Id: a", "map[]", "map[]"},
		{"X-Forwarded-Client-Cert: a", "map[]", "map[]"},
		{"x-forwarded_client-cert: a", "map[]", "map[]"},
		{"L5d-Client-Id: a", "map[]", "map[]"},
		{"Upgrade: h2c", "map[]", "map[]"},
		{"Connection: X-Forwarded-Client-Cert, a", "map[Connection:[a]]", "map[Connection:[a]]"},
	} {
		for account, want := range map[string]string{"": test.nobody, "web": test.web} {
			if _, got := ask(t, w.dialAs(t, e, account, "http/1.1"), "GET / HTTP/1.1\r\nHost: a\r\nVia: b\r\n"+test.sent+"\r\n\r\n"); got != want {
				t.Errorf("%q as %q: the handler saw %s, want %s", test.sent, account, got, want)
			}
		}
	}
}

func schemeOf(account string) string {
	if account == "" {
		return "http://"
	}
	return "https://"
}

// h2Transport speaks HTTP/2 as a service account.
func h2Transport(w *town, t *testing.T, account string) *http.Transport {
	t.Helper()
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	if account != "" {
		id, err := w.Identity("default", account)
		if err != nil {
			t.Fatal(err)
		}
		tr.TLSClientConfig.Certificates = []tls.Certificate{*id.Certificate()}
	}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// A peer does not say who it is under a name by which somebody behind the handler would look for that: Linkerd's, or one that is the same to
// CGI, which what the mesh says of the peer would only stand beside.
func TestPeersNameThemselvesNowhere(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := serveMesh(t, w.member(t, "payment-service", ""), func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			if strings.Contains(strings.Join(values, ""), "admin") {
				fmt.Fprint(w, name, " ")
			}
		}
		fmt.Fprint(w, len(r.Header["X-Forwarded-Client-Cert"]))
	})
	names := []string{"l5d-client-id", "L5D_CLIENT_ID", "l5d_client-id", "X_Forwarded_Client_Cert", "x-forwarded_client-cert"}
	for account, certs := range map[string]string{"": "0", "order-service": "1"} {
		for _, name := range names {
			request := "GET / HTTP/1.1\r\nHost: x\r\n" + name + ": URI=admin\r\n\r\n"
			if _, got := ask(t, w.dialAs(t, e, account, "http/1.1"), request); got != certs {
				t.Errorf("%s from %q: the handler saw %q", name, account, got)
			}
			if account == "" {
				continue
			}
			got := askHTTP2(t, w.dialAs(t, e, account, "h2"), hpack.HeaderField{Name: ":method", Value: "GET"}, hpack.HeaderField{Name: ":scheme", Value: "https"},
				hpack.HeaderField{Name: ":authority", Value: "x"}, hpack.HeaderField{Name: ":path", Value: "/"}, hpack.HeaderField{Name: strings.ToLower(name), Value: "admin"})
			if got != certs {
				t.Errorf("%s from %q over HTTP/2: the handler saw %q", name, account, got)
			}
		}
	}
}

// Of two hosts in one HTTP/2 request the handler sees that which policies were asked about first, and they are asked about both.
func TestTwoHostsInOneRequest(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", strings.Replace(allowOrders, "action: ALLOW", "action: DENY", 1)+"---"+`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secret, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {hosts: [secret.example, "secret.example:*"]}}]}]}
`)
	e := serveMesh(t, m, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %q %q", r.Host, r.Header["Host"], r.URL.Host)
	})
	for _, tt := range []struct{ authority, host, path, want string }{
		{"public.example", "other.example", "/", `public.example [] ""`},
		{"public.example", "secret.example", "/", "RBAC: access denied"},
		{"secret.example.", "public.example", "/", "RBAC: access denied"},
		{"public.example", "public.example", "http://public.example/", `public.example [] "public.example"`},
		{"public.example", "public.example", "http://secret.example/", "RBAC: access denied"},
		{"public.example", "public.example", "ftp://a@Secret.Example.:80?/", "RBAC: access denied"},
	} {
		got := askHTTP2(t, w.dialAs(t, e, "web", "h2"), hpack.HeaderField{Name: ":method", Value: "GET"}, hpack.HeaderField{Name: ":scheme", Value: "https"},
			hpack.HeaderField{Name: ":authority", Value: tt.authority}, hpack.HeaderField{Name: ":path", Value: tt.path}, hpack.HeaderField{Name: "host", Value: tt.host})
		if got != tt.want {
			t.Errorf(":authority %s, host %s and :path %s: %q, want %q", tt.authority, tt.host, tt.path, got, tt.want)
		}
	}
}

// askHTTP2 sends a request of HTTP/2 as it is, and returns the body of the response.
func askHTTP2(t *testing.T, c net.Conn, fields ...hpack.HeaderField) string {
	t.Helper()
	var body strings.Builder
	framesOf(t, c, 1, func(f http2.Frame) {
		switch frame := f.(type) {
		case *http2.DataFrame:
			body.Write(frame.Data())
		case *http2.RSTStreamFrame:
			body.WriteString(frame.ErrCode.String())
		}
	}, fields...)
	return body.String()
}

// framesOf sends a request of HTTP/2 as it is, and passes on the frames of the response and of what is pushed, until so many streams have ended.
// It returns the streams that are pushed, by path.
func framesOf(t *testing.T, c net.Conn, streams int, take func(http2.Frame), fields ...hpack.HeaderField) (pushed map[string]uint32) {
	t.Helper()
	io.WriteString(c, http2.ClientPreface)
	framer := http2.NewFramer(c, c)
	framer.WriteSettings()
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	for _, f := range fields {
		encoder.WriteField(f)
	}
	framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})
	pushed = make(map[string]uint32)
	promised := uint32(0)
	decoder := hpack.NewDecoder(4096, func(f hpack.HeaderField) {
		if f.Name == ":path" {
			pushed[f.Value] = promised
		}
	})
	for streams > 0 {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		take(frame)
		switch frame := frame.(type) {
		case *http2.PushPromiseFrame:
			promised = frame.PromiseID
			decoder.Write(frame.HeaderBlockFragment())
		case *http2.HeadersFrame:
			decoder.Write(frame.HeaderBlockFragment())
			if frame.StreamEnded() {
				streams--
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				streams--
			}
		case *http2.RSTStreamFrame:
			streams--
		}
	}
	return pushed
}

// A handler may push over HTTP/2. What it pushes is a request of the peer, and is authorized like one.
func TestPushIsAuthorized(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", strict+`---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: secrets, namespace: default}
spec: {action: DENY, rules: [{to: [{operation: {paths: ["/secret"]}}]}]}
`, mesh.WithObserver(mesh.Observer{InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx }}))
	e := w.serve(t, m, "payment-service", func(w http.ResponseWriter, r *http.Request) {
		for _, path := range []string{"/style", "/secret"} {
			if r.URL.Path != "/" {
				break
			}
			if err := w.(http.Pusher).Push(path, nil); err != nil {
				t.Error(err)
			}
		}
		io.WriteString(w, r.URL.Path)
	})
	got := make(map[uint32]string) // by stream
	pushed := framesOf(t, w.dialAs(t, e, "order-service", "h2"), 3, func(f http2.Frame) {
		if data, ok := f.(*http2.DataFrame); ok {
			got[data.StreamID] += string(data.Data())
		}
	}, hpack.HeaderField{Name: ":method", Value: "GET"}, hpack.HeaderField{Name: ":scheme", Value: "https"},
		hpack.HeaderField{Name: ":authority", Value: "payment-service"}, hpack.HeaderField{Name: ":path", Value: "/"})
	for path, want := range map[string]string{"/style": "/style", "/secret": "RBAC: access denied"} {
		if id := pushed[path]; id == 0 || got[id] != want {
			t.Errorf("%s, pushed on stream %d: %q, want %q", path, id, got[id], want)
		}
	}
}

// The subject of a certificate is whatever its authority wrote there, and goes into a header.
func TestSubjectsBreakNoHeader(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	m := w.member(t, "payment-service", "")
	var got []string
	h := m.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { got = r.Header["X-Forwarded-Client-Cert"] }))
	id, err := w.Identity("default", "order-service")
	if err != nil {
		t.Fatal(err)
	}
	leaf := *id.Certificate().Leaf
	leaf.Subject = pkix.Name{CommonName: "a\r\nX-Admin: true\x00\x7f\u0085\"\\b", Organization: []string{"é"}}
	h.ServeHTTP(httptest.NewRecorder(), inboundRequest(&leaf))
	if len(got) != 1 || strings.ContainsFunc(got[0], func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
		t.Fatalf("the header is %q", got)
	}
	for _, want := range []string{`a\\0D\\0AX-Admin: true\\00\\7F\\C2\\85`, "O=é", `;URI=spiffe://cluster.local/ns/default/sa/order-service`} {
		if !strings.Contains(got[0], want) {
			t.Errorf("the header is %q, want %q in it", got[0], want)
		}
	}
}

// A client that goes on with HTTP/2 on a connection of HTTP/1, with a handler or a server behind it that plays along, would send requests that
// nobody decides about.
func TestNoHTTP2BehindTheHandler(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	backend := httptest.NewServer(http.HandlerFunc(switchesToHTTP2))
	t.Cleanup(backend.Close)
	to, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	proxy.Transport = &http.Transport{DisableKeepAlives: true}
	deny, err := authz.Compile([]authz.Policy{{Name: "admin", Action: authz.Deny, Rules: []authz.Rule{{To: []authz.Operation{{Paths: []string{"/admin"}}}}}}}, authz.Config{})
	if err != nil {
		t.Fatal(err)
	}
	for name, h := range map[string]http.Handler{"handler": http.HandlerFunc(switchesToHTTP2), "proxy": proxy} {
		secured := serveMesh(t, w.member(t, "payment-service", denyPath), h.ServeHTTP)
		layer := serve(t, (&authz.Handler{Next: h, Authorizer: deny}).ServeHTTP)
		dial := func(e discovery.Endpoint) net.Conn {
			c, err := net.Dial("tcp", addressOf(e))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		}
		for from, connect := range map[string]func() net.Conn{
			"mTLS":      func() net.Conn { return w.dialAs(t, secured, "order-service", "http/1.1") },
			"plaintext": func() net.Conn { return dial(secured) },
			"the layer": func() net.Conn { return dial(layer) },
		} {
			for _, upgrade := range []string{
				"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
				"Connection: upgrade\r\nConnection: http2-settings\r\nUpgrade: websocket, H2C\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
			} {
				if status, body := ask(t, connect(), "GET / HTTP/1.1\r\nHost: x\r\n"+upgrade+"\r\n"); status != http.StatusOK || body != "HTTP/1" {
					t.Errorf("%s over %s: %q was answered with %d %q, want as a request without it", name, from, upgrade, status, body)
				}
			}
			if status, body := ask(t, connect(), "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"); status != http.StatusBadRequest {
				t.Errorf("%s over %s: what begins HTTP/2 was answered with %d %q, want 400", name, from, status, body)
			}
		}
	}
}

// switchesToHTTP2 takes the connection over if it is asked to go on with HTTP/2.
func switchesToHTTP2(w http.ResponseWriter, r *http.Request) {
	if r.Method != "PRI" && !strings.Contains(strings.ToLower(r.Header.Get("Upgrade")), "h2c") {
		io.WriteString(w, "HTTP/1")
		return
	}
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
}

// The header of a handler has the id that the tracer knows for the request: that of a peer with an identity, or else a new one. Without a
// tracer, nothing is made up.
func TestRequestIDForHandlers(t *testing.T) {
	noLeaks(t)
	for _, traced := range []bool{true, false} {
		w := newTown(t)
		opts := []mesh.Option{}
		if traced {
			opts = append(opts, withTraces(t, tracing.Config{}))
		}
		e := serveMesh(t, w.member(t, "payment-service", "", opts...), func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprintf(w, "%q %q", r.Header["X-Request-Id"], tracing.RequestID(r.Context()))
		})
		for _, tt := range []struct{ account, sent, want string }{
			{"", "", ""}, {"", "X-Request-Id: mine\r\n", ""}, {"web", "", ""}, {"web", "X-Request-Id: mine\r\n", "mine"}, {"web", "X-Request-Id: a\tb\r\n", ""},
		} {
			_, got := ask(t, w.dialAs(t, e, tt.account, "http/1.1"), "GET / HTTP/1.1\r\nHost: a\r\n"+tt.sent+"\r\n")
			var id string
			if traced {
				fmt.Sscanf(got[strings.LastIndexByte(got, ' '):], "%q", &id)
				if len(id) != len("mine") && len(id) != 36 || tt.want != "" && id != tt.want || strings.Contains(id, "\t") {
					t.Errorf("%+v: the tracer has the id %q", tt, id)
				}
			}
			want := fmt.Sprintf("[%q] %q", id, id)
			if !traced {
				want = `[] ""`
				if tt.account != "" && tt.sent != "" {
					want = fmt.Sprintf(`[%q] ""`, strings.TrimSpace(strings.TrimPrefix(tt.sent, "X-Request-Id: ")))
				}
			}
			if got != want {
				t.Errorf("traced: %v, %+v: the handler sees %s, want %s", traced, tt, got, want)
			}
		}
	}
}

// A peer forwards who its own peers are, but nothing that would make what is said of itself a part of it.
func TestForwardedCertsHideNoPeer(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	e := serveMesh(t, w.member(t, "payment-service", ""), func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, strings.Join(r.Header["X-Forwarded-Client-Cert"], "|"))
	})
	for sent, want := range map[string]string{
		``:                                `By=`,
		`By=a;Subject="CN=x,O=y";URI=b`:   `By=a;Subject="CN=x,O=y";URI=b,By=`,
		`Subject="CN=\"x\",O=y"`:          `Subject="CN=\"x\",O=y",By=`,
		`URI=spiffe://a/admin;Subject="`:  `By=`,
		`URI=spiffe://a/admin;Subject="\`: `By=`,
		`URI=spiffe://a/admin;Subject=\`:  `By=`,
		`URI=a;Subject="\"`:               `By=`, // closed for those who do not know backslashes
		`URI=a;Subject="\""`:              `By=`, // closed for those who do
		"URI=a;Subject=\"\r\nX-Forwarded-Client-Cert: \"": `URI=a;Subject=",",By=`,
	} {
		_, got := ask(t, w.dialAs(t, e, "web", "http/1.1"), "GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Client-Cert: "+sent+"\r\n\r\n")
		if before, ok := strings.CutPrefix(got, want); !ok || !strings.HasPrefix(before, "spiffe://cluster.local/ns/default/sa/payment-service;Hash=") {
			t.Errorf("%s: the handler sees %s, want %s...", sent, got, want)
		}
	}
}
