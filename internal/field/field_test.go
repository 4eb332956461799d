package field_test

import (
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/internal/field"
)

func TestIsToken(t *testing.T) {
	for s, want := range map[string]bool{
		"X-Request-Id": true, "a!#$%&'*+-.^_`|~9": true,
		"": false, "a b": false, "a:": false, "é": false, "[a]": false, "{": false, "@": false, "a\x00": false,
	} {
		if got := field.IsToken(s); got != want {
			t.Errorf("IsToken(%q) = %v", s, got)
		}
	}
}

func TestIsValue(t *testing.T) {
	for s, want := range map[string]bool{
		"": true, "a\tb": true, "é": true, "a\nb": false, "a\r": false, "\x00": false, "\x7f": false,
	} {
		if got := field.IsValue(s); got != want {
			t.Errorf("IsValue(%q) = %v", s, got)
		}
	}
}

func TestIsPrintable(t *testing.T) {
	for s, want := range map[string]bool{"": true, " a~": true, "a\tb": false, "a\x7f": false, "é": false, "\xff": false, "a\x00": false} {
		if got := field.IsPrintable(s); got != want {
			t.Errorf("IsPrintable(%q) = %v", s, got)
		}
	}
}

func TestIsMetadata(t *testing.T) {
	for name, want := range map[string]bool{"x-a_b.c-1": true, "": false, "x~a": false, "X-A": false, "é": false, ":path": false} {
		if got := field.IsMetadata(name); got != want {
			t.Errorf("IsMetadata(%q) = %v", name, got)
		}
	}
	for _, tt := range []struct {
		name, value string
		want        bool
	}{{"x-a", "a b~", true}, {"x-a", "", true}, {"x-a", "é", false}, {"x-a", "a\tb", false}, {"x-a-bin", "é\x00", true}} {
		if got := field.IsMetadataValue(tt.name, tt.value); got != tt.want {
			t.Errorf("IsMetadataValue(%q, %q) = %v", tt.name, tt.value, got)
		}
	}
}

func TestIsGRPC(t *testing.T) {
	for s, want := range map[string]bool{
		"application/grpc": true, "application/grpc+proto": true, "application/grpc;charset=utf-8": true,
		"application/grpc-web": false, "application/grpc-web+proto": false, "application/grpcx": false, "": false,
		"text/plain": false,
	} {
		if got := field.IsGRPC(http.Header{"Content-Type": {s}}); got != want {
			t.Errorf("IsGRPC with the type %q = %v", s, got)
		}
	}
	if field.IsGRPC(nil) {
		t.Error("IsGRPC without a type = true")
	}
}

func TestCallsGRPC(t *testing.T) {
	typed := http.Header{"Content-Type": {"application/grpc"}}
	for _, test := range []struct {
		r    http.Request
		want bool
	}{
		{http.Request{Method: "POST", Header: typed}, true},
		{http.Request{Method: "POST"}, false},
		{http.Request{Method: "GET", Header: typed}, false},
		{http.Request{Header: typed}, false},
	} {
		if got := field.CallsGRPC(&test.r); got != test.want {
			t.Errorf("CallsGRPC(%s, %v) = %v", test.r.Method, test.r.Header, got)
		}
	}
}
