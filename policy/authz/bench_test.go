package authz_test

import (
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"github.com/nosidecar/mesh/policy/authz"
)

// rules of the kinds that the benchmarks measure, and the text that the request must have to match the last of them.
var benchRules = map[string]func(i int) authz.Rule{
	"principals": func(i int) authz.Rule {
		return authz.Rule{
			From: []authz.Source{{Principals: []string{fmt.Sprintf("cluster.local/ns/default/sa/client-%d", i)}}},
			To:   []authz.Operation{{Methods: []string{"GET"}, Paths: []string{"/v1/*"}}},
		}
	},
	"paths": func(i int) authz.Rule {
		return authz.Rule{
			From: []authz.Source{{Namespaces: []string{"default"}}},
			To:   []authz.Operation{{Methods: []string{"GET"}, Paths: []string{fmt.Sprintf("/v1/items-%d/*", i)}}},
		}
	},
	"headers": func(i int) authz.Rule {
		return authz.Rule{When: []authz.Condition{{Key: "request.headers[X-Tenant]", Values: []string{fmt.Sprint("tenant-", i)}}}}
	},
}

func benchRequest(n int) *authz.Request {
	return &authz.Request{
		Principal:   fmt.Sprintf("cluster.local/ns/default/sa/client-%d", n-1),
		Source:      netip.MustParseAddr("10.0.0.1"),
		Destination: netip.MustParseAddrPort("10.0.0.2:8080"),
		Host:        "items.default.svc.cluster.local",
		Method:      "GET",
		Target:      fmt.Sprintf("/v1/items-%d/42?limit=10", n-1),
		Header:      http.Header{"X-Tenant": {fmt.Sprint("tenant-", n-1)}},
	}
}

func BenchmarkDecide(b *testing.B) {
	for _, kind := range []string{"principals", "paths", "headers"} {
		for _, n := range []int{1, 10, 100, 1000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				policy := authz.Policy{Name: "default/bench"}
				for i := range n {
					policy.Rules = append(policy.Rules, benchRules[kind](i))
				}
				a, err := authz.Compile([]authz.Policy{policy}, authz.Config{})
				if err != nil {
					b.Fatal(err)
				}
				r := benchRequest(n)
				b.ReportAllocs()
				for b.Loop() {
					if d := a.Decide(r); d.Rule != n-1 {
						b.Fatalf("Decide = %+v", d)
					}
				}
			})
		}
	}
}

// BenchmarkReadings is a request whose path has several readings.
func BenchmarkReadings(b *testing.B) {
	for name, target := range map[string]string{"escape": "/v1/caf%C3%A9", "dots": "/v1/a/../b",
		"all": `/v1//a%2F..%5C/b;c=d/..\e#/f`} {
		b.Run(name, func(b *testing.B) {
			a, err := authz.Compile([]authz.Policy{{Name: "default/bench", Rules: []authz.Rule{
				{To: []authz.Operation{{Paths: []string{"/v1/*"}}}},
			}}}, authz.Config{})
			if err != nil {
				b.Fatal(err)
			}
			r := benchRequest(1)
			r.Target = target
			b.ReportAllocs()
			for b.Loop() {
				if d := a.Decide(r); !d.Allowed && name != "all" {
					b.Fatalf("Decide = %+v", d)
				}
			}
		})
	}
}

func BenchmarkCompile(b *testing.B) {
	policy := authz.Policy{Name: "default/bench"}
	for i := range 1000 {
		policy.Rules = append(policy.Rules, benchRules["principals"](i))
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := authz.Compile([]authz.Policy{policy}, authz.Config{}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	for kind, rule := range benchRules {
		policies := []authz.Policy{
			{Name: "default/deny", Action: authz.Deny, Rules: []authz.Rule{{To: []authz.Operation{{Paths: []string{"/admin*"}}}}}},
			{Name: "default/audit", Action: authz.Audit, Rules: []authz.Rule{{}}},
			{Name: "default/shadow", DryRun: true, Rules: []authz.Rule{{From: []authz.Source{{Principals: []string{"td/x"}}}}}},
			{Name: "default/allow"},
		}
		for i := range 100 {
			policies[3].Rules = append(policies[3].Rules, rule(i))
		}
		a, err := authz.Compile(policies, authz.Config{})
		if err != nil {
			t.Fatal(err)
		}
		r := benchRequest(100)
		if got := testing.AllocsPerRun(100, func() {
			if d := a.Decide(r); !d.Allowed {
				t.Fatalf("%s: Decide = %+v", kind, d)
			}
		}); got != 0 {
			t.Errorf("%s: Decide allocates %v times", kind, got)
		}
	}
}
