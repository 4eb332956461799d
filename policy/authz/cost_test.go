package authz_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/authz"
)

// costly are requests that take the most to be judged, by what is odd about them.
func costly() map[string]authz.Request {
	requests := make(map[string]authz.Request)
	for name, unit := range map[string]string{
		"slashes": "//a", "dots": "/a/..", "parameters": "/a;b", "backslashes": `/a\b`, "spaces": "/a%20b", "numbers": "/a#",
		"slashes and parameters": "//a;b", "dots and backslashes": `/..\..\a`, "escapes and slashes": "//%20/..",
		"everything": `/x;a=b/%2e%2e%5C..%2F/;c\a;d`, "a fragment": `/x;a/%2e%2e%5C..%2F/;c\a#`,
	} {
		for _, size := range []int{128, 256, 768, 2 << 10} {
			r := *benchRequest(1)
			r.Target = strings.Repeat(unit, size/len(unit))
			requests[fmt.Sprint(name, ", ", size)] = r
		}
	}
	for name, values := range map[string][]string{
		"64 lines": slices.Repeat([]string{"x"}, 64), "18500 lines": slices.Repeat([]string{""}, 18_500),
		"64 elements": {strings.Repeat("a,", 63)}, "200000 elements": {strings.Repeat("a,", 200_000)}, "a long line": {strings.Repeat("a", 400_000)},
	} {
		r := *benchRequest(1)
		r.Header = http.Header{"X-Tenant": values}
		requests[name] = r
	}
	return requests
}

// costlyRules are 500 rules, each of which asks for a header that the requests have, and a path; and as many that deny how a
// path ends, or any that does not begin as all of them do, under any reading, and that none of the requests matches.
func costlyRules(t testing.TB) *authz.Authorizer {
	t.Helper()
	allow, endings := authz.Policy{Name: "default/costly"}, authz.Policy{Name: "default/endings", Action: authz.Deny}
	negated := authz.Policy{Name: "default/negated", Action: authz.Deny}
	for i := range 500 {
		allow.Rules = append(allow.Rules, authz.Rule{
			When: []authz.Condition{{Key: "request.headers[X-Tenant]", Values: []string{fmt.Sprint("tenant-", i)}}},
			To:   []authz.Operation{{Paths: []string{"*.txt"}}},
		})
		endings.Rules = append(endings.Rules, authz.Rule{To: []authz.Operation{{Paths: []string{fmt.Sprintf("*.%d.txt", i)}}}})
		negated.Rules = append(negated.Rules, authz.Rule{To: []authz.Operation{{NotPaths: []string{fmt.Sprintf("/tenant-%d/*", i), "/*"}}}})
	}
	a, err := authz.Compile([]authz.Policy{allow, endings, negated}, authz.Config{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What is read of a request is read once, however many rules ask for it, and there is a bound on it.
func TestJudgingCostsABoundedAmountOfMemory(t *testing.T) {
	a := costlyRules(t)
	for name, r := range costly() {
		decide := func() {
			if d := a.Decide(&r); d.Allowed {
				t.Errorf("%s: Decide = %+v", name, d)
			}
		}
		if got := testing.AllocsPerRun(1, decide); got > 300 {
			t.Errorf("%s: %v allocations", name, got)
		}
		ten := func() {
			for range 10 {
				decide()
			}
		}
		if got := leak.Allocated(ten) / 10; got > 64<<10 && name != "a long line" || got > 1<<20 {
			t.Errorf("%s: %d bytes are allocated", name, got)
		}
	}
}

// BenchmarkDenial reports what it costs to deny the most costly requests, as a share of what it costs to serve the same request
// over the loopback without authorization. The two take turns, and the fastest turn of each counts: what else the machine does
// is in neither.
func BenchmarkDenial(b *testing.B) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	a := costlyRules(b)
	for name, r := range costly() {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			same, err := http.NewRequest(http.MethodGet, server.URL, nil)
			if err != nil {
				b.Fatal(err)
			}
			same.URL.Opaque, same.Header = r.Target, r.Header
			served, denied := time.Hour, time.Hour
			for i := 0; b.Loop(); i++ {
				began := time.Now()
				a.Decide(&r)
				denied = min(denied, time.Since(began))
				if i%10 != 0 {
					continue
				}
				b.StopTimer()
				began = time.Now()
				resp, err := server.Client().Do(same)
				if err != nil {
					b.Fatal(err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				served = min(served, time.Since(began))
				b.StartTimer()
			}
			b.ReportMetric(float64(denied)/float64(served), "of-a-request")
		})
	}
}
