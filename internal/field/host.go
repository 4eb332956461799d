package field

import (
	"bufio"
	"bytes"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"
)

// ASCII returns an authority in Punycode, as it is sent and as documents name it. An authority that cannot be sent is returned unchanged.
func ASCII(authority string) string {
	if strings.IndexFunc(authority, func(r rune) bool { return r >= utf8.RuneSelf }) < 0 {
		return authority
	}
	// net/http does the conversion, but does not export it otherwise.
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
