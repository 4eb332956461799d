package field_test

import (
	"net/url"
	"testing"

	"github.com/nosidecar/mesh/internal/field"
)

// The path is what net/http sends, which is the escaped path, whichever bytes are in it.
func TestSentPath(t *testing.T) {
	for c := range 256 {
		for _, path := range []string{"/", "/a/b", "/users/42/" + string([]byte{byte(c)}), string([]byte{'/', byte(c)}) + "/of/them", "/a" + string([]byte{byte(c)})} {
			u := &url.URL{Path: path}
			if got, want := field.SentPath(u), u.EscapedPath(); got != want {
				t.Errorf("%q is sent as %q, want %q", path, got, want)
			}
		}
	}
	for _, test := range []struct {
		u    url.URL
		want string
	}{
		{url.URL{}, "/"},
		{url.URL{Path: "*"}, "*"},
		{url.URL{Path: "/a/b", RawPath: "/a%2Fb"}, "/a%2Fb"},
		{url.URL{Path: "/a", RawPath: "/other"}, "/a"}, // which are not the same path
		{url.URL{Opaque: "//host/a?b"}, "/a"},
		{url.URL{Path: "/x", Opaque: "/a%2Fb"}, "/a%2Fb"},
	} {
		if got := field.SentPath(&test.u); got != test.want {
			t.Errorf("%+v is sent as %q, want %q", test.u, got, test.want)
		}
	}
}
