package mesh

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"testing"
	"weak"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// rulesWith compiles an AuthorizationPolicy with a rule.
func rulesWith(t *testing.T, rule string) *policy.Inbound {
	t.Helper()
	plan, findings := policy.Compile([]policy.Source{{Name: "test.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: some, namespace: default}
spec: {rules: [` + rule + `]}
`)}}, policy.Workload{Namespace: "default"})
	if plan == nil || len(findings) > 0 {
		t.Fatal(findings)
	}
	return plan.Inbound()
}

func newOrigin() *origin {
	ctx := context.WithValue(context.Background(), http.LocalAddrContextKey, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8080})
	r := &http.Request{RemoteAddr: "127.0.0.1:4711"}
	return &origin{view: authz.NewRequest(r.WithContext(ctx), "", 0)}
}

// A decision is the same with a memory as without, whatever was decided before over the connection.
func TestOriginDecidesAsItsRulesDo(t *testing.T) {
	all := []*policy.Inbound{
		rulesWith(t, `{to: [{operation: {methods: [POST], paths: ["/a/*", "/b/1", "/b/200"]}}]}`),
		rulesWith(t, `{from: [{source: {principals: ["cluster.local/ns/default/sa/a"]}}]}`),
		rulesWith(t, `{when: [{key: "request.headers[x-name]", values: [alice]}]}`),
		rulesWith(t, `{to: [{operation: {hosts: [a]}}]}`),
		rulesWith(t, `{to: [{operation: {notPaths: ["/b/*"]}}]}`),
	}
	o := newOrigin()
	for n := range 2 {
		for _, rules := range all {
			for i := range 40 {
				for _, r := range []http.Request{
					{Method: http.MethodPost, Host: "a", RequestURI: fmt.Sprintf("/a/%d", i)},
					{Method: http.MethodPost, Host: "b", RequestURI: fmt.Sprintf("/b/%d", i), Header: http.Header{"X-Name": {"alice"}}},
					{Method: http.MethodPost, Host: "a", RequestURI: fmt.Sprintf("/b/%d", i), Header: http.Header{"X-Name": {"bob"}}},
					{Method: http.MethodGet, Host: "a", RequestURI: fmt.Sprintf("/a/%d", i), Header: http.Header{"X-Name": {"alice"}}},
				} {
					for _, principal := range []string{"cluster.local/ns/default/sa/a", "cluster.local/ns/default/sa/b"} {
						var view authz.Request
						o.see(&r, &view)
						view.Principal = principal
						if got, want := o.authorize(rules, &view), rules.Authorize(&view); got != want {
							t.Fatalf("round %d, %s %s of %s: %+v, want %+v", n, r.Method, r.RequestURI, principal, got, want)
						}
					}
				}
			}
		}
	}
}

// A connection on which nothing is called does not keep rules that nobody else uses.
func TestOriginKeepsNoRules(t *testing.T) {
	o := newOrigin()
	rules := rulesWith(t, `{}`)
	var view authz.Request
	o.see(&http.Request{Method: http.MethodPost, RequestURI: "/a/b"}, &view)
	view.Principal = "cluster.local/ns/default/sa/a"
	if !o.authorize(rules, &view).Allowed || o.decided[slotOf("/a/b")].Load() == nil {
		t.Fatal("the decision was not remembered")
	}
	kept := weak.Make(rules)
	rules = nil
	for range 100 {
		if runtime.GC(); kept.Value() == nil {
			break
		}
	}
	if kept.Value() != nil {
		t.Error("the rules are kept")
	}
	runtime.KeepAlive(o)
}
