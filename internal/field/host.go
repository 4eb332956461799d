package field

import (
	"bufio"
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// ASCII returns an authority as it is sent, and as documents name it: in Punycode. What cannot be sent stays as it is.
func ASCII(authority string) string {
	if strings.IndexFunc(authority, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return authority
	}
	// net/http knows how, and has no other function that tells.
	var sent bytes.Buffer
	req := http.Request{Method: http.MethodGet, URL: &url.URL{Scheme: "http", Host: strings.ToLower(authority), Path: "/"}}
	if err := req.Write(&sent); err != nil {
		return authority
	}
	got, err := http.ReadRequest(bufio.NewReader(&sent))
	if err != nil {
		return authority
	}
	return got.Host
}
