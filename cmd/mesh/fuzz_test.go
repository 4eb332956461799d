package main

import (
	"encoding/json"
	"testing"
)

// FuzzRoute: whatever the request, there is an answer in JSON or an error.
func FuzzRoute(f *testing.F) {
	f.Add("GET", "version: v2", "a=b", "http://shop/users/a%20b/c?x=%zz")
	f.Add("POST", "Host: [::1]:80", "a=,b=c", "https://shop.default.:8080//api/cart%2F")
	f.Add("", ":", "=", "http:opaque")
	f.Add("M", "Host: SHOP", "a", "http://user:secret@shop:99999/strip?#f")
	f.Fuzz(func(t *testing.T, method, header, labels, url string) {
		args := []string{"route", "-f", "testdata/shop.yaml", "-X", method, "-H", header, "-l", labels, "--", url}
		code, stdout, stderr := command(args...)
		switch {
		case code == 0 && json.Valid([]byte(stdout)) && stderr == "":
		case code == 2 && stdout == "" && stderr != "":
		default:
			t.Errorf("mesh %q = %d, printed %q and as errors %q", args, code, stdout, stderr)
		}
	})
}

// FuzzAuthz: whatever the request, it is allowed, denied, or a mistake in the arguments.
func FuzzAuthz(f *testing.F) {
	f.Add("GET", "X-Canary: yes", "cluster.local/ns/default/sa/web", "http://shop/public/a")
	f.Add("POST", "Host: api.internal", "", "https://shop:8443//admin/..%2f;x?y#z")
	f.Add("", "Content-Length: x", "spiffe://a", "http://[::1]:9000\\admin")
	f.Add("CONNECT", "X-Forwarded-For: a, 1.2.3.4", "/", "HTTP://user@shop?\x00")
	f.Fuzz(func(t *testing.T, method, header, principal, url string) {
		args := []string{"authz", "-f", "testdata/access.yaml", "-l", "app=shop", "-X", method, "-H", header,
			"--principal", principal, "--trusted-hops", "1", "--", url}
		code, stdout, stderr := command(args...)
		switch {
		case (code == 0 || code == 3) && json.Valid([]byte(stdout)) && stderr == "":
		case code == 2 && stdout == "" && stderr != "":
		default:
			t.Errorf("mesh %q = %d, printed %q and as errors %q", args, code, stdout, stderr)
		}
	})
}
