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
