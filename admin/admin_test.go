package admin_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// ask returns what a page answers.
func ask(t testing.TB, page http.Handler, query string, header ...string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:9090/debug/mesh/"+query, nil)
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	w := httptest.NewRecorder()
	page.ServeHTTP(w, req)
	return w
}

// report is what the tests look at in the JSON.
type report struct {
	Version   int
	Documents struct {
		Alone []struct {
			Document, InForce, Error string
			Since                    time.Time
		}
	}
	Problems []struct {
		Severity, Title string
		Target          struct {
			Host string
			Port int
		}
		Why []string
	}
	Destinations []struct {
		Host                   string
		Calls, Errors, Retries int
		ErrorShare             float64
		P50Ms, P99Ms           float64
		Circuit                struct{ State string }
		Causes                 []struct {
			Count       int
			Text, Error string
		}
		Endpoints []struct {
			Address, Reason string
			Healthy         bool
			Until           time.Time
			Calls, Errors   int
			P50Ms           float64
		}
		Others, Outside bool
		Connections     connFigures
	}
	In      struct{ Connections connFigures }
	Callers []struct {
		ID                    string
		Calls, Errors, Denied int
	}
	Routes []struct {
		Host, Document, File string
		Line                 int
	}
	Loads []struct {
		Number   int
		InForce  bool
		Error    string
		Findings []policy.Finding
	}
	Events []struct{ Kind, Endpoint, Text string }
	Calls  []struct {
		Direction, Method, Path, Error, Flags, Decision, Caller, Document string
		Failed                                                            bool
		Status                                                            int
		DurationMs                                                        float64
		AttemptCount                                                      int
		Attempts                                                          []struct {
			Number, Status int
			Endpoint       string
		}
	}
}

type connFigures struct{ Open, Opened, Failed, BytesSent, BytesReceived int }

func reportOf(t testing.TB, page http.Handler) (r report) {
	t.Helper()
	w := ask(t, page, "?format=json")
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("%d %s: %.200s", w.Code, w.Header().Get("Content-Type"), w.Body)
	}
	if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// attach makes a mesh with a page.
func attach(t testing.TB, f *meshtest.Fleet, config admin.Config, documents string, opts ...mesh.Option) (*admin.Page, *mesh.Mesh) {
	t.Helper()
	page := admin.New(config)
	m := f.Mesh(t, documents, append(opts, mesh.WithObserver(page.Observer()))...)
	t.Cleanup(page.Close)
	return page, m
}

// fed returns a page whose mesh makes no calls, and the observer that a test tells of calls.
func fed(t testing.TB) (*admin.Page, mesh.Observer) {
	t.Helper()
	page := admin.New(admin.Config{})
	t.Cleanup(page.Close)
	o := page.Observer()
	meshtest.New(t, "", mesh.WithDiscovery(new(discovery.Memory)), mesh.WithObserver(o))
	return page, o
}

const ejects = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy:
    loadBalancer: {simple: ROUND_ROBIN}
    outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 30s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec: {hosts: [api], http: [{name: all, route: [{destination: {host: api}}], retries: {attempts: 2, retryOn: 5xx}}]}
`

func fails(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func fine(http.ResponseWriter, *http.Request) {}

// TestPage_Ejection: an endpoint that fails until it is ejected shows with its reason, and the calls that met it with all their attempts.
func TestPage_Ejection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, fine), f.Add(t, fails(503)))
		page, m := attach(t, f, admin.Config{}, ejects)
		for range 8 {
			call(m.Client(), "GET", "http://api/orders/17?token=secret")
		}
		r := reportOf(t, page)
		if len(r.Problems) != 1 || r.Problems[0].Title != "1 of 2 endpoints get no calls" || r.Problems[0].Severity != "warning" ||
			!strings.HasPrefix(r.Problems[0].Why[0], "10.0.0.2:80 is out: consecutive_5xx, for ") {
			t.Errorf("problems %+v, want the endpoint that is out", r.Problems)
		}
		if len(r.Destinations) != 1 {
			t.Fatalf("%d destinations, want 1", len(r.Destinations))
		}
		d := r.Destinations[0]
		if d.Calls != 8 || d.Errors != 0 || d.Retries != 3 {
			t.Errorf("%d calls, %d errors, %d retries; want 8, 0 and 3", d.Calls, d.Errors, d.Retries)
		}
		if len(d.Endpoints) != 2 || d.Endpoints[1].Reason != "consecutive_5xx" || d.Endpoints[1].Until.IsZero() ||
			d.Endpoints[1].Calls != 3 || d.Endpoints[1].Errors != 3 || d.Endpoints[0].Calls != 8 || d.Endpoints[0].Errors != 0 {
			t.Errorf("endpoints %+v, want the second one ejected after 3 errors", d.Endpoints)
		}
		if len(r.Events) != 1 || r.Events[0].Kind != "ejection" || r.Events[0].Endpoint != "10.0.0.2:80" {
			t.Errorf("events %+v, want the ejection", r.Events)
		}
		if len(r.Calls) != 0 {
			t.Errorf("calls %+v: none failed or was slow", r.Calls)
		}
		time.Sleep(2 * time.Minute) // of the bubble
		call(m.Client(), "GET", "http://api/")
		if r = reportOf(t, page); len(r.Problems) != 0 || r.Destinations[0].Calls != 1 {
			t.Errorf("two minutes later: problems %+v, %d calls; want none and 1", r.Problems, r.Destinations[0].Calls)
		}
	})
}

// TestPage_EjectionWithheld: a problem says why its endpoint is not ejected, while the endpoint fails.
func TestPage_EjectionWithheld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		var recovered atomic.Bool
		bad := func(w http.ResponseWriter, _ *http.Request) {
			if !recovered.Load() {
				w.WriteHeader(503)
			}
		}
		f.Registry.Set("api", f.Add(t, fine), f.Add(t, bad), f.Add(t, bad))
		page, m := attach(t, f, admin.Config{}, strings.NewReplacer("attempts: 2, retryOn: 5xx", "attempts: 0", "100}", "34}", "baseEjectionTime: 30s", "baseEjectionTime: 1h").Replace(ejects))
		for range 20 {
			call(m.Client(), "GET", "http://api/")
		}
		const text = "stays although it fails: consecutive_5xx, 3 of 3 calls failed; maxEjectionPercent is 34, an ejection needs 67"
		r := reportOf(t, page)
		if len(r.Events) != 2 || r.Events[0].Kind != "ejection withheld" || r.Events[0].Text != text || r.Events[1].Kind != "ejection" {
			t.Errorf("events %+v, want an ejection, and one that is withheld", r.Events)
		}
		if why := r.Events[0].Endpoint + " " + text; len(r.Problems) != 1 || !slices.Contains(r.Problems[0].Why, why) {
			t.Errorf("problems %+v, want %q", r.Problems, why)
		}
		stays := func(format, text string) {
			t.Helper()
			if got := ask(t, page, "", "Accept", format).Body.String(); !strings.Contains(got, text) {
				t.Errorf("%s does not say %q:\n%s", format, text, got)
			}
		}
		stays("text/html", `▲ fails, and stays</span> <span class="muted">consecutive_5xx; maxEjectionPercent is 34, an ejection needs 67`)
		stays("text/plain", "fails, and stays: consecutive_5xx")
		stays("application/json", `"maxEjectionPercent": 34,`)
		recovered.Store(true)
		time.Sleep(2 * time.Minute) // of the bubble
		call(m.Client(), "GET", "http://api/")
		if r = reportOf(t, page); len(r.Problems) != 1 || strings.Contains(fmt.Sprint(r.Problems[0].Why), "stays") {
			t.Errorf("problems %+v two minutes later, want only the endpoint that is out", r.Problems)
		}
	})
}

// TestPage_FailedCall: a call that failed shows with its attempts, its route and its error, without its query.
func TestPage_FailedCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, fails(500)), f.Add(t, fails(502)))
		page, m := attach(t, f, admin.Config{}, strings.Replace(ejects, "outlierDetection: {consecutive5xxErrors: 3,", "outlierDetection: {consecutive5xxErrors: 100,", 1))
		call(m.Client(), "POST", "http://user:password@api/orders/<17>?token=secret")
		call(m.Client(), "GET", "http://api/orders/17?token=secret")
		r := reportOf(t, page)
		if len(r.Calls) != 2 {
			t.Fatalf("calls %+v, want 2", r.Calls)
		}
		c := r.Calls[0]
		if c.Direction != "out" || c.Path != "/orders/17" || c.Method != "GET" || !c.Failed || c.Document != "VirtualService default/api" || c.AttemptCount != 3 || len(c.Attempts) != 3 {
			t.Fatalf("call %+v, want a GET with 3 attempts", c)
		}
		for i, a := range c.Attempts {
			if a.Number != i+1 || a.Status/100 != 5 || !strings.HasPrefix(a.Endpoint, "10.0.0.") {
				t.Errorf("attempt %+v, want number %d and its endpoint", a, i+1)
			}
		}
		for _, format := range []string{"html", "json", "text"} {
			if text := ask(t, page, "?format="+format).Body.String(); strings.Contains(text, "secret") || strings.Contains(text, "password") || strings.Contains(text, "<17>") {
				t.Errorf("%s shows a query, credentials, or what is not escaped", format)
			}
		}
	})
}

// TestPage_Circuit: an open circuit is what hurts most.
func TestPage_Circuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, fails(500)))
		page, m := attach(t, f, admin.Config{}, "", mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 4}}))
		for range 10 {
			call(m.Client(), "GET", "http://api/")
		}
		r := reportOf(t, page)
		if len(r.Problems) != 1 || r.Problems[0].Severity != "critical" || r.Problems[0].Title != "The circuit is open: 100 % of the last minute's calls failed" ||
			!strings.Contains(strings.Join(r.Problems[0].Why, "; "), "4 of 4 calls failed") ||
			!strings.Contains(strings.Join(r.Problems[0].Why, "; "), "6× refused: the circuit is open") {
			t.Errorf("problems %+v, want the open circuit and why", r.Problems)
		}
		if d := r.Destinations[0]; d.Circuit.State != "open" || d.Errors != 10 || len(d.Causes) != 2 || d.Causes[0].Count != 6 || d.Causes[1].Text != "answered 500 Internal Server Error" {
			t.Errorf("destination %+v, want an open circuit and two causes", d)
		}
		if len(r.Calls) != 5 { // 4 that were sent, and one of those that were refused
			t.Errorf("%d calls are kept, want 5", len(r.Calls))
		}
	})
}

// TestPage_Slow: a slow destination shows, and which endpoint is.
func TestPage_Slow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		slow := f.Add(t, func(http.ResponseWriter, *http.Request) { time.Sleep(3 * time.Second) })
		quick := f.Add(t, func(http.ResponseWriter, *http.Request) { time.Sleep(40 * time.Millisecond) })
		f.Registry.Set("api", slow, quick)
		page, m := attach(t, f, admin.Config{Slow: 2 * time.Second}, ejects)
		var all sync.WaitGroup
		for range 30 {
			all.Go(func() { call(m.Client(), "GET", "http://api/") })
		}
		all.Wait()
		r := reportOf(t, page)
		if len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0].Title, "Slow: 1 of 100 calls takes 3.0 s") ||
			!strings.Contains(strings.Join(r.Problems[0].Why, ";"), "10.0.0.1:80 is the slow one") {
			t.Errorf("problems %+v, want the slow endpoint", r.Problems)
		}
		if len(r.Calls) != 5 || r.Calls[0].Failed || r.Calls[0].DurationMs < 3000 || r.Calls[0].Attempts[0].Endpoint != "10.0.0.1:80" {
			t.Errorf("calls %+v, want 5 slow ones", r.Calls)
		}
		for _, e := range r.Destinations[0].Endpoints {
			if want := map[string]float64{"10.0.0.1:80": 3000, "10.0.0.2:80": 40}[e.Address]; e.P50Ms < want*0.7 || e.P50Ms > want*1.3 {
				t.Errorf("half of the calls of %s take %v ms, want about %v", e.Address, e.P50Ms, want)
			}
		}
	})
}

// TestPage_Connections: raw connections show with their bytes, at both ends.
func TestPage_Connections(t *testing.T) {
	server := admin.New(admin.Config{})
	defer server.Close()
	m := meshtest.New(t, "", mesh.WithObserver(server.Observer()))
	ln := rawtest.Listen(t)
	wrapped := m.ListenTCP(ln)
	defer wrapped.Close()
	go func() {
		for {
			conn, err := wrapped.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				conn.Close()
			}()
		}
	}()
	registry := new(discovery.Memory)
	registry.Set("ledger", meshtest.EndpointOf(t, ln.Addr().String()))
	client := admin.New(admin.Config{})
	defer client.Close()
	m = meshtest.New(t, "", mesh.WithDiscovery(registry), mesh.WithObserver(client.Observer()))
	var conns []net.Conn
	for range 2 {
		conn, err := m.DialContext(t.Context(), "tcp", "ledger:5432")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "hello")
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
	}
	conns[0].Close()
	if _, err := m.DialContext(t.Context(), "tcp", "nobody:5432"); err == nil {
		t.Error("a service without endpoints is connected to")
	}
	r := reportOf(t, client)
	if len(r.Destinations) != 2 {
		t.Fatalf("destinations %+v, want 2", r.Destinations)
	}
	for _, d := range r.Destinations {
		want := connFigures{Open: 1, Opened: 2, BytesSent: 10, BytesReceived: 10}
		if strings.HasPrefix(d.Host, "nobody") {
			want = connFigures{Opened: 1, Failed: 1}
		}
		if d.Connections != want {
			t.Errorf("%s: %+v, want %+v", d.Host, d.Connections, want)
		}
	}
	conns[1].Close()
	await.True(t, "both connections have ended at the server", func() bool { return reportOf(t, server).In.Connections.Open == 0 })
	if got, want := reportOf(t, server).In.Connections, (connFigures{Opened: 2, BytesSent: 10, BytesReceived: 10}); got != want {
		t.Errorf("the server has %+v, want %+v", got, want)
	}
}

// TestPage_Failures: what counts as a failure, and what it is called.
func TestPage_Failures(t *testing.T) {
	page, o := fed(t)
	gone, leave := context.WithCancel(t.Context())
	leave()
	request := httptest.NewRequest("GET", "http://api/", nil)
	for _, tt := range []struct {
		name string
		call mesh.Call
		want string // "" for none
	}{
		{"answered", mesh.Call{Status: 200, GRPCStatus: -1}, ""},
		{"not found", mesh.Call{Status: 404, GRPCStatus: -1}, ""},
		{"unavailable", mesh.Call{Status: 503, GRPCStatus: -1}, "answered 503 Service Unavailable"},
		{"gRPC answered", mesh.Call{Status: 200, GRPCStatus: 0}, ""},
		{"gRPC not found", mesh.Call{Status: 200, GRPCStatus: 5}, ""},
		{"gRPC unavailable", mesh.Call{Status: 200, GRPCStatus: 14}, "gRPC status UNAVAILABLE"},
		{"no answer", mesh.Call{GRPCStatus: -1, Err: errors.New("EOF")}, "no answer"},
		{"no route", mesh.Call{Status: 404, GRPCStatus: -1, Flags: mesh.FlagNoRoute}, "no route matches"},
		{"pool", mesh.Call{Status: 503, GRPCStatus: -1, Flags: mesh.FlagOverflow}, "refused: the connection pool is full"},
		{"circuit", mesh.Call{GRPCStatus: -1, Flags: mesh.FlagOverflow, Err: &mesh.Error{Layer: "breaker", Err: breaker.ErrOpen}}, "refused: the circuit is open"},
		{"rate", mesh.Call{Status: 429, GRPCStatus: -1, Flags: mesh.FlagRateLimited}, "refused by the local rate limit"},
		{"delayed", mesh.Call{Status: 200, GRPCStatus: -1, Flags: mesh.FlagDelayInjected}, ""},
		{"aborted", mesh.Call{Status: 418, GRPCStatus: -1, Flags: mesh.FlagFaultInjected}, "a document injects the fault"},
		{"given up", mesh.Call{GRPCStatus: -1, Err: context.Canceled, Flags: mesh.FlagCallerGone}, ""},
		{"given up without a flag", mesh.Call{GRPCStatus: -1, Err: context.Canceled, Request: request.WithContext(gone)}, ""},
		{"a copy", mesh.Call{Status: 503, GRPCStatus: -1, Mirror: true}, "nothing at all"},
	} {
		c := tt.call
		c.Target.Host, c.Start = strings.ReplaceAll(tt.name, " ", "-"), time.Now()
		if c.Request == nil {
			c.Request = request
		}
		o.CallEnd(t.Context(), &c)
		got := "nothing at all"
		for _, d := range reportOf(t, page).Destinations {
			if d.Host != c.Target.Host {
				continue
			}
			got = ""
			if len(d.Causes) > 0 {
				got = d.Causes[0].Text
			}
			if d.Calls != 1 || d.Errors != len(d.Causes) {
				t.Errorf("%s: %d calls, %d errors, %d causes", tt.name, d.Calls, d.Errors, len(d.Causes))
			}
		}
		if got != tt.want {
			t.Errorf("%s: the cause is %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestPage_ErrorTexts: errors are shown without what is secret in the URLs that they name, and cannot write lines or control terminals.
func TestPage_ErrorTexts(t *testing.T) {
	page, o := fed(t)
	for _, text := range []string{
		`Get "http://user:secret@api/orders?token=secret": EOF`, "dial http://user:secret@api failed", "parse /orders?token=secret",
		"broken\x1b[31m\nCRITICAL  forged: line\r\n", strings.Repeat("long ", 10_000), "<script>alert(1)</script>",
	} {
		c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), GRPCStatus: -1, Err: errors.New(text), Attempts: 1}
		c.Target.Host = fmt.Sprintf("api-%d", len(text))
		c.Last = &mesh.Attempt{Call: c, Number: 1, Endpoint: "10.0.0.1:80", Start: c.Start, GRPCStatus: -1, Err: c.Err}
		o.AttemptEnd(t.Context(), c.Last)
		o.CallEnd(t.Context(), c)
	}
	for _, format := range []string{"html", "json", "text"} {
		body := ask(t, page, "?format="+format).Body.String()
		for _, bad := range []string{"secret", "\x1b", "\nCRITICAL  forged", "\r", strings.Repeat("long ", 200)} {
			if strings.Contains(body, bad) {
				t.Errorf("%s has %.20q", format, bad)
			}
		}
		if format != "text" && strings.Contains(body, "<script>alert") {
			t.Errorf("%s has what an error says, as it is", format)
		}
		if !strings.Contains(body, "http://api/orders?…") {
			t.Errorf("%s does not tell the URL", format)
		}
	}
}

// Whatever an error says, no part of a password or a query in it is shown.
func TestPage_SecretsInErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{`Get "http://api/orders?token=secret": EOF`, `Get "http://api/orders?… EOF`},
		{`Get "http://api/orders?secret": EOF`, `Get "http://api/orders?… EOF`},
		{`Get "http://api/orders#access_token=secret": EOF`, `Get "http://api/orders#… EOF`},
		{`parse "http://user:sec/ret@api/orders": invalid port ":sec" after host`, `parse "http://api/orders": invalid port`},
		{`parse "http://user:sec?ret@api/orders": no`, `parse "http://api/orders": no`},
		{`parse "http://user:sec#ret@api:80/orders": no`, `parse "http://api:80/orders": no`},
		{`parse "http://user:p@secret@api/": no`, `parse "http://api/": no`},
		{"dial amqp://user:secret@a,amqp://user:secret@b:80/v: refused", "dial amqp://a,amqp://b:80/v: refused"},
		{"dial http://a/?to=http://user:secret@b failed", "dial http://a/?…"},
		{"dial http://a:80/@scope/pkg failed", "dial http://a:80/@scope/pkg failed"},
		{"dial http://[::1]:80/@scope failed", "dial http://[::1]:80/@scope failed"},
		{"dial http://[::1]/@scope failed", "dial http://[::1]/@scope failed"},
		{"is it so? user@host://", "is it so? user@host://"},
		{"turned \u202etnemuced", "turned  tnemuced"},
	} {
		page, o := fed(t)
		call := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), GRPCStatus: -1, Err: errors.New(c.text)}
		o.CallEnd(t.Context(), call)
		calls := reportOf(t, page).Calls
		if len(calls) != 1 {
			t.Fatalf("%d calls", len(calls))
		}
		got := calls[0].Error
		if !strings.HasPrefix(got, c.want) || strings.Contains(got, "secret") || strings.Contains(got, "ret@") {
			t.Errorf("%s is shown as %s, want %s", c.text, got, c.want)
		}
	}
}

// TestPage_FailedCopies: copies whose attempts fail take no room from the attempts of calls.
func TestPage_FailedCopies(t *testing.T) {
	page, o := fed(t)
	request := httptest.NewRequest("GET", "http://api/", nil)
	fail := func(c *mesh.Call, attempts int) {
		for n := range attempts {
			c.Last = &mesh.Attempt{Call: c, Number: n + 1, Endpoint: "10.0.0.1:80", Start: c.Start, Status: 500, GRPCStatus: -1}
			o.AttemptEnd(t.Context(), c.Last)
		}
		c.Status, c.Attempts = 500, attempts
		o.CallEnd(t.Context(), c)
	}
	start := time.Now()
	for i := range 10_000 {
		fail(&mesh.Call{Request: request, Start: start.Add(time.Duration(i)), GRPCStatus: -1, Mirror: true}, 1)
	}
	fail(&mesh.Call{Request: request, Start: start, GRPCStatus: -1}, 3)
	if r := reportOf(t, page); len(r.Calls) != 1 || len(r.Calls[0].Attempts) != 3 {
		t.Errorf("calls %+v, want one with 3 attempts", r.Calls)
	}
}

// TestPage_FewCalls: a destination that is hardly called hurts if most calls fail, and one of many calls that fails does not.
func TestPage_FewCalls(t *testing.T) {
	for _, tt := range []struct {
		calls, errors int
		want          string
	}{
		{1, 1, "warning"}, {3, 1, ""}, {3, 2, "warning"}, {3, 3, "critical"}, {100, 2, ""}, {100, 3, "warning"}, {1000, 9, ""}, {100, 20, "critical"},
	} {
		page, o := fed(t)
		request := httptest.NewRequest("GET", "http://api/", nil)
		for i := range tt.calls {
			c := &mesh.Call{Request: request, Start: time.Now(), Status: 200, GRPCStatus: -1}
			if c.Target.Host = "api"; i < tt.errors {
				c.Status = 500
			}
			o.CallEnd(t.Context(), c)
		}
		got := ""
		if p := reportOf(t, page).Problems; len(p) == 1 {
			got = p[0].Severity
		}
		if got != tt.want {
			t.Errorf("%d of %d calls fail: %q, want %q", tt.errors, tt.calls, got, tt.want)
		}
	}
}

// TestPage_Identity: a process without the identity that it was promised, and one whose certificate is not replaced in time, say so.
func TestPage_Identity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, err := tlsid.NewDevCA("cluster.local")
		if err != nil {
			t.Fatal(err)
		}
		ca.TTL, ca.RotateEvery = time.Hour, -1
		f := new(meshtest.Fleet)
		page, _ := attach(t, f, admin.Config{}, "", mesh.WithIdentity(ca.Source("shop", "orders")))
		titles := func() (list []string) {
			for _, p := range reportOf(t, page).Problems {
				list = append(list, p.Severity+": "+p.Title)
			}
			return list
		}
		if list := titles(); len(list) != 0 {
			t.Errorf("problems %q with a new certificate, want none", list)
		}
		time.Sleep(50 * time.Minute) // of the bubble
		if list := titles(); len(list) != 1 || list[0] != "warning: The certificate expires in 9 min" && list[0] != "warning: The certificate expires in 10 min" {
			t.Errorf("problems %q with an old certificate, want that it expires", list)
		}
		time.Sleep(20 * time.Minute)
		if list := titles(); len(list) != 1 || list[0] != "critical: This process is not ready" {
			t.Errorf("problems %q with a certificate that has expired, want that the process is not ready", list)
		}
	})
}

// TestPage_Outside: a host outside the mesh shows as one.
func TestPage_Outside(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Network.Serve(t, "api.example.com:80", http.HandlerFunc(fine))
		page, m := attach(t, f, admin.Config{}, "")
		call(m.Client(), "GET", "http://api.example.com/")
		r := reportOf(t, page)
		if len(r.Destinations) != 1 || !r.Destinations[0].Outside || r.Destinations[0].Host != "api.example.com" || r.Destinations[0].Calls != 1 || len(r.Problems) != 0 {
			t.Errorf("destinations %+v, problems %+v; want one outside that is fine", r.Destinations, r.Problems)
		}
		if html := ask(t, page, "?format=html").Body.String(); !strings.Contains(html, "outside the mesh") {
			t.Error("the page does not say that the host is outside the mesh")
		}
	})
}

// TestPage_RefusedAlone: documents that stand alone and are refused show with what is in force in their place. A denial hurts most.
func TestPage_RefusedAlone(t *testing.T) {
	f := new(meshtest.Fleet)
	page, m := attach(t, f, admin.Config{}, ejects)
	if err := m.Apply(policy.Source{Name: "teams.json", Alone: true, Data: []byte(`
{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: x}, spec: {hosts: [a], htp: []}}
---
{apiVersion: security.istio.io/v1, kind: AuthorizationPolicy, metadata: {name: y, namespace: default}, spec: {ruls: []}}
`)}); err != nil {
		t.Fatal(err)
	}
	r := reportOf(t, page)
	if len(r.Documents.Alone) != 2 || r.Documents.Alone[0].Document != "AuthorizationPolicy default/y" || r.Documents.Alone[0].InForce != "denial" ||
		r.Documents.Alone[1].InForce != "nothing" || r.Documents.Alone[1].Since.IsZero() || !strings.Contains(r.Documents.Alone[1].Error, "spec.htp") {
		t.Errorf("documents %+v, want both that are refused", r.Documents)
	}
	if len(r.Problems) != 2 || r.Problems[0].Severity != "critical" || !strings.Contains(r.Problems[0].Title, "AuthorizationPolicy default/y is refused") ||
		r.Problems[1].Severity != "warning" || !strings.Contains(strings.Join(r.Problems[1].Why, "\n"), "it is left out, since") {
		t.Errorf("problems %+v, want the denial and the document that is left out", r.Problems)
	}
}

// TestPage_LoadsOfManyDocuments: a mistake shows however many documents before it are skipped.
func TestPage_LoadsOfManyDocuments(t *testing.T) {
	page, m := attach(t, new(meshtest.Fleet), admin.Config{}, ejects)
	const deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a%d}\n---\n"
	var text strings.Builder
	for i := range 30 {
		fmt.Fprintf(&text, deployment, i)
	}
	text.WriteString(strings.Replace(ejects, "attempts: 2", "attempts: two", 1))
	if m.Apply(policy.Source{Name: "mesh.d/all.yaml", Data: []byte(text.String())}) == nil {
		t.Fatal("a mistake is in force")
	}
	found := reportOf(t, page).Loads[0].Findings
	if len(found) != 2 || found[0].Severity != policy.Error || !strings.Contains(found[1].Message, "and so are 29 others") {
		t.Errorf("findings %v, want the mistake, and one line for the Deployments", found)
	}
}

// TestPage_Loads: loads of documents show with their findings, and a refused one hurts until a good one comes.
func TestPage_Loads(t *testing.T) {
	f := new(meshtest.Fleet)
	page, m := attach(t, f, admin.Config{}, ejects)
	bad := policy.Source{Name: "mesh.d/api.yaml", Data: []byte(strings.Replace(ejects, "attempts: 2", "attempts: two", 1))}
	if m.Apply(bad) == nil {
		t.Fatal("a mistake is in force")
	}
	r := reportOf(t, page)
	if len(r.Loads) != 2 || r.Loads[0].InForce || !r.Loads[1].InForce || r.Loads[0].Number != 2 || len(r.Loads[0].Findings) != 1 ||
		r.Loads[0].Findings[0].File != "mesh.d/api.yaml" || r.Loads[0].Findings[0].Line != 14 {
		t.Errorf("loads %+v, want the refused one with its finding, and the first", r.Loads)
	}
	if len(r.Problems) != 1 || !strings.HasPrefix(r.Problems[0].Title, "Documents are refused: load 2") || !strings.Contains(strings.Join(r.Problems[0].Why, "\n"), "mesh.d/api.yaml:14") {
		t.Errorf("problems %+v, want the refused documents", r.Problems)
	}
	if len(r.Routes) != 1 || r.Routes[0].File != "test.yaml" || r.Routes[0].Line != 14 || r.Routes[0].Document != "VirtualService default/api" {
		t.Errorf("routes %+v, want that of api with its place", r.Routes)
	}
	if err := m.Apply(policy.Source{Name: "good.yaml", Data: []byte(ejects)}); err != nil {
		t.Fatal(err)
	}
	if r = reportOf(t, page); len(r.Problems) != 0 || len(r.Loads) != 3 || !r.Loads[0].InForce || r.Routes[0].File != "good.yaml" {
		t.Errorf("after a good load: problems %+v, loads %+v", r.Problems, r.Loads)
	}
}

// TestPage_Inbound: callers show by their identity, with what was denied to them and why.
func TestPage_Inbound(t *testing.T) {
	s := newScene(t)
	for range 3 {
		call(s.peers[0], "GET", "http://orders/orders/1")
		call(s.peers[1], "GET", "http://orders/admin/users?token=secret")
		call(s.peers[2], "GET", "http://orders/fail")
	}
	r := reportOf(t, s.page)
	got := map[string]string{}
	for _, c := range r.Callers {
		got[c.ID] = fmt.Sprint(c.Calls, c.Errors, c.Denied)
	}
	if want := map[string]string{"spiffe://cluster.local/ns/shop/sa/web": "3 0 0", "spiffe://cluster.local/ns/shop/sa/batch": "3 0 3", "": "3 3 0"}; !reflect.DeepEqual(got, want) {
		t.Errorf("callers %v, want %v", got, want)
	}
	denied := 0
	for _, c := range r.Calls {
		if c.Direction == "in" && c.Status == http.StatusForbidden && strings.Contains(c.Decision, "shop/orders") && c.Path == "/admin/users" && strings.HasSuffix(c.Caller, "/batch") {
			denied++
		}
	}
	if denied != 3 {
		t.Errorf("%d of the calls are denied ones with the policy, want 3: %+v", denied, r.Calls)
	}
	if text := ask(t, s.page, "").Body.String(); !strings.Contains(text, "CRITICAL  33 % of the requests to this process fail") || strings.Contains(text, "secret") {
		t.Errorf("the text does not say that requests fail:\n%s", text)
	}
}

// TestPage_Formats: browsers get HTML, programs what they ask for, and terminals text.
func TestPage_Formats(t *testing.T) {
	f := new(meshtest.Fleet)
	page, _ := attach(t, f, admin.Config{Name: "<orders>"}, "")
	for _, tt := range []struct{ name, query, accept, want, contains string }{
		{"browser", "", "text/html,application/xhtml+xml,*/*;q=0.8", "text/html; charset=utf-8", "<h1>&lt;orders&gt;</h1>"},
		{"curl", "", "*/*", "text/plain; charset=utf-8", "# What hurts\nnothing\n"},
		{"nothing accepted", "", "", "text/plain; charset=utf-8", "<orders>"},
		{"text accepted", "", "text/plain", "text/plain; charset=utf-8", "<orders>"},
		{"JSON accepted", "", "application/json", "application/json", `"version": 1`},
		{"JSON asked for", "?format=json", "text/html", "application/json", `"version": 1`},
		{"text asked for", "?format=text", "text/html", "text/plain; charset=utf-8", "# Routes"},
		{"HTML asked for", "?format=html", "*/*", "text/html; charset=utf-8", "Nothing hurts"},
		{"style", "?asset=page.css", "", "text/css; charset=utf-8", "prefers-color-scheme"},
		{"script", "?asset=page.js", "", "text/javascript; charset=utf-8", "EventSource"},
	} {
		w := ask(t, page, tt.query, "Accept", tt.accept)
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != tt.want || !strings.Contains(w.Body.String(), tt.contains) {
			t.Errorf("%s: %d %q without %q:\n%.300s", tt.name, w.Code, w.Header().Get("Content-Type"), tt.contains, w.Body)
		}
	}
	for _, query := range []string{"?format=xml", "?asset=../admin.go"} {
		if w := ask(t, page, query); w.Code < 400 {
			t.Errorf("%s is answered with %d", query, w.Code)
		}
	}
}

// TestPage_Guarded: the page is read-only, and no other site can read it.
func TestPage_Guarded(t *testing.T) {
	f := new(meshtest.Fleet)
	page, _ := attach(t, f, admin.Config{Hosts: []string{"Admin.Example.com"}}, "")
	for _, tt := range []struct {
		name   string
		want   int
		header []string
	}{
		{"by address", 200, nil},
		{"by IPv6 address", 200, []string{"Host", "[::1]:9090"}},
		{"localhost", 200, []string{"Host", "localhost:9090"}},
		{"a known name", 200, []string{"Host", "admin.example.com."}},
		{"a name that leads here", 403, []string{"Host", "evil.example:9090"}},
		{"no host", 403, []string{"Host", ""}},
		{"a link", 200, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate"}},
		{"a script of another site", 403, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors"}},
		{"an image of another site", 403, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors"}},
		{"a script of another port", 403, []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors"}},
		{"a link of another port", 200, []string{"Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "navigate"}},
		{"its own script", 200, []string{"Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "cors"}},
	} {
		w := ask(t, page, "", tt.header...)
		if w.Code != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, w.Code, tt.want)
		}
		h := w.Header()
		if !strings.Contains(h.Get("Content-Security-Policy"), "default-src 'none'") || strings.Contains(h.Get("Content-Security-Policy"), "unsafe") ||
			!strings.Contains(h.Get("Content-Security-Policy"), "frame-ancestors 'none'") || h.Get("X-Content-Type-Options") != "nosniff" ||
			h.Get("Access-Control-Allow-Origin") != "" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: header %v", tt.name, h)
		}
	}
	server := httptest.NewServer(page)
	defer server.Close()
	defer server.Client().CloseIdleConnections()
	for _, query := range []string{"/", "/?format=json", "/?asset=page.css", "/?events"} {
		resp, err := server.Client().Head(server.URL + query)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || len(body) > 0 {
			t.Errorf("HEAD %s: %d with %d bytes: %v", query, resp.StatusCode, len(body), err)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		w := httptest.NewRecorder()
		if page.ServeHTTP(w, httptest.NewRequest(method, "http://127.0.0.1/", nil)); w.Code != http.StatusMethodNotAllowed {
			t.Errorf("%s: %d", method, w.Code)
		}
	}
	html := ask(t, page, "", "Accept", "text/html").Body.String()
	for _, inline := range []string{"<style", " style=", "javascript:", "onclick", "http://", "https://", "//cdn"} {
		if strings.Contains(html, inline) {
			t.Errorf("the page has %q", inline)
		}
	}
}

// TestPage_NoMesh: a page without a mesh says what is missing.
func TestPage_NoMesh(t *testing.T) {
	page := admin.New(admin.Config{})
	defer page.Close()
	for _, query := range []string{"", "?format=json", "?events"} {
		if w := ask(t, page, query); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "Page.Observer") {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
}

// TestPage_JSONShape: the names and kinds of the JSON's fields are a promise. -update writes the golden file.
func TestPage_JSONShape(t *testing.T) {
	s := newScene(t)
	s.payments[0].Store(503)
	s.mail.Store(500)
	call(s.client, "GET", "http://ledger/")
	for range s.payments { // one fails; a busy machine makes others slow, which are kept, too, with the name of their route
		call(s.client, "POST", "http://payments/v1/refunds/1")
	}
	for range 12 {
		call(s.client, "POST", "http://payments/v1/charges/1")
		call(s.client, "POST", "http://mail/send")
		call(s.peers[0], "GET", "http://orders/orders/1")
		call(s.peers[1], "GET", "http://orders/admin/1")
	}
	if s.mesh.Apply(broken()...) == nil {
		t.Fatal("documents with a mistake are in force")
	}
	page := ask(t, s.page, "?format=json").Body.Bytes()
	for end := time.Now().Add(time.Minute); !bytes.Contains(page, []byte("notKeptBefore")); { // known once the next second began
		if time.Now().After(end) {
			t.Fatal("no call tells of those that were not kept")
		}
		call(s.client, "POST", "http://mail/send")
		page = ask(t, s.page, "?format=json").Body.Bytes()
	}
	var any map[string]any
	if err := json.Unmarshal(page, &any); err != nil {
		t.Fatal(err)
	}
	shapes := map[string]bool{}
	shape("", any, shapes)
	var lines []string
	for line := range shapes {
		lines = append(lines, line)
	}
	slices.Sort(lines)
	golden := filepath.Join("testdata", "shape.golden")
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the shape of the JSON has changed; if that is meant: go test ./admin -update, and another version unless fields were only added\ngot\n%s", got)
	}
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	for line := range shapes { // everything is documented
		path, _, _ := strings.Cut(line, " ")
		name := path[strings.LastIndex(path, ".")+1:]
		if name = strings.TrimSuffix(name, "[]"); name != "" && !strings.Contains(string(doc), name) {
			t.Errorf("doc.go does not tell of %s", path)
		}
	}
}

func shape(path string, value any, shapes map[string]bool) {
	switch v := value.(type) {
	case map[string]any:
		for name, inner := range v {
			shape(path+"."+name, inner, shapes)
		}
	case []any:
		shapes[path+"[]"] = true
		for _, inner := range v {
			shape(path+"[]", inner, shapes)
		}
	default:
		shapes[fmt.Sprintf("%s %T", path, value)] = true
	}
}

// events opens the stream of a page, and returns its events one by one.
func events(t testing.TB, client *http.Client, url string) (next func() (string, bool), stop func()) {
	t.Helper()
	resp, err := client.Get(url + "?events")
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%d %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	return func() (string, bool) {
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				return data, true
			}
		}
		return "", false
	}, func() { resp.Body.Close() }
}

// TestWatch_SoonAfterEvents: an ejection, a circuit that opens, a reload and a refused one are in the stream within two seconds.
func TestWatch_SoonAfterEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Registry.Set("api", f.Add(t, fails(500)), f.Add(t, fine))
		page, m := attach(t, f, admin.Config{}, strings.Replace(ejects, "attempts: 2, retryOn: 5xx", "attempts: 0", 1),
			mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: -1, FailureFraction: 0.4, MinRequests: 8}}))
		f.Network.Serve(t, "10.1.1.1:80", page)
		transport := &http.Transport{DialContext: f.Network.DialContext}
		defer transport.CloseIdleConnections()
		next, stop := events(t, &http.Client{Transport: transport}, "http://10.1.1.1/")
		defer stop()
		until := func(text string) {
			t.Helper()
			began := time.Now()
			for {
				data, ok := next()
				if !ok {
					t.Fatalf("the stream ends before %q", text)
				}
				if strings.Contains(data, text) {
					break
				}
				if time.Since(began) > time.Minute {
					t.Fatalf("%q is not in the stream", text)
				}
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%q is in the stream after %v, want 2 s at most", text, took)
			}
		}
		until("Nothing was called yet")
		for range 8 {
			call(m.Client(), "GET", "http://api/")
		}
		until("is out: consecutive_5xx")
		for range 3 {
			call(m.Client(), "GET", "http://api/")
		}
		if err := m.Apply(policy.Source{Name: "second.yaml", Data: []byte(ejects)}); err != nil {
			t.Fatal(err)
		}
		until("load 2")
		if m.Apply(policy.Source{Name: "third.yaml", Data: []byte("kind: VirtualService")}) == nil {
			t.Fatal("a mistake is in force")
		}
		until("Documents are refused: load 3")
	})
}

// TestWatch_Ends: the streams of pages end when the page is closed, and one ends when its client leaves. There is a bound on them.
func TestWatch_Ends(t *testing.T) {
	f := new(meshtest.Fleet)
	page, _ := attach(t, f, admin.Config{}, "")
	server := httptest.NewServer(page)
	defer server.Close()
	defer server.Client().CloseIdleConnections()
	var nexts []func() (string, bool)
	var stops []func()
	for range 16 {
		next, stop := events(t, server.Client(), server.URL)
		nexts, stops = append(nexts, next), append(stops, stop)
	}
	for _, next := range nexts {
		if _, ok := next(); !ok {
			t.Fatal("a stream ended at once")
		}
	}
	refused := func() int {
		resp, err := server.Client().Get(server.URL + "?events")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	if code := refused(); code != http.StatusServiceUnavailable {
		t.Errorf("the 17th stream is answered with %d, want 503", code)
	}
	stops[0]()
	await.True(t, "the place of a client that left is free", func() bool { return refused() == http.StatusOK })
	page.Close()
	for i := range nexts[1:] {
		for {
			if _, ok := nexts[i+1](); !ok {
				break
			}
		}
		stops[i+1]()
	}
	page.Close()
	if code := refused(); code != http.StatusServiceUnavailable {
		t.Errorf("after Close a stream is answered with %d, want 503", code)
	}
	if w := ask(t, page, ""); w.Code != http.StatusOK {
		t.Errorf("after Close the page is answered with %d, want 200", w.Code)
	}
}

// opaque is the writer of a middleware that hides what it wraps, and with it the write deadlines.
type opaque struct{ w http.ResponseWriter }

func (o opaque) Header() http.Header         { return o.w.Header() }
func (o opaque) Write(b []byte) (int, error) { return o.w.Write(b) }
func (o opaque) WriteHeader(status int)      { o.w.WriteHeader(status) }
func (o opaque) Flush()                      { o.w.(http.Flusher).Flush() }

// TestWatch_ClientThatTakesNothing: Close does not wait for it. A middleware may hide the write deadlines: then the client cannot be cut off, but
// Close returns.
func TestWatch_ClientThatTakesNothing(t *testing.T) {
	for behind, most := range map[string]time.Duration{"the server": 0, "a middleware": 10 * time.Second} {
		t.Run(behind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := new(meshtest.Fleet)
				page, _ := attach(t, f, admin.Config{}, "")
				f.Network.Serve(t, "10.1.1.1:80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if most > 0 {
						w = opaque{w}
					}
					page.ServeHTTP(w, r)
				}))
				conn, err := f.Network.DialContext(t.Context(), "tcp", "10.1.1.1:80")
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				fmt.Fprint(conn, "GET /?events HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n")
				synctest.Wait()
				began := time.Now()
				page.Close()
				if took := time.Since(began); took > most {
					t.Errorf("Close takes %v, want %v at most", took, most)
				}
			})
		})
	}
}

// TestPage_Bounded: many destinations, endpoints and peers do not fill the memory, and are counted together.
func TestPage_Bounded(t *testing.T) {
	page, o := fed(t)
	request := httptest.NewRequest("GET", "http://api/"+strings.Repeat("long/", 500), nil)
	drive := func(from, to int) {
		for i := from; i < to; i++ {
			c := &mesh.Call{Request: request, Start: time.Now(), Status: 500, GRPCStatus: -1, Attempts: 2, Duration: time.Millisecond}
			c.Target.Host, c.Target.Port = fmt.Sprintf("api-%d.shop.svc.cluster.local", i), 80
			for n := range 2 {
				a := &mesh.Attempt{Call: c, Number: n + 1, Endpoint: fmt.Sprintf("10.%d.%d.%d:80", n, i>>8, i&255), Start: c.Start, Status: 500, GRPCStatus: -1}
				c.Last = a
				o.AttemptEnd(t.Context(), a)
			}
			o.CallEnd(t.Context(), c)
			o.InboundEnd(t.Context(), &mesh.Inbound{Request: request, Peer: fmt.Sprintf("spiffe://x/%d", i), Start: c.Start, Status: 500, GRPCStatus: -1})
		}
	}
	before := leak.Heap()
	drive(0, 1_000)
	full := leak.Heap()
	drive(1_000, 4_000)
	if more := leak.Heap() - full; more > 1<<20 {
		t.Errorf("the heap grows by %d kB after everything is full", more>>10)
	}
	if full-before > 16<<20 {
		t.Errorf("the page keeps %d MB, want 16 at most", (full-before)>>20)
	}
	t.Logf("%d kB are kept", (full-before)>>10)
	r := reportOf(t, page)
	if len(r.Destinations) != 251 || len(r.Calls) != 200 {
		t.Errorf("%d destinations and %d calls, want 251 and 200", len(r.Destinations), len(r.Calls))
	}
	sum, others := 0, 0
	for _, d := range r.Destinations {
		sum += d.Calls
		if d.Others {
			others = d.Calls
		}
	}
	if sum != 4_000 || others != 3_750 {
		t.Errorf("%d calls, of which %d are others; want 4000 and 3750", sum, others)
	}
	if len(r.Callers) != 101 {
		t.Errorf("%d callers, want 101", len(r.Callers))
	}
	runtime.KeepAlive(page)
}

// TestObserver_Allocations: a call that succeeds allocates nothing here.
func TestObserver_Allocations(t *testing.T) {
	run := observed(t)
	run()
	if n := testing.AllocsPerRun(1000, run); n != 0 {
		t.Errorf("an ordinary call allocates %v times", n)
	}
}

// observed returns what an observer is told of one ordinary call.
func observed(tb testing.TB) func() {
	page := admin.New(admin.Config{})
	tb.Cleanup(page.Close)
	o := page.Observer()
	c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), Status: 200, GRPCStatus: -1, Attempts: 1, Duration: time.Millisecond}
	c.Target.Host, c.Target.Port = "api.shop.svc.cluster.local", 80
	c.Last = &mesh.Attempt{Call: c, Number: 1, Endpoint: "10.0.0.1:80", Start: c.Start, Status: 200, GRPCStatus: -1, Duration: time.Millisecond}
	ctx := tb.Context()
	return func() {
		o.AttemptEnd(ctx, c.Last)
		o.CallEnd(ctx, c)
	}
}

// BenchmarkObserver is what the page costs a call that succeeds.
func BenchmarkObserver(b *testing.B) {
	run := observed(b)
	b.Run("one", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			run()
		}
	})
	b.Run("parallel", func(b *testing.B) {
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				run()
			}
		})
	})
}

// TestPage_KeepsNoRequestLines: a call that is kept keeps nothing of the request it was, such as a line of a megabyte.
func TestPage_KeepsNoRequestLines(t *testing.T) {
	page, o := fed(t)
	before := leak.Heap()
	for i := range 200 {
		line := "GET /" + strings.Repeat("x", 256<<10) + " HTTP/1.1\r\nHost: api\r\n\r\n"
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line)))
		if err != nil {
			t.Fatal(err)
		}
		o.InboundEnd(t.Context(), &mesh.Inbound{Request: r, Peer: fmt.Sprintf("spiffe://x/%d", i%50), Start: time.Now(), Status: 500, GRPCStatus: -1})
	}
	if more := leak.Heap() - before; more > 8<<20 {
		t.Errorf("the page keeps %d MB of 200 requests, want 8 at most", more>>20)
	}
	if r := reportOf(t, page); len(r.Calls) != 200 {
		t.Errorf("%d calls are kept, want 200", len(r.Calls))
	}
}

// TestPage_ManyProblems: destinations that fail are not fine because there are more of them than problems that are listed.
func TestPage_ManyProblems(t *testing.T) {
	page, o := fed(t)
	for i := range 60 {
		c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), Status: 500, GRPCStatus: -1}
		c.Target.Host = fmt.Sprintf("api-%d", i/2)
		o.CallEnd(t.Context(), c)
		o.CallEnd(t.Context(), c)
	}
	if r := reportOf(t, page); len(r.Problems) != 21 || r.Problems[20].Title != "and 10 more" {
		t.Errorf("%d problems, want 20 and how many more there are", len(r.Problems))
	}
	_, list, _ := strings.Cut(ask(t, page, "").Body.String(), "# Destinations, last minute\n")
	list, _, _ = strings.Cut(list, "\n\n")
	if n := strings.Count(list, "\ncritical  "); n != 30 {
		t.Errorf("%d destinations are critical, want 30:\n%s", n, list)
	}
}

// TestPage_IdleEndpointsMakeRoom: endpoints that nothing was sent to for a minute give their place to those of any destination.
func TestPage_IdleEndpointsMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		page, o := fed(t)
		send := func(host, endpoint string) {
			c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), Status: 200, GRPCStatus: -1, Attempts: 1}
			c.Target.Host = host
			c.Last = &mesh.Attempt{Call: c, Number: 1, Endpoint: endpoint, Start: c.Start, Status: 200, GRPCStatus: -1}
			o.CallEnd(t.Context(), c)
		}
		for i := range 2_000 {
			send(fmt.Sprintf("api-%d", i/100), fmt.Sprintf("10.0.%d.%d:80", i/100, i%100))
		}
		endpoints := func(host string) (n int) {
			for _, d := range reportOf(t, page).Destinations {
				if d.Host == host {
					n = len(d.Endpoints)
				}
			}
			return n
		}
		send("early", "10.1.0.1:80")
		if n := endpoints("early"); n != 0 {
			t.Errorf("%d endpoints are shown beyond 2000, want none", n)
		}
		time.Sleep(2 * time.Minute) // of the bubble
		for i := range 20 {
			send(fmt.Sprintf("api-%d", i), fmt.Sprintf("10.0.%d.0:80", i))
		}
		send("late", "10.1.0.2:80")
		if n := endpoints("late"); n != 1 {
			t.Errorf("%d endpoints are shown after the others were idle, want 1", n)
		}
	})
}

// TestPage_RefusedBeyond: of destinations that there is no room for, calls that were refused are kept as seldom as of others.
func TestPage_RefusedBeyond(t *testing.T) {
	page, o := fed(t)
	start := time.Now()
	refuse := func(host string) {
		c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: start, Status: 503, GRPCStatus: -1, Flags: mesh.FlagNoHealthyUpstream}
		c.Target.Host = host
		o.CallEnd(t.Context(), c)
	}
	for i := range 250 {
		refuse(fmt.Sprintf("api-%d", i))
	}
	for i := range 20 {
		refuse(fmt.Sprintf("beyond-%d", i))
	}
	kept := 0
	var list struct {
		Calls []struct{ Target struct{ Host string } }
	}
	if err := json.Unmarshal(ask(t, page, "?format=json").Body.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	for _, c := range list.Calls {
		if strings.HasPrefix(c.Target.Host, "beyond-") {
			kept++
		}
	}
	if kept != 1 {
		t.Errorf("%d calls to destinations beyond the bound are kept, want 1", kept)
	}
}

// TestPage_Streams: a stream of events that was open for long is no slow request.
func TestPage_Streams(t *testing.T) {
	page, o := fed(t)
	in := &mesh.Inbound{Request: httptest.NewRequest("GET", "/news", nil), Start: time.Now().Add(-time.Minute), Duration: time.Minute, Status: 200, GRPCStatus: -1}
	in.Decision.Allowed = true
	in.ResponseHeader = http.Header{"Content-Type": {"text/event-stream"}}
	o.InboundEnd(t.Context(), in)
	if r := reportOf(t, page); len(r.Calls) != 0 {
		t.Errorf("calls %+v, want none", r.Calls)
	}
	in.ResponseHeader = nil
	o.InboundEnd(t.Context(), in)
	if r := reportOf(t, page); len(r.Calls) != 1 {
		t.Errorf("calls %+v, want one that is slow", r.Calls)
	}
}

// TestPage_ManyRawConnections: raw connections beyond the bound are counted together, and inbound ones always.
func TestPage_ManyRawConnections(t *testing.T) {
	page, o := fed(t)
	for i := range 150 {
		c := new(mesh.Conn)
		c.Target.Host = fmt.Sprintf("ledger-%d", i)
		c.Err = errors.New("refused")
		o.ConnStart(c)
		o.ConnEnd(c)
	}
	in := &mesh.Conn{Inbound: true}
	o.ConnStart(in)
	r := reportOf(t, page)
	if r.In.Connections.Open != 1 {
		t.Errorf("inbound %+v, want one that is open", r.In.Connections)
	}
	o.ConnEnd(in)
	failed, others := 0, 0
	for _, d := range r.Destinations {
		failed += d.Connections.Failed
		if d.Others {
			others += d.Connections.Failed
		}
	}
	if failed != 150 || others != 50 || len(r.Destinations) != 101 {
		t.Errorf("%d destinations with %d failed connections, of others %d; want 101, 150 and 50", len(r.Destinations), failed, others)
	}
	if r = reportOf(t, page); r.In.Connections.Open != 0 {
		t.Errorf("inbound %+v, want none that is open", r.In.Connections)
	}
}

// TestPage_GoneIsNotUnhealthy: endpoints that discovery does not list any more, or hosts that it never listed, are not counted as unhealthy.
func TestPage_GoneIsNotUnhealthy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		f.Network.Serve(t, "api.example.com:80", http.HandlerFunc(fine))
		stays, goes := f.Add(t, fine), f.Add(t, fine)
		f.Registry.Set("api", stays, goes)
		page, m := attach(t, f, admin.Config{}, ejects)
		for range 4 {
			call(m.Client(), "GET", "http://api/")
		}
		call(m.Client(), "GET", "http://api.example.com/")
		f.Registry.Set("api", stays)
		synctest.Wait()
		html := ask(t, page, "?format=html").Body.String()
		if !strings.Contains(html, "<b>1/1</b> healthy") || strings.Contains(html, "1/2") || strings.Contains(html, "1 of 2 endpoints") || strings.Contains(html, "<b>0/1</b>") {
			t.Error("an endpoint that is gone, or outside the mesh, counts as unhealthy")
		}
		if !strings.Contains(html, "○ gone") {
			t.Error("the page does not show the endpoint that is gone")
		}
		if text := ask(t, page, "?format=text").Body.String(); strings.Contains(text, "1/2") || strings.Contains(text, "0/1") || !strings.Contains(text, "  1/1  ") {
			t.Errorf("the text counts it as unhealthy:\n%s", text)
		}
	})
}

// TestWatch_LargePage: a page is not left without news for so long that it says so itself, however large it is.
func TestWatch_LargePage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		page, _ := attach(t, f, admin.Config{}, "")
		o := page.Observer()
		for range 24 {
			for i := range 100 {
				o.InboundEnd(t.Context(), &mesh.Inbound{Request: httptest.NewRequest("GET", "/", nil), Peer: fmt.Sprintf("spiffe://x/%d", i), Start: time.Now(), Status: 500, GRPCStatus: -1})
			}
			time.Sleep(5 * time.Second) // of the bubble
		}
		for i := range 40 * 25 {
			c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), Status: 200, GRPCStatus: -1, Attempts: 1}
			c.Target.Host = fmt.Sprintf("api-%d", i/25)
			c.Last = &mesh.Attempt{Call: c, Number: 1, Endpoint: fmt.Sprintf("[2001:db8:aaaa:bbbb:cccc:dddd:%x:%x]:8080", i/25, i%25), Start: c.Start, Status: 200, GRPCStatus: -1}
			o.CallEnd(t.Context(), c)
		}
		f.Network.Serve(t, "10.1.1.1:80", page)
		transport := &http.Transport{DialContext: f.Network.DialContext}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get("http://10.1.1.1/?events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewReader(resp.Body)
		last, size := time.Now(), 0
		for n := 0; n < 4; {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasPrefix(line, "data: ") {
				continue
			}
			n++
			size = max(size, len(line))
			if waited := time.Since(last); waited > 4500*time.Millisecond {
				t.Errorf("event %d comes after %v, want 4.5 s at most", n, waited)
			}
			last = time.Now()
		}
		if size < 900<<10 {
			t.Errorf("the page has %d kB, want one that is large", size>>10)
		}
	})
}

// TestPage_ProblemOfOthers: what hurts of destinations that there is no room for has their name, and leads to them.
func TestPage_ProblemOfOthers(t *testing.T) {
	page, o := fed(t)
	for i := range 260 {
		c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), Status: 200, GRPCStatus: -1}
		if c.Target.Host = fmt.Sprintf("api-%d", i); i >= 250 {
			c.Status = 500
		}
		o.CallEnd(t.Context(), c)
	}
	if text := ask(t, page, "?format=text").Body.String(); !strings.Contains(text, "CRITICAL  other destinations: 100 % of the calls fail") {
		t.Errorf("the text does not name them:\n%.300s", text)
	}
	html := ask(t, page, "?format=html").Body.String()
	_, link, ok := strings.Cut(html, `</span>
  <a href="#`)
	link, name, _ := strings.Cut(link, `">`)
	if !ok || !strings.HasPrefix(name, "other destinations<") || !strings.Contains(html, `id="`+link+`"`) {
		t.Errorf("the page names %.30q, with a link to %q", name, link)
	}
}

// TestPage_NothingYet: a process without calls has lists in its JSON, too.
func TestPage_NothingYet(t *testing.T) {
	page, _ := fed(t)
	if body := ask(t, page, "?format=json").Body.String(); strings.Contains(body, "null") {
		t.Errorf("a list is null:\n%s", body)
	}
}

// TestPage_DiscoveryFailsOften: callers may choose hosts that nobody finds, and do not thereby remove what else happened from the page.
func TestPage_DiscoveryFailsOften(t *testing.T) {
	page, o := fed(t)
	o.Ejection(route.Target{Host: "api"}, breaker.Event{Endpoint: "10.0.0.1:80", Ejected: true})
	for i := range 300 {
		o.DiscoveryFailed(discovery.Service{Host: fmt.Sprint("host-", i)}, errors.New("no such host"))
	}
	kinds := make(map[string]int)
	events := reportOf(t, page).Events
	for _, e := range events {
		kinds[e.Kind]++
	}
	if kinds["ejection"] != 1 || kinds["discovery"] != 20 || events[0].Kind != "discovery" {
		t.Errorf("the page has %v, want the ejection beside the latest failures of discovery", kinds)
	}
	if html := ask(t, page, "?format=html").Body.String(); !strings.Contains(html, "10.0.0.1:80") || !strings.Contains(html, "host-299") {
		t.Error("the page does not show both")
	}
}

// TestPage_LongHosts: hosts that are longer than names can be, which whoever chooses hosts may send, take no room of their own.
func TestPage_LongHosts(t *testing.T) {
	page, o := fed(t)
	before := leak.Heap()
	for i := range 200 {
		c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now().Add(-time.Duration(i) * time.Second / 10), GRPCStatus: -1, Attempts: 1}
		c.Err, c.Target.Host = errors.New("no such host"), strings.Repeat("x", 256<<10)+fmt.Sprint(i)
		o.CallEnd(t.Context(), c)
		conn := new(mesh.Conn)
		conn.Target = c.Target
		o.ConnStart(conn)
		o.ConnEnd(conn)
		o.DiscoveryFailed(discovery.Service{Host: c.Target.Host}, c.Err)
	}
	if more := leak.Heap() - before; more > 8<<20 {
		t.Errorf("the page keeps %d MB of 200 hosts, want 8 at most", more>>20)
	}
	if r := reportOf(t, page); len(r.Destinations) != 1 || !r.Destinations[0].Others || r.Destinations[0].Calls != 200 || r.Destinations[0].Connections.Opened != 200 {
		t.Errorf("%d destinations, want the others", len(r.Destinations))
	}
}
