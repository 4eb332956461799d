package admin_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// forgery begins a line, a column and an escape sequence of a terminal, turns around what follows, and is not UTF-8.
const forgery = "x\r\nCRITICAL  forged\tcolumn\x1b[31m\u202e\u2028\x9b\xff<img src=x onerror=alert(1)>"

// TestPage_ForgedText: whatever discovery, documents and peers have in their texts, it makes no line and no column of the text, and controls
// no terminal.
func TestPage_ForgedText(t *testing.T) {
	f := new(meshtest.Fleet)
	e := f.Add(t, fails(503))
	e.Locality = discovery.Locality{Region: forgery, Zone: forgery}
	f.Registry.Set("api", e)
	page, m := attach(t, f, admin.Config{Name: forgery}, fmt.Sprintf(`
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec:
  hosts: [api]
  http:
  - name: %[1]q
    match: [{uri: {regex: %[1]q}, headers: {x-a: {exact: %[1]q}}}]
    route: [{destination: {host: api}}]
  - route: [{destination: {host: api}}]
    retries: {attempts: 0}
`, "x\nCRITICAL  forged\tcolumn<img src=x onerror=alert(1)>"))
	call(m.Client(), "GET", "http://api/a%0Ab%1b")
	o := page.Observer()
	to := route.Target{Host: "h" + forgery, Subset: forgery}
	c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: time.Now(), GRPCStatus: -1, Err: errors.New(forgery), Attempts: 1, Target: to,
		Route: forgery, Document: forgery}
	c.Request.Method, c.Request.URL.Path, c.Request.URL.RawPath = forgery, forgery, forgery
	c.Last = &mesh.Attempt{Call: c, Number: 1, Endpoint: forgery, Start: c.Start, GRPCStatus: -1, Err: c.Err}
	o.AttemptEnd(t.Context(), c.Last)
	o.CallEnd(t.Context(), c)
	in := &mesh.Inbound{Request: c.Request, Peer: "spiffe://x/" + forgery, Start: c.Start, Status: 403, GRPCStatus: -1, PeerErr: errors.New(forgery)}
	in.Decision.Policy, in.Decision.Reason = forgery, forgery
	o.InboundEnd(t.Context(), in)
	o.Ejection(to, breaker.Event{Endpoint: forgery, Ejected: true, Reason: breaker.Reason(forgery)})
	o.DiscoveryFailed(discovery.Service{Host: forgery}, errors.New(forgery))
	o.MirrorDropped(to, errors.New(forgery))
	o.Identity(nil, errors.New(forgery))
	o.ConnectionRefused(nil, tlsid.Refusal{Err: errors.New(forgery)})
	o.PolicyLoad(mesh.PolicyLoad{Number: 7, Version: forgery, Err: errors.New(forgery), Findings: []policy.Finding{{
		File: forgery, Line: 1, Kind: forgery, Namespace: forgery, Name: forgery, Field: forgery, Message: forgery,
	}}})

	text := ask(t, page, "?format=text").Body.String()
	if !strings.Contains(text, "forged") {
		t.Fatalf("the text shows nothing of it:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "CRITICAL  forged") {
			t.Errorf("the text has a line that somebody else wrote: %q", line)
		}
		if i := strings.IndexFunc(strings.TrimSuffix(line, "\n"), func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("the text has an unprintable character at %d of %q", i, line)
		}
	}
	html := ask(t, page, "?format=html").Body.String()
	if strings.Contains(html, "<img") || !strings.Contains(html, "&lt;img") {
		t.Error("the page has an element that somebody else wrote")
	}
	body := ask(t, page, "?format=json").Body.Bytes()
	if !json.Valid(body) || strings.Contains(string(body), "<img") {
		t.Error("the JSON is invalid, or HTML where a browser takes it for that")
	}
}

// TestPage_ClockSetBack: the page has figures while the clock is behind what it was.
func TestPage_ClockSetBack(t *testing.T) {
	page, o := fed(t)
	end := func(at time.Time) {
		c := &mesh.Call{Request: httptest.NewRequest("GET", "http://api/", nil), Start: at, Status: 500, GRPCStatus: -1}
		c.Target.Host = "api"
		o.CallEnd(t.Context(), c)
		o.InboundEnd(t.Context(), &mesh.Inbound{Request: c.Request, Start: at, Status: 500, GRPCStatus: -1})
	}
	for i := range 12 * 5 {
		end(time.Now().Add(time.Hour + time.Duration(i)*time.Second).Round(0)) // without the monotonic clock
	}
	for range 10 {
		end(time.Now().Round(0))
	}
	r := reportOf(t, page)
	if len(r.Destinations) != 1 || r.Destinations[0].Calls != 10 || len(r.Callers) != 1 || r.Callers[0].Calls != 10 || len(r.Problems) == 0 {
		t.Errorf("destinations %+v and callers %+v, want 10 calls and 10 requests", r.Destinations, r.Callers)
	}
}

// TestPage_ClientsThatTakeNothing: pages that nobody reads do not pile up in memory, and are given up.
func TestPage_ClientsThatTakeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		page, _ := attach(t, f, admin.Config{Name: strings.Repeat("x", 1<<20)}, "")
		f.Network.Serve(t, "10.1.1.1:80", page)
		before := leak.Heap()
		for range 100 {
			conn, err := f.Network.DialContext(t.Context(), "tcp", "10.1.1.1:80")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			fmt.Fprint(conn, "GET /?format=text HTTP/1.1\r\nHost: 10.1.1.1\r\n\r\n")
		}
		synctest.Wait()
		if more := leak.Heap() - before; more > 64<<20 {
			t.Errorf("100 clients that take nothing hold %d MB, want 64 at most", more>>20)
		}
		time.Sleep(5 * time.Minute) // of the bubble
		transport := &http.Transport{DialContext: f.Network.DialContext}
		defer transport.CloseIdleConnections()
		resp, err := (&http.Client{Transport: transport}).Get("http://10.1.1.1/")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("after five minutes somebody else is answered with %d, want 200", resp.StatusCode)
		}
	})
}
