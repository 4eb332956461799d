package linkerd_test

import (
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/linkerd"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// read returns the profile of a spec with one route.
func read(t *testing.T, fields string) linkerd.Profile {
	t.Helper()
	text := "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: a}\nspec: " + fields
	doc := yamldoc.Parse([]byte(text))[0][0]
	var sp linkerd.ServiceProfile
	if new(yamldoc.Decoder).Decode(doc, &sp) {
		sp.Check(doc)
	}
	if doc.Failed() {
		t.Fatalf("%s: %+v", fields, doc.Problems)
	}
	return sp.Profile()
}

// TestCondition asks for requests in the form "METHOD path".
func TestCondition(t *testing.T) {
	tests := []struct {
		name, condition string
		yes, no         []string
	}{
		{"method", "{method: GET}", []string{"GET /"}, []string{"POST /", "get /"}},
		{"method in lower case", "{method: post}", []string{"POST /"}, []string{"GET /"}},
		{"path", "{pathRegex: '/a/[^/]*'}", []string{"GET /a/b", "PUT /a/b?c=/d"}, []string{"GET /a/b/c", "GET /x/a/b"}},
		{"anchored path", "{pathRegex: ' ^/a$ '}", []string{"GET /a"}, []string{"GET /ab", "GET /x/a"}},
		{"escaped dollar", `{pathRegex: '/a\$'}`, []string{"GET /a$"}, []string{"GET /a"}},
		{"in parentheses", "{pathRegex: '(/a|/b)'}", []string{"GET /a", "GET /b"}, []string{"GET /ab", "GET /x/b"}},
		// Linkerd makes "^/a|/b|/c$" of it.
		{"not in parentheses", "{pathRegex: '/a|/b|/c'}", []string{"GET /ax", "GET /x/bx", "GET /x/c"}, []string{"GET /x/a", "GET /cx"}},
		{"bars inside", `{pathRegex: '/[|]|/\||\Q/|\E'}`, []string{"GET /|"}, []string{"GET /a"}},
		{"both", "{method: GET, pathRegex: /a}", []string{"GET /a"}, []string{"GET /b", "POST /a"}},
		{"all", "{all: [{method: GET}, {pathRegex: '/a.*'}, {pathRegex: '.*b'}]}", []string{"GET /ab", "GET /a/b?c"},
			[]string{"GET /a", "GET /b", "POST /ab", "GET /a?b"}},
		{"no all", "{all: []}", []string{"GET /"}, nil},
		{"any", "{any: [{method: GET}, {pathRegex: /a}]}", []string{"GET /", "POST /a"}, []string{"POST /"}},
		{"no any", "{any: []}", nil, []string{"GET /"}},
		{"not method", "{not: {method: GET}}", []string{"POST /"}, []string{"GET /"}},
		{"not path", "{not: {pathRegex: /a}}", []string{"GET /b", "GET /b?/a"}, []string{"GET /a", "GET /a?b"}},
		{"not both", "{not: {method: GET, pathRegex: /a}}", []string{"GET /b", "POST /a"}, []string{"GET /a"}},
		{"not all", "{not: {all: [{method: GET}, {pathRegex: /a}]}}", []string{"GET /b", "POST /a"}, []string{"GET /a"}},
		{"not any", "{not: {any: [{method: GET}, {pathRegex: /a}]}}", []string{"POST /b"}, []string{"GET /b", "POST /a"}},
		{"not not", "{not: {not: {method: GET}}}", []string{"GET /"}, []string{"POST /"}},
		{"not nothing", "{not: {any: []}}", []string{"GET /"}, nil},
		{"two methods", "{all: [{method: GET}, {method: POST}]}", nil, []string{"GET /", "POST /"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := read(t, "{routes: [{name: a, condition: "+tt.condition+"}]}")
			table, err := route.NewTable([]route.Route{{
				Matches: p.Routes[0].Matches, Destinations: make([]route.Destination, 1),
			}})
			if err != nil {
				t.Fatal(err)
			}
			ask := func(requests []string, want bool) {
				for _, line := range requests {
					var r route.Request
					r.Method, r.Path, _ = cut(line, " ")
					r.Path, r.RawQuery, _ = cut(r.Path, "?")
					if _, _, got := table.Match(&r); got != want {
						t.Errorf("%s: %v, want %v", line, got, want)
					}
				}
			}
			ask(tt.yes, true)
			ask(tt.no, false)
		})
	}
}

func cut(s, sep string) (before, after string, ok bool) {
	for i := range s {
		if s[i:i+1] == sep {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func TestRetries(t *testing.T) {
	const none = -1
	tests := []struct {
		name, fields string
		retries      int
		on           []int // some of the status codes
		notOn        []int
		conditions   retry.Condition
	}{
		{"by default", "", none, nil, nil, 0},
		{"not retryable", "isRetryable: false", none, nil, nil, 0},
		{"retryable", "isRetryable: true", 100, nil, nil,
			retry.ServerError | retry.DeadlineExceeded | retry.Internal | retry.Unavailable},
		{"limit", "retries: {limit: 3}", 3, nil, nil,
			retry.ServerError | retry.DeadlineExceeded | retry.Internal | retry.Unavailable},
		{"limit of 0", "retries: {limit: 0}", none, nil, nil, 0},
		{"limit with retryable", "isRetryable: true, retries: {limit: 3}", 3, nil, nil,
			retry.ServerError | retry.DeadlineExceeded | retry.Internal | retry.Unavailable},
		{"more failures", "isRetryable: true, responseClasses: [{condition: {status: {min: 404}}, isFailure: true}]", 100,
			[]int{404}, []int{403, 405, 500}, retry.ServerError | retry.DeadlineExceeded | retry.Internal | retry.Unavailable},
		{"fewer failures", "isRetryable: true, responseClasses: [{condition: {status: {min: 500, max: 501}}}]", 100,
			[]int{502, 503, 599}, []int{500, 501}, retry.Reset | retry.DeadlineExceeded | retry.Internal | retry.Unavailable},
		{"the first class counts", "isRetryable: true, responseClasses: [{condition: {status: {max: 503}}}, " +
			"{condition: {status: {min: 200, max: 599}}, isFailure: true}]", 100, []int{200, 404, 502}, []int{503}, retry.Reset},
		{"no failure without response", "isRetryable: true, responseClasses: [{condition: {not: {status: {min: 409}}}}, " +
			"{condition: {status: {min: 409}}, isFailure: true}]", 100, []int{409}, []int{500, 503}, 0},
		{"all and any", "isRetryable: true, responseClasses: [{condition: {all: [{status: {min: 400, max: 499}}, " +
			"{any: [{status: {min: 408}}, {status: {min: 429}}]}]}, isFailure: true}]", 100, []int{408, 429}, []int{400, 404},
			retry.ServerError | retry.DeadlineExceeded | retry.Internal | retry.Unavailable},
		{"empty conditions do not count", "isRetryable: true, responseClasses: [{condition: {all: []}, isFailure: true}, " +
			"{condition: {not: {status: {}}}, isFailure: true}]", 100, nil, []int{200},
			retry.ServerError | retry.DeadlineExceeded | retry.Internal | retry.Unavailable},
		{"nothing fails", "isRetryable: true, responseClasses: [{condition: {status: {min: 100, max: 599}}}]", none, nil, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := read(t, "{routes: [{name: a, condition: {method: GET}, "+tt.fields+"}]}")
			got := p.Routes[0].Retry
			if tt.retries == none {
				if !got.Equal(retry.Config{}) {
					t.Errorf("retry = %+v, want none", got)
				}
				return
			}
			if got.Retries != tt.retries || got.On.Conditions != tt.conditions || !got.AnyMethod || got.Backoff >= 0 {
				t.Errorf("retry = %+v, want %d on %v", got, tt.retries, retry.On{Conditions: tt.conditions})
			}
			for _, status := range tt.on {
				if !(retry.On{Status: got.On.Status}).HTTP(status) {
					t.Errorf("%d is not retried", status)
				}
			}
			for _, status := range tt.notOn {
				if (retry.On{Status: got.On.Status}).HTTP(status) {
					t.Errorf("%d is retried", status)
				}
			}
			if _, err := retry.NewPolicy(got); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestBudget(t *testing.T) {
	off := retry.BudgetConfig{Off: true}
	tests := []struct {
		name, spec string
		want       retry.BudgetConfig
	}{
		{"nothing is retried", "{routes: [{name: a, condition: {method: GET}}]}", off},
		{"retries have a limit", "{routes: [{name: a, condition: {method: GET}, retries: {limit: 3}}]}", off},
		{"retries have none", "{routes: [{name: a, condition: {method: GET}, isRetryable: true}]}", retry.BudgetConfig{}},
		{"written", "{retryBudget: {retryRatio: 0.5, minRetriesPerSecond: 3, ttl: 30s}}",
			retry.BudgetConfig{Ratio: 0.5, MinPerSecond: 3, Window: 30e9}},
		{"zeros", "{retryBudget: {retryRatio: 0, minRetriesPerSecond: 0, ttl: 1s}}",
			retry.BudgetConfig{Ratio: -1, MinPerSecond: -1, Window: 1e9}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := read(t, tt.spec).Budget; got != tt.want {
				t.Errorf("budget = %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestCheck_Bounds checks that a condition cannot grow without bound.
func TestCheck_Bounds(t *testing.T) {
	condition := "{any: [{method: A}, {pathRegex: /b}]}"
	list := condition
	for range 10 {
		list += ", " + condition
	}
	text := "apiVersion: linkerd.io/v1alpha2\nkind: ServiceProfile\nmetadata: {name: a}\n" +
		"spec: {routes: [{name: a, condition: {all: [" + list + "]}}]}"
	doc := yamldoc.Parse([]byte(text))[0][0]
	var sp linkerd.ServiceProfile
	if !new(yamldoc.Decoder).Decode(doc, &sp) {
		t.Fatal(doc.Problems)
	}
	sp.Check(doc)
	if !doc.Failed() {
		t.Error("a condition with 2048 alternatives is accepted")
	}
}
