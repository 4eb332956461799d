package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	access "github.com/nosidecar/mesh/policy/authz"
)

// TestAuthzAgreement sends requests to a server, byte by byte, that asks the plan as the handler of a mesh does, and
// compares its answers with those of authz.
func TestAuthzAgreement(t *testing.T) {
	const documents = "testdata/access.yaml"
	sources, _, err := read([]string{documents})
	if err != nil {
		t.Fatal(err)
	}
	workload := policy.Workload{Labels: map[string]string{"app": "shop"}}
	plan, findings := policy.Compile(sources, workload)
	if plan == nil {
		t.Fatal(findings)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		view := access.NewRequest(r, "", 1)
		d := plan.Inbound().Authorize(&view)
		w.Header().Set("Policy", d.Policy)
		if !d.Allowed {
			d.Refuse(w, r)
		}
	}))
	defer server.Close()
	address := server.Listener.Addr().String()

	for _, host := range []string{"shop", "shop:80", "sh<op", `sh"op`, "shöp", "sh!op", "[::1]:80"} {
		agree(t, documents, address, "GET", host, "/public/a", "10.0.0.1")
	}
	for _, target := range []string{
		"/public/a", "/", "/admin", "//admin", "/x/../admin", "/%2e%2e/admin", "/public/..%2fadmin", "/public/..%5cadmin",
		`/public\..\admin`, "/admin;x", "/admin#x", "/public/a#/../../admin", "/admin%00", "/public/%00", "/public/%zz",
		"/public/%", "/public/a?b=/admin", "/public/a b", "/users/1/cart", "/users/1%2f2/cart", "/users/1/cart/", "?x", "#x", `\admin`,
		"/public/\x7f", "/public/\xff", "/public/é", "/public/a\tb",
	} {
		for _, method := range []string{"GET", "POST", "OPTIONS", "CONNECT"} {
			for _, client := range []string{"203.0.113.7", "10.0.0.1"} {
				agree(t, documents, address, method, address, target, client)
			}
		}
	}
}

// agree compares what authz says of a request with what the server answers.
func agree(t *testing.T, documents, address, method, host, target, client string) {
	t.Helper()
	status, policy := send(t, address, method, host, target, client)
	code, stdout, stderr := command("authz", "-f", documents, "-l", "app=shop", "-X", method, "-H", "Host: "+host,
		"-H", "X-Forwarded-For: "+client, "--trusted-hops", "1", "http://"+address+target)
	var got verdict
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("%s %q: %v, %s", method, target, err, stderr)
	}
	allowed := status == http.StatusOK
	if (code == 0) != allowed || (got.Decision == "ALLOW") != allowed || got.Policy != policy {
		t.Errorf("%s %q at %q from %s: authz says %d, %+v; the server answers %d by %q", method, target, host, client, code, got, status, policy)
	}
}

// send sends a request as it stands and returns the status, and the policy that decided.
func send(t *testing.T, address, method, host, target, client string) (status int, policy string) {
	t.Helper()
	if strings.HasPrefix(target, "?") {
		target = "/" + target // as a client does
	}
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: %s\r\nX-Forwarded-For: %s\r\nConnection: close\r\n\r\n", method, target, host, client)
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("Policy")
}

func TestAuthzByIntentions(t *testing.T) {
	const domain = "11111111-2222-3333-4444-555555555555.consul"
	documents := filepath.Join(t.TempDir(), "intentions.yaml")
	if err := os.WriteFile(documents, []byte(`
Kind: service-intentions
Name: web
Sources:
- {Name: api, Permissions: [{Action: allow, HTTP: {PathPrefix: /v1/}}]}
- {Name: old, Action: deny}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	principal := func(service string) string { return domain + "/ns/default/dc/dc1/svc/" + service }
	for _, tt := range []struct {
		args   []string
		want   int
		policy string
		reason string
	}{
		{[]string{"--principal", principal("api"), "http://web/v1/a"}, exitOK, "service-intentions/web", "a permission"},
		{[]string{"--principal", principal("api"), "http://web/v2/a"}, exitDenied, "service-intentions/web", "no permission"},
		{[]string{"--principal", principal("old"), "http://web/v1/a"}, exitDenied, "service-intentions/web", "an intention"},
		{[]string{"--principal", principal("db"), "http://web/v1/a"}, exitDenied, "", "none names the peer"},
		{[]string{"--principal", principal("db"), "--allow-by-default", "http://web/v1/a"}, exitOK, "", "none names the peer"},
		{[]string{"--principal", principal("api"), "http://web.service.consul/v1/a"}, exitOK, "service-intentions/web", "a permission"},
		{[]string{"--principal", principal("api"), "--service", "db", "http://web/v1/a"}, exitDenied, "", "none names the peer"},
		{[]string{"--principal", "cluster.local/ns/default/sa/api", "http://web/v1/a"}, exitDenied, "", "no identity of the form"},
		{[]string{"http://web/v1/a"}, exitDenied, "", "no identity of the form"},
	} {
		code, stdout, stderr := command(append([]string{"authz", "-f", documents}, tt.args...)...)
		var got verdict
		if err := json.Unmarshal([]byte(stdout), &got); err != nil {
			t.Fatalf("%v: %v, %s", tt.args, err, stderr)
		}
		if code != tt.want || got.Policy != tt.policy || !strings.Contains(got.Reason, tt.reason) {
			t.Errorf("%v: %d, %+v, want %d by %q since %q", tt.args, code, got, tt.want, tt.policy, tt.reason)
		}
	}
}
