package breaker_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/refusal"
)

// roundTripFunc is a base transport made of a function.
type roundTripFunc func(*http.Request) (*http.Response, error)

func (f roundTripFunc) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

// status answers every request.
func status(code int) roundTripFunc {
	return func(req *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: code, Body: io.NopCloser(strings.NewReader("hello")), Request: req}, nil
	}
}

func failing(err error) roundTripFunc {
	return func(*http.Request) (*http.Response, error) { return nil, err }
}

// sensitive opens on the first failure.
var sensitive = breaker.Config{ConsecutiveFailures: 1}

func onlyState(t *testing.T, rt *breaker.Transport) breaker.State {
	t.Helper()
	states := rt.States()
	if len(states) != 1 {
		t.Fatalf("States() = %v, want one circuit", states)
	}
	for _, state := range states {
		return state
	}
	panic("unreachable")
}

func TestTransport_Outcomes(t *testing.T) {
	var errPeer = errors.New("peer broke")
	cancelCause := func(cause error) func(context.Context) context.Context {
		return func(ctx context.Context) context.Context {
			ctx, cancel := context.WithCancelCause(ctx)
			cancel(cause)
			return ctx
		}
	}
	past := func(ctx context.Context) context.Context {
		ctx, cancel := context.WithDeadline(ctx, time.Unix(0, 0))
		cancel()
		return ctx
	}
	for _, test := range []struct {
		name      string
		base      http.RoundTripper
		context   func(context.Context) context.Context
		isFailure func(*http.Response, error) bool
		want      breaker.State
	}{
		{name: "200", base: status(200), want: breaker.Closed},
		{name: "404", base: status(404), want: breaker.Closed},
		{name: "499", base: status(499), want: breaker.Closed},
		{name: "500", base: status(500), want: breaker.Open},
		{name: "503", base: status(503), want: breaker.Open},
		{name: "error", base: failing(errPeer), want: breaker.Open},
		{name: "nothing at all", base: failing(nil), want: breaker.Open},
		{name: "refused below", base: failing(fmt.Errorf("no: %w", refusal.New("no"))), want: breaker.Closed},
		{name: "cancelled by the caller", base: failing(context.Canceled), context: cancelCause(nil), want: breaker.Closed},
		{name: "cancelled by the caller, who says why", base: failing(errPeer), context: cancelCause(errPeer), want: breaker.Closed},
		{name: "cancelled by a timer", base: failing(context.Canceled), context: cancelCause(context.DeadlineExceeded), want: breaker.Open},
		{name: "deadline of the caller", base: failing(context.DeadlineExceeded), context: past, want: breaker.Open},
		{name: "cancelled by the peer", base: failing(context.Canceled), want: breaker.Open},
		{name: "answered in spite of a cancel", base: status(503), context: cancelCause(nil), want: breaker.Open},
		{
			name: "hook knows better", base: status(503), want: breaker.Closed,
			isFailure: func(resp *http.Response, err error) bool { return resp.StatusCode == 500 },
		},
		{
			name: "hook is stricter", base: status(429), want: breaker.Open,
			isFailure: func(resp *http.Response, err error) bool { return resp.StatusCode == 429 },
		},
		{
			name: "hook forgives errors", base: failing(errPeer), want: breaker.Closed,
			isFailure: func(resp *http.Response, err error) bool { return resp != nil || err != errPeer },
		},
		{
			name: "hook is not asked about cancels", base: failing(errPeer), context: cancelCause(nil), want: breaker.Closed,
			isFailure: func(*http.Response, error) bool { return true },
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			rt := &breaker.Transport{Base: test.base, Config: sensitive, IsFailure: test.isFailure}
			req := newRequest(t)
			if test.context != nil {
				req = req.WithContext(test.context(req.Context()))
			}
			resp, _ := rt.RoundTrip(req)
			if resp != nil {
				if got := onlyState(t, rt); got != breaker.Closed {
					t.Errorf("state before the end of the body is %v", got)
				}
				if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "hello" {
					t.Errorf("body is %q, %v", text, err)
				}
				resp.Body.Close()
			}
			if got := onlyState(t, rt); got != test.want {
				t.Errorf("state is %v, want %v", got, test.want)
			}
		})
	}
}

// brokenBody fails with err.
type brokenBody struct{ err error }

func (b brokenBody) Read([]byte) (int, error) { return 0, b.err }
func (b brokenBody) Close() error             { return nil }

func TestTransport_BodyErrors(t *testing.T) {
	for _, test := range []struct {
		name   string
		cancel bool
		want   breaker.State
	}{
		{"reset by the peer", false, breaker.Open},
		{"cancelled by the caller", true, breaker.Closed},
	} {
		t.Run(test.name, func(t *testing.T) {
			var asked error
			rt := &breaker.Transport{
				Config: sensitive,
				Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
					return &http.Response{StatusCode: 200, Body: brokenBody{io.ErrUnexpectedEOF}}, nil
				}),
				IsFailure: func(resp *http.Response, err error) bool {
					asked = err
					return resp.StatusCode == 200 && err != nil
				},
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			resp, err := rt.RoundTrip(newRequest(t).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			if test.cancel {
				cancel()
			}
			if _, err := resp.Body.Read(nil); err != io.ErrUnexpectedEOF {
				t.Errorf("Read() = %v", err)
			}
			resp.Body.Close()
			if got := onlyState(t, rt); got != test.want {
				t.Errorf("state is %v, want %v", got, test.want)
			}
			if (asked == nil) != test.cancel {
				t.Errorf("IsFailure was asked about %v", asked)
			}
		})
	}
}

func TestCancelledRequestsDoNotCount(t *testing.T) {
	entered := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			entered <- struct{}{}
			<-r.Context().Done()
		} else if r.URL.Path == "/fail" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	rt := &breaker.Transport{
		Base:   server.Client().Transport,
		Config: breaker.Config{ConsecutiveFailures: 3, OpenDuration: time.Microsecond, ProbeTimeout: time.Hour},
	}
	client := &http.Client{Transport: rt}
	cancelOne := func() {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			<-entered
			cancel()
		}()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/hang", nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := client.Do(req); !errors.Is(err, context.Canceled) {
			t.Fatalf("cancelled call ended with %v", err)
		}
	}
	get := func(path string) {
		t.Helper()
		resp, err := client.Get(server.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	for range 5 {
		cancelOne()
	}
	if got := onlyState(t, rt); got != breaker.Closed {
		t.Fatalf("state after five cancels is %v", got)
	}
	for range 3 {
		get("/fail")
	}
	awaitState(t, rt, breaker.HalfOpen) // after a microsecond
	cancelOne()
	if got := onlyState(t, rt); got != breaker.HalfOpen {
		t.Fatalf("state after a cancelled probe is %v", got)
	}
	get("/")
	if got := onlyState(t, rt); got != breaker.Closed {
		t.Errorf("state after a good probe is %v", got)
	}
}

// awaitState waits for a state that is about to come, or for an asynchronous event to reach the circuit.
func awaitState(t *testing.T, rt *breaker.Transport, want breaker.State) {
	t.Helper()
	for onlyState(t, rt) != want {
		runtime.Gosched()
	}
}

func TestFive503sOpenTheCircuit(t *testing.T) {
	var calls atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	defer server.Close()
	rt := &breaker.Transport{Base: server.Client().Transport}
	client := &http.Client{Transport: rt}
	for i := range 5 {
		resp, err := client.Get(server.URL)
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		resp.Body.Close()
	}
	_, err := client.Get(server.URL)
	if !errors.Is(err, breaker.ErrOpen) || !strings.Contains(err.Error(), "breaker: open for "+server.URL) {
		t.Errorf("sixth call ended with %v, want ErrOpen and the destination", err)
	}
	if got := calls.Load(); got != 5 {
		t.Errorf("the server saw %d calls, want 5", got)
	}
}

// TestIsFailureThatPanics: the call counts as a failure, and its probe does not keep the circuit half-open.
func TestIsFailureThatPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := false
		rt := &breaker.Transport{
			Config: breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Minute, ProbeTimeout: time.Hour},
			Base:   status(http.StatusServiceUnavailable),
			IsFailure: func(*http.Response, error) bool {
				if panics {
					panic("boom")
				}
				return true
			},
		}
		roundTrip(t, rt, newRequest(t))
		time.Sleep(time.Minute)
		panics = true
		func() {
			defer func() {
				if got := recover(); got != "boom" {
					t.Errorf("recovered %v, want the panic of IsFailure", got)
				}
			}()
			if resp, err := rt.RoundTrip(newRequest(t)); err == nil {
				resp.Body.Close()
			}
		}()
		if got := onlyState(t, rt); got != breaker.Open {
			t.Errorf("state is %v, want open", got)
		}
	})
}

func TestBaseThatPanicsExitsOrHangs(t *testing.T) {
	for _, test := range []struct {
		name string
		base func(*http.Request)
		want breaker.State // a minute later
	}{
		{"panic", func(*http.Request) { panic("boom") }, breaker.Open},
		{"goexit", func(*http.Request) { runtime.Goexit() }, breaker.Open},
		{"hang", func(req *http.Request) { <-req.Context().Done() }, breaker.HalfOpen},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				misbehave := false
				code := http.StatusServiceUnavailable
				rt := &breaker.Transport{
					Config: breaker.Config{OpenDuration: 2 * time.Minute, ProbeTimeout: time.Minute},
					Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
						if misbehave {
							test.base(req)
						}
						return status(code)(req)
					}),
				}
				for range 5 {
					roundTrip(t, rt, newRequest(t))
				}
				time.Sleep(2 * time.Minute)

				misbehave = true
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				req := newRequest(t).WithContext(ctx)
				recovered := make(chan any, 1)
				go func() {
					defer func() { recovered <- recover() }()
					rt.RoundTrip(req)
				}()
				synctest.Wait()
				misbehave, code = false, http.StatusOK

				if test.name != "hang" {
					got := <-recovered
					if want := map[string]any{"panic": "boom"}[test.name]; got != want {
						t.Errorf("recovered %v, want %v", got, want)
					}
				}
				time.Sleep(time.Minute)
				if got := onlyState(t, rt); got != test.want {
					t.Errorf("state is %v, want %v", got, test.want)
				}
				if test.want == breaker.Open {
					time.Sleep(time.Minute)
				}
				roundTrip(t, rt, newRequest(t))
				if got := onlyState(t, rt); got != breaker.Closed {
					t.Errorf("state after a good probe is %v", got)
				}
			})
		})
	}
}

// The retry layer must not wait before it gives up on an open circuit: it can tell by the error.
func TestOpenCircuitFailsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		calls := 0
		rt := &breaker.Transport{Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
			calls++
			return status(503)(req)
		})}
		client := &http.Client{Transport: rt}
		for range 5 {
			roundTrip(t, rt, newRequest(t))
		}
		start := time.Now()
		for range 100 {
			sent := &leak.Body{Reader: strings.NewReader("data")}
			_, err := client.Post("http://user-service/", "text/plain", sent)
			if !errors.Is(err, breaker.ErrOpen) || !refusal.Is(err) {
				t.Fatalf("call ended with %v, want a refusal that is ErrOpen", err)
			}
			if got := sent.Closed.Load(); got != 1 {
				t.Fatalf("request body was closed %d times", got)
			}
		}
		if calls != 5 || time.Since(start) != 0 {
			t.Errorf("%d calls were made, refusing took %v", calls, time.Since(start))
		}
	})
}

// However a call ends, the place of the probe is free afterwards. ProbeTimeout has no part in it.
func TestProbeIsReleased(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })
	mux.HandleFunc("/503", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) })
	mux.HandleFunc("/204", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(204) })
	mux.HandleFunc("/reset", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "hel")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: 1\n\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, r *http.Request) {
		conn, buf, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		io.WriteString(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		buf.Flush()
		line, _ := buf.ReadString('\n')
		buf.WriteString(line)
		buf.Flush()
	})
	http1 := httptest.NewServer(mux)
	defer http1.Close()
	http2 := httptest.NewUnstartedServer(mux)
	http2.EnableHTTP2 = true
	http2.StartTLS()
	defer http2.Close()

	type step func(t *testing.T, client *http.Client, url string)
	do := func(path string, use func(t *testing.T, resp *http.Response)) step {
		return func(t *testing.T, client *http.Client, url string) {
			req, err := http.NewRequest(http.MethodGet, url+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if path == "/upgrade" {
				req.Header.Set("Connection", "Upgrade")
				req.Header.Set("Upgrade", "echo")
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			use(t, resp)
		}
	}
	closeUnread := func(t *testing.T, resp *http.Response) { resp.Body.Close() }
	for _, test := range []struct {
		name string
		call step
		want breaker.State
	}{
		{"closed unread", do("/", closeUnread), breaker.Closed},
		{"read to the end and never closed", do("/", func(t *testing.T, resp *http.Response) {
			if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "hello" {
				t.Errorf("body is %q, %v", text, err)
			}
		}), breaker.Closed},
		{"no body", do("/204", closeUnread), breaker.Closed},
		{"events", do("/events", func(t *testing.T, resp *http.Response) {
			if line, err := bufio.NewReader(resp.Body).ReadString('\n'); line != "data: 1\n" {
				t.Errorf("event is %q, %v", line, err)
			}
			resp.Body.Close()
		}), breaker.Closed},
		{"reset", do("/reset", func(t *testing.T, resp *http.Response) {
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("the body has an end")
			}
		}), breaker.Open},
		{"cancelled in the body", func(t *testing.T, client *http.Client, url string) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/events", nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			if _, err := io.ReadAll(resp.Body); err == nil {
				t.Error("the body has an end")
			}
		}, breaker.HalfOpen},
		{"upgraded", do("/upgrade", func(t *testing.T, resp *http.Response) {
			conn, ok := resp.Body.(io.ReadWriteCloser)
			if resp.StatusCode != http.StatusSwitchingProtocols || !ok {
				t.Fatalf("status %d, body %T", resp.StatusCode, resp.Body)
			}
			io.WriteString(conn, "ping\n")
			if line, err := bufio.NewReader(conn).ReadString('\n'); line != "ping\n" {
				t.Errorf("echo is %q, %v", line, err)
			}
			conn.Close()
		}), breaker.Closed},
	} {
		for proto, server := range map[string]*httptest.Server{"HTTP1": http1, "HTTP2": http2} {
			if proto == "HTTP2" && test.name == "upgraded" {
				continue // not a thing of HTTP/2
			}
			t.Run(test.name+"/"+proto, func(t *testing.T) {
				var trace []breaker.State
				rt := &breaker.Transport{
					Base:     server.Client().Transport,
					Config:   breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Microsecond, ProbeTimeout: time.Hour},
					OnChange: func(_ string, c breaker.Change) { trace = append(trace, c.To) },
				}
				client := &http.Client{Transport: rt}
				do("/503", closeUnread)(t, client, server.URL)
				awaitState(t, rt, breaker.HalfOpen)
				test.call(t, client, server.URL)
				if got := trace[len(trace)-1]; got != test.want {
					t.Errorf("the probe led to %v, want %v", got, test.want)
				}
				if test.want == breaker.Open {
					awaitState(t, rt, breaker.HalfOpen)
				}
				do("/", closeUnread)(t, client, server.URL)
				if got := onlyState(t, rt); got != breaker.Closed {
					t.Errorf("state is %v, want closed", got)
				}
			})
		}
	}
}

func TestTransport_OneCircuitPerKey(t *testing.T) {
	var changes []string
	base := roundTripFunc(func(req *http.Request) (*http.Response, error) {
		if strings.HasPrefix(req.URL.Host, "bad") {
			return status(503)(req)
		}
		return status(200)(req)
	})
	onChange := func(key string, c breaker.Change) { changes = append(changes, fmt.Sprint(key, " ", c.To)) }
	get := func(rt http.RoundTripper, url string) {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		roundTrip(t, rt, req)
	}

	rt := &breaker.Transport{Base: base, Config: sensitive, OnChange: onChange}
	get(rt, "http://bad/1")
	get(rt, "https://bad/")
	get(rt, "http://bad:81/")
	get(rt, "http://good/1")
	get(rt, "http://GOOD/2")
	want := map[string]breaker.State{
		"http://bad": breaker.Open, "https://bad": breaker.Open, "http://bad:81": breaker.Open, "http://good": breaker.Closed,
	}
	if got := rt.States(); !maps.Equal(got, want) {
		t.Errorf("States() = %v, want %v", got, want)
	}
	if want := []string{"http://bad open", "https://bad open", "http://bad:81 open"}; !slices.Equal(changes, want) {
		t.Errorf("changes are %q, want %q", changes, want)
	}

	rt = &breaker.Transport{Base: base, Config: sensitive, Key: func(req *http.Request) string { return req.Method }}
	get(rt, "http://good/")
	get(rt, "http://bad/")
	if got, want := rt.States(), map[string]breaker.State{"GET": breaker.Open}; !maps.Equal(got, want) {
		t.Errorf("States() = %v, want %v", got, want)
	}
	_, err := rt.RoundTrip(newRequest(t))
	if want := "breaker: open for GET"; err == nil || err.Error() != want {
		t.Errorf("refused with %v, want %s", err, want)
	}
}

func TestTransport_ForgetsIdleCircuits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &breaker.Transport{
			Base: status(200),
			Key:  func(req *http.Request) string { return req.URL.Path },
		}
		get := func(path string) {
			req := newRequest(t)
			req.URL.Path = path
			roundTrip(t, rt, req)
		}
		for i := range 50 {
			get(fmt.Sprint("/", i))
		}
		for range 3 {
			time.Sleep(5 * time.Minute)
			get("/busy")
			get(fmt.Sprint("/new at ", time.Now()))
		}
		states := rt.States()
		if _, ok := states["/busy"]; !ok || len(states) > 4 {
			t.Errorf("States() = %v, want /busy and at most three others", states)
		}
	})
}

func TestTransport_BoundsItsCircuits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := &breaker.Transport{
			Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
				if strings.HasPrefix(req.URL.Path, "/bad") {
					return status(503)(req)
				}
				return status(200)(req)
			}),
			Config: breaker.Config{ConsecutiveFailures: 1, OpenDuration: time.Hour},
			Key:    func(req *http.Request) string { return req.URL.Path },
		}
		for i := range 3000 {
			req := newRequest(t)
			req.URL.Path = fmt.Sprint("/", i)
			if i%30 == 0 {
				req.URL.Path = fmt.Sprint("/bad", i)
			}
			roundTrip(t, rt, req)
		}
		open, states := 0, rt.States()
		for _, state := range states {
			if state == breaker.Open {
				open++
			}
		}
		if len(states) > 1000 || open != 100 {
			t.Errorf("%d circuits, %d open; want at most 1000, and all 100 that opened", len(states), open)
		}
		for i := range 2000 { // nothing but open ones: the bound holds
			req := newRequest(t)
			req.URL.Path = fmt.Sprint("/bad again ", i)
			roundTrip(t, rt, req)
		}
		if got := len(rt.States()); got < 900 || got > 1000 {
			t.Errorf("%d circuits, want at most 1000", got)
		}
	})
}

func TestTransport_InvalidConfig(t *testing.T) {
	rt := &breaker.Transport{Base: status(200), Config: breaker.Config{FailureFraction: 50}}
	sent := &leak.Body{Reader: strings.NewReader("data")}
	req, err := http.NewRequest(http.MethodPost, "http://user-service/", sent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.RoundTrip(req); err == nil || !strings.Contains(err.Error(), "FailureFraction") {
		t.Errorf("RoundTrip() = %v, want an error about FailureFraction", err)
	}
	if got := sent.Closed.Load(); got != 1 {
		t.Errorf("request body was closed %d times", got)
	}
}

func TestTransport_ZeroValue(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	defer server.Close()
	var rt breaker.Transport
	client := &http.Client{Transport: &rt}
	defer client.CloseIdleConnections()
	resp, err := client.Get(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, err := io.ReadAll(resp.Body); err != nil || string(text) != "hello" {
		t.Errorf("body is %q, %v", text, err)
	}
	if got := onlyState(t, &rt); got != breaker.Closed {
		t.Errorf("state is %v", got)
	}
}

func TestTransport_LeavesTheRequestAlone(t *testing.T) {
	req := newRequest(t)
	before := *req
	var got *http.Request
	rt := &breaker.Transport{Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
		got = req
		return status(200)(req)
	})}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if got != req || resp.Request != req {
		t.Error("the request was replaced")
	}
	if req.URL != before.URL || req.Body != before.Body || len(req.Header) != 0 || req.Host != before.Host {
		t.Errorf("the request was changed: %+v", req)
	}
}

type idleCloser struct {
	roundTripFunc
	closed int
}

func (c *idleCloser) CloseIdleConnections() { c.closed++ }

func TestTransport_CloseIdleConnections(t *testing.T) {
	base := &idleCloser{roundTripFunc: status(200)}
	(&http.Client{Transport: &breaker.Transport{Base: base}}).CloseIdleConnections()
	if base.closed != 1 {
		t.Errorf("forwarded %d times, want once", base.closed)
	}
	(&breaker.Transport{Base: status(200)}).CloseIdleConnections() // nothing to forward to
}

func TestTransport_SlowIsTheTimeToTheResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var wait time.Duration
		rt := &breaker.Transport{
			Config: breaker.Config{SlowCallFraction: 1, SlowCall: time.Second, MinRequests: 1},
			Base: roundTripFunc(func(req *http.Request) (*http.Response, error) {
				time.Sleep(wait)
				return status(200)(req)
			}),
		}
		resp, err := rt.RoundTrip(newRequest(t))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		resp.Body.Close()
		if got := onlyState(t, rt); got != breaker.Closed {
			t.Errorf("state after a quick response with a long body is %v", got)
		}
		wait = time.Minute
		roundTrip(t, rt, newRequest(t))
		if got := onlyState(t, rt); got != breaker.Open {
			t.Errorf("state after a slow response is %v", got)
		}
	})
}

func TestTransport_Allocations(t *testing.T) {
	req := newRequest(t)
	bare := testing.AllocsPerRun(1000, func() { roundTrip(t, noop{}, req) })
	rt := &breaker.Transport{Base: noop{}, Config: breaker.Config{FailureFraction: 0.5, SlowCallFraction: 0.5, SlowCall: time.Second}}
	with := testing.AllocsPerRun(1000, func() { roundTrip(t, rt, req) })
	if with-bare > 1 {
		t.Errorf("a call allocates %v times more than bare, want once", with-bare)
	}
	rt = &breaker.Transport{Base: noop{}}
	if n := bytesOf(func() { roundTrip(t, rt, req) }) - bytesOf(func() { roundTrip(t, noop{}, req) }); n > 48 {
		t.Errorf("a call allocates %d bytes more than bare, want 48", n)
	}
	empty := &http.Response{StatusCode: http.StatusNoContent, Body: http.NoBody, Request: req}
	rt.Base = roundTripFunc(func(*http.Request) (*http.Response, error) { return empty, nil })
	if n := testing.AllocsPerRun(1000, func() { roundTrip(t, rt, req) }); n > 0 {
		t.Errorf("a call without a response body allocates %v times, want none", n)
	}
}
