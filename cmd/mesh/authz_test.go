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

	"github.com/nosidecar/mesh/internal/jwttest"
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
		{[]string{"--principal", principal("old"), "--allow-by-default", "http://web:8080/v1/a"}, exitDenied, "service-intentions/web", "an intention"},
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

// authz verifies tokens as a handler does, by keys in documents and in files, at the time that is asked for.
func TestAuthzTokens(t *testing.T) {
	inline, remote := jwttest.New("a"), jwttest.New("b")
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	documents := write("documents.yaml", "apiVersion: security.istio.io/v1\nkind: RequestAuthentication\nmetadata: {name: users, namespace: default}\nspec:\n  jwtRules:\n"+
		"  - {issuer: i, jwks: '"+jwttest.KeySet(inline)+"', outputClaimToHeaders: [{header: x-sub, claim: sub}]}\n  - {issuer: j, jwksUri: 'https://keys/?a=b'}\n---\n"+
		"apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: users, namespace: default}\nspec:\n  rules:\n"+
		"  - when: [{key: 'request.headers[x-sub]', values: [alice]}]\n  - from: [{source: {requestPrincipals: ['j/*']}}]\n")
	keys := write("keys.json", jwttest.KeySet(remote))
	alice := inline.Token(`{"iss":"i","sub":"alice","exp":1800000000}`)
	bob := remote.Token(`{"iss":"j","sub":"bob"}`)
	for _, tt := range []struct {
		name   string
		args   []string
		code   int
		reason string
	}{
		{"no token", []string{"-H", "X-Sub: alice"}, exitDenied, "no ALLOW policy matched"},
		{"good", []string{"-H", "Authorization: Bearer " + alice, "--time", "2026-11-28T12:00:00Z"}, exitOK, "matched an ALLOW policy"},
		{"later", []string{"-H", "Authorization: Bearer " + alice, "--time", "2036-11-28T12:00:00Z"}, exitDenied, "Jwt is expired"},
		{"keys in a file", []string{"-H", "Authorization: Bearer " + bob, "--jwks", "https://keys/?a=b=" + keys}, exitOK, "matched an ALLOW policy"},
		{"keys not given", []string{"-H", "Authorization: Bearer " + bob}, exitDenied, "Jwks remote fetch is failed"},
		{"forged", []string{"-H", "Authorization: Bearer " + inline.Token(`{"iss":"j","sub":"bob"}`), "--jwks", "https://keys/?a=b=" + keys}, exitDenied, "Jwks doesn't have key to match kid or alg from Jwt"},
		{"no such file", []string{"--jwks", "https://keys/?a=b=" + keys + ".none"}, exitFailed, ""},
		{"not keys", []string{"--jwks", "https://keys/?a=b=" + documents}, exitFailed, ""},
		{"no file", []string{"--jwks", "https://keys"}, exitFailed, ""},
		{"no time", []string{"--time", "noon"}, exitFailed, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs strings.Builder
			code := run(append(append([]string{"authz", "-f", documents}, tt.args...), "http://web/"), &out, &errs)
			var v verdict
			if out.Len() > 0 {
				if err := json.Unmarshal([]byte(out.String()), &v); err != nil {
					t.Fatal(err)
				}
			}
			if code != tt.code || v.Reason != tt.reason {
				t.Errorf("got %d %q, want %d %q; %s", code, v.Reason, tt.code, tt.reason, &errs)
			}
		})
	}
}
