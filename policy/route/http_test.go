package route_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// always makes a Transport whose destinations all answer with f.
func always(t testing.TB, f roundTripper, routes ...route.Route) *route.Transport {
	return &route.Transport{
		Table:       table(t, routes...),
		Destination: func(route.Target) http.RoundTripper { return f },
	}
}

func post(t testing.TB, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequest("POST", "http://a:80/b?c", body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// stream hides what net/http knows about a reader, so that there is neither GetBody nor a length.
func stream(r io.Reader) io.Reader { return io.MultiReader(r) }

// ok reads the request and answers like a transport.
func ok(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	return &http.Response{StatusCode: 200, Header: http.Header{}, Body: http.NoBody, Request: req}, nil
}

func TestTransport(t *testing.T) {
	var got *http.Request
	var target route.Target
	base := roundTripper(func(req *http.Request) (*http.Response, error) { got = req; return ok(req) })
	r := to("reviews", route.Match{URI: prefix("/v1/")})
	r.Destinations[0].Target = route.Target{Host: "reviews", Subset: "v2", Port: 9080}
	r.Rewrite = route.Rewrite{URI: "/", Authority: "reviews.example"}
	r.Headers.Request.Set = headers("x-path", "%REQ(:path)%")
	r.Headers.Response.Set = headers("x-sent-to", "%REQ(:authority)%%REQ(:path)%")
	rt := &route.Transport{
		Table:       table(t, r),
		Destination: func(t route.Target) http.RoundTripper { target = t; return base },
	}
	req := get(t, "http://bookinfo/v1/reviews?id=1")
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if target != r.Destinations[0].Target {
		t.Errorf("Destination(%+v), want %+v", target, r.Destinations[0].Target)
	}
	if got.URL.String() != "http://reviews:9080/reviews?id=1" || got.Host != "reviews.example" ||
		got.Header.Get("X-Path") != "/v1/reviews?id=1" {
		t.Errorf("sent %s to %s with %v", got.URL, got.Host, got.Header)
	}
	if v := resp.Header.Get("X-Sent-To"); v != "reviews.example/reviews?id=1" {
		t.Errorf("X-Sent-To = %q", v)
	}
}

func TestTransportAddress(t *testing.T) {
	for _, c := range []struct {
		name      string
		target    route.Target
		url       string
		want      string
		authority string
	}{
		{"nothing", route.Target{}, "http://a:81/", "a:81", "a:81"},
		{"host", route.Target{Host: "b"}, "http://a/", "b", "a"},
		{"host, port of the request", route.Target{Host: "b"}, "http://a:81/", "b:81", "a:81"},
		{"port", route.Target{Port: 82}, "http://a:81/", "a:82", "a:81"},
		{"both", route.Target{Host: "b", Port: 82}, "http://a/", "b:82", "a"},
		{"IPv6", route.Target{Host: "::1"}, "http://a/", "[::1]", "a"},
		{"IPv6 and port", route.Target{Port: 82}, "http://[::1]/", "[::1]:82", "[::1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var got *http.Request
			rt := always(t, func(req *http.Request) (*http.Response, error) { got = req; return ok(req) },
				route.Route{Destinations: []route.Destination{{Target: c.target}}})
			if _, err := rt.RoundTrip(get(t, c.url)); err != nil {
				t.Fatal(err)
			}
			if got.URL.Host != c.want || got.Host != c.authority {
				t.Errorf("URL.Host = %q, Host = %q, want %q, %q", got.URL.Host, got.Host, c.want, c.authority)
			}
		})
	}
}

func TestTransportAnswersByItself(t *testing.T) {
	rt := always(t, func(*http.Request) (*http.Response, error) {
		t.Error("a request was sent")
		return nil, errors.New("sent")
	},
		route.Route{Matches: []route.Match{{URI: prefix("/old")}}, Redirect: &route.Redirect{PrefixRewrite: "/new", Status: 308}},
		route.Route{Matches: []route.Match{{URI: exact("/gone")}}, Direct: &route.DirectResponse{Status: 410, Body: []byte("gone")}},
	)
	for path, want := range map[string]string{"/old/x": "308 /new/x", "/gone": "410 gone", "/other": "404 "} {
		req := get(t, "http://a"+path)
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		got := fmt.Sprintf("%d %s%s", resp.StatusCode, strings.TrimPrefix(resp.Header.Get("Location"), "http://a"), text)
		if got != want || resp.Request != req {
			t.Errorf("%s: %q for request %p, want %q for %p", path, got, resp.Request, want, req)
		}
	}
}

func TestTransportNilTable(t *testing.T) {
	resp, err := new(route.Transport).RoundTrip(get(t, "http://a/"))
	if err != nil || resp.StatusCode != 404 {
		t.Errorf("RoundTrip = %v, %v, want 404", resp, err)
	}
}

// copied is a route whose requests are all copied to "shadow".
func copied() route.Route {
	r := to("b")
	r.Mirrors = []route.Mirror{{Target: route.Target{Host: "shadow"}, Fraction: 1}}
	return r
}

// everything is a route that changes all that a route can change.
func everything() route.Route {
	r := copied()
	r.Matches = []route.Match{{URI: prefix("/b")}}
	r.Rewrite = route.Rewrite{URI: "/x", Authority: "z"}
	r.Headers.Request = route.HeaderOps{Set: headers("x-a", "2"), Add: headers("x-b", "2"), Remove: []string{"x-c"}}
	return r
}

func TestRequestIsTheCallers(t *testing.T) {
	failing := errors.New("down")
	broken := to("b")
	broken.Rewrite = route.Rewrite{Pattern: "^/", Substitution: "x"}
	subset := route.Route{Destinations: []route.Destination{{Target: route.Target{Subset: "v1"}}}}
	retried := everything()
	retried.Retry = retry.Config{Retries: 1}
	closing := func(req *http.Request) (*http.Response, error) { req.Body.Close(); return nil, failing }

	for _, c := range []struct {
		name   string
		routes []route.Route
		base   roundTripper
		err    bool
	}{
		{"sent", []route.Route{everything()}, ok, false},
		{"sent, with layers", []route.Route{retried}, ok, false},
		{"failed", []route.Route{everything()}, closing, true},
		{"no route", nil, ok, false},
		{"redirect", []route.Route{{Redirect: &route.Redirect{}}}, ok, false},
		{"direct response", []route.Route{{Direct: &route.DirectResponse{Status: 200}}}, ok, false},
		{"path not valid", []route.Route{broken}, ok, true},
		{"nothing sends to the subset", []route.Route{subset}, nil, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			leak.CheckOf(t, "mirror.(*Mirrorer[...]).start")
			b := &leak.Body{Reader: strings.NewReader("hello")}
			req := post(t, b)
			req.Header = http.Header{"X-A": {"1"}, "X-B": {"1"}, "X-C": {"1"}}
			before, url, header := *req, *req.URL, req.Header.Clone()

			rt := always(t, c.base, c.routes...)
			if c.base == nil {
				rt.Destination = nil
			}
			defer rt.Close()
			resp, err := rt.RoundTrip(req)
			if (err != nil) != c.err {
				t.Fatalf("RoundTrip = %v, want an error: %v", err, c.err)
			}
			if resp != nil {
				resp.Body.Close()
			}
			if !reflect.DeepEqual(before, *req) || !reflect.DeepEqual(url, *req.URL) || !equal(header, req.Header) {
				t.Errorf("request = %+v, was %+v", req, before)
			}
			if b.Closed.Load() != 1 {
				t.Errorf("body closed %d times, want once", b.Closed.Load())
			}
		})
	}
}

func TestResponseRequestIsTheCallers(t *testing.T) {
	leak.CheckOf(t, "mirror.(*Mirrorer[...]).start")
	limited := everything()
	limited.Timeout, limited.Retry = time.Second, retry.Config{Retries: 1}
	for name, r := range map[string]route.Route{"plain": everything(), "layers": limited} {
		rt := always(t, ok, r)
		req := get(t, "http://a/b")
		resp, err := rt.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, resp.Body)
		if resp.Request != req || resp.Request.URL.String() != "http://a/b" {
			t.Errorf("%s: resp.Request = %v, want the caller's", name, resp.Request.URL)
		}
		rt.Close()
	}
}

func TestSwitchingProtocols(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\nServer: s\r\n\r\n")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		io.WriteString(rw, line)
		rw.Flush()
	}))
	defer server.Close()
	r := route.Route{Destinations: make([]route.Destination, 1)}
	r.Headers.Response.Remove = []string{"server"}
	rt := &route.Transport{Table: table(t, r)}
	defer rt.CloseIdleConnections()
	resp, err := rt.RoundTrip(get(t, server.URL, "Connection", "upgrade", "Upgrade", "echo"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	w, isWriter := resp.Body.(io.Writer)
	if resp.StatusCode != 101 || !isWriter || resp.Header.Get("Server") != "" {
		t.Fatalf("%d with %T and %v", resp.StatusCode, resp.Body, resp.Header)
	}
	io.WriteString(w, "hello\n")
	if line, err := bufio.NewReader(resp.Body).ReadString('\n'); line != "hello\n" {
		t.Errorf("read %q, %v", line, err)
	}
}

// Over real connections: the route's host, path and headers arrive, and the mirror gets the same body.
func TestTransportOverTheWire(t *testing.T) {
	leak.CheckOf(t, "mirror.(*Mirrorer[...]).start")
	type seen struct{ request, host, agent, body string }
	serve := func(to chan<- seen) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			b, _ := io.ReadAll(r.Body)
			to <- seen{r.Method + " " + r.RequestURI, r.Host, r.Header.Get("User-Agent"), string(b)}
		}))
	}
	primary, copies := make(chan seen, 1), make(chan seen, 1)
	a, b := serve(primary), serve(copies)
	defer a.Close()
	defer b.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()

	target := func(s *httptest.Server) route.Target {
		u, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		var port int
		fmt.Sscan(u.Port(), &port)
		return route.Target{Host: u.Hostname(), Port: port}
	}
	r := to("a", route.Match{URI: prefix("/api/")})
	r.Destinations[0].Target = target(a)
	r.Mirrors = []route.Mirror{{Target: target(b), Fraction: 1}}
	r.Rewrite = route.Rewrite{URI: "/v1/"}
	r.Headers.Request.Remove = []string{"user-agent"}
	rt := &route.Transport{
		Table:       table(t, r),
		Destination: func(route.Target) http.RoundTripper { return transport },
	}
	defer rt.Close()
	client := &http.Client{Transport: rt}

	for _, reader := range []io.Reader{strings.NewReader("hello"), stream(strings.NewReader("hello"))} {
		resp, err := client.Post("http://users:8080/api/a%2Fb?c=d", "text/plain", reader)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got, want := <-primary, (seen{"POST /v1/a%2Fb?c=d", "users:8080", "", "hello"}); got != want {
			t.Errorf("destination got %q, want %q", got, want)
		}
		if got, want := <-copies, (seen{"POST /v1/a%2Fb?c=d", "users-shadow:8080", "", "hello"}); got != want {
			t.Errorf("mirror got %q, want %q", got, want)
		}
	}
}

func TestTransportRetries(t *testing.T) {
	calls := 0
	r := everything()
	r.Mirrors[0].Fraction = 0
	r.Retry = retry.Config{Retries: 2, Backoff: -1}
	rt := always(t, func(req *http.Request) (*http.Response, error) {
		calls++
		resp, err := ok(req)
		if calls < 3 {
			resp.StatusCode = 503
		}
		return resp, err
	}, r)
	resp, err := rt.RoundTrip(get(t, "http://a/b"))
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != 200 || calls != 3 || retry.Attempts(resp) != 3 {
		t.Errorf("%d after %d calls, %d attempts, want 200 after 3", resp.StatusCode, calls, retry.Attempts(resp))
	}
}

// The retries of a destination share a budget, from call to call.
func TestTransportRetryBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := to("b")
		r.Retry = retry.Config{Retries: 1, Backoff: -1}
		sent := 0
		rt := always(t, func(req *http.Request) (*http.Response, error) {
			sent++
			resp, err := ok(req)
			resp.StatusCode = 503
			return resp, err
		}, r)
		for range 100 {
			if _, err := rt.RoundTrip(get(t, "http://a/")); err != nil {
				t.Fatal(err)
			}
		}
		if sent <= 100 || sent > 150 {
			t.Errorf("100 calls became %d requests, want some retries, but far from one for each", sent)
		}
	})
}

// A request made by hand may have no Host.
func TestTransportKeepsAuthority(t *testing.T) {
	var host string
	rt := always(t, func(req *http.Request) (*http.Response, error) { host = req.Host; return ok(req) }, to("b"))
	if _, err := rt.RoundTrip(&http.Request{URL: &url.URL{Scheme: "http", Host: "a:81", Path: "/"}}); err != nil {
		t.Fatal(err)
	}
	if host != "a:81" {
		t.Errorf("Host = %q, want a:81", host)
	}
}

func TestTransportFaults(t *testing.T) {
	r := to("b")
	r.Retry = retry.Config{Retries: 2, On: retry.On{Conditions: retry.ServerError}}
	r.Fault.Abort = fault.Abort{Fraction: 1, HTTPStatus: 503}
	calls := 0
	rt := always(t, func(req *http.Request) (*http.Response, error) { calls++; return ok(req) }, r)
	resp, err := rt.RoundTrip(get(t, "http://a/"))
	if err != nil || resp.StatusCode != 503 || calls != 0 {
		t.Errorf("RoundTrip = %v, %v after %d calls, want 503 without a call", resp, err, calls)
	}
}

// An injected delay is no part of the timeout, as in Envoy.
func TestTransportTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := to("b")
		r.Timeout = time.Second
		r.Fault.Delay = fault.Delay{Fraction: 1, Fixed: time.Minute}
		rt := always(t, func(req *http.Request) (*http.Response, error) {
			<-req.Context().Done()
			return nil, context.Cause(req.Context())
		}, r)
		start := time.Now()
		_, err := rt.RoundTrip(get(t, "http://a/"))
		var timeout interface{ Timeout() bool }
		if took := time.Since(start); !errors.As(err, &timeout) || !timeout.Timeout() || took != time.Minute+time.Second {
			t.Errorf("RoundTrip = %v after %v, want a timeout 1s after the delay", err, took)
		}
	})
}

type idler struct {
	roundTripper
	closed *int
}

func (i idler) CloseIdleConnections() { *i.closed++ }

func TestTransportCloseIdleConnections(t *testing.T) {
	closed := map[route.Target]*int{}
	rt := &route.Transport{
		Table: table(t, weighted(1, 1), copied()),
		Destination: func(target route.Target) http.RoundTripper {
			if closed[target] == nil {
				closed[target] = new(int)
			}
			return idler{ok, closed[target]}
		},
	}
	rt.CloseIdleConnections()
	if len(closed) != 4 {
		t.Errorf("%d targets, want 4", len(closed))
	}
	for target, n := range closed {
		if *n != 1 {
			t.Errorf("%+v was closed %d times, want once", target, *n)
		}
	}
}

func TestTransportPanicPasses(t *testing.T) {
	leak.CheckOf(t, "mirror.(*Mirrorer[...]).start")
	rt := always(t, func(*http.Request) (*http.Response, error) { panic("boom") }, everything())
	defer rt.Close()
	defer func() {
		if v := recover(); v != "boom" {
			t.Errorf("recovered %v, want boom", v)
		}
	}()
	original := rt.Destination
	rt.Destination = func(target route.Target) http.RoundTripper {
		if target.Host == "shadow" {
			return roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("dropped") })
		}
		return original(target)
	}
	rt.RoundTrip(get(t, "http://a/b"))
}

func TestTransportNoURL(t *testing.T) {
	b := &leak.Body{Reader: strings.NewReader("hello")}
	if _, err := always(t, ok, to("b")).RoundTrip(&http.Request{Body: b}); err == nil || b.Closed.Load() != 1 {
		t.Errorf("RoundTrip = %v, body closed %d times, want an error and once", err, b.Closed.Load())
	}
}

func TestTransportMirrorSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan error, 3)
		rt := &route.Transport{
			Table: table(t, everything()),
			Destination: func(target route.Target) http.RoundTripper {
				return roundTripper(func(req *http.Request) (*http.Response, error) {
					if target.Host != "shadow" {
						return ok(req)
					}
					<-req.Context().Done()
					return nil, req.Context().Err()
				})
			},
			MirrorLimit:   1,
			MirrorTimeout: time.Second,
			MirrorDone: func(target route.Target, err error) {
				if target.Host != "shadow" {
					t.Errorf("MirrorDone of %+v", target)
				}
				done <- err
			},
		}
		defer rt.Close()
		start := time.Now()
		for range 2 {
			if _, err := rt.RoundTrip(get(t, "http://a/b")); err != nil {
				t.Fatal(err)
			}
		}
		if err := <-done; err == nil || !strings.Contains(err.Error(), "too many mirrored requests") {
			t.Errorf("MirrorDone(%v), want the limit", err)
		}
		if err := <-done; !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("MirrorDone(%v) after %v, want DeadlineExceeded after a second", err, time.Since(start))
		}
	})
}
