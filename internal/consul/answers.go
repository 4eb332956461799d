package consul

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"unicode"
)

const (
	mostMessage = 1 << 10   // bytes of the text of an error
	mostRefusal = 256 << 10 // bytes of the refusal of a transaction, which names each operation
	mostObjects = 1 << 19   // objects of JSON in an answer: an empty one takes two bytes, and a hundred times as many in memory
)

// mostAnswer returns the maximum number of bytes of an answer.
func mostAnswer(of *url.URL) int64 {
	under := func(prefix string) bool { return strings.Contains(of.Path, "/v1/"+prefix) } // the address of the agent may have a path
	switch {
	case under("kv/") && of.Query().Has("recurse"):
		return 128 << 20 // a set of documents may have 64 MiB, which are 86 MiB in base64
	case under("health/"), under("catalog/"):
		return 64 << 20 // 30,000 instances with 2 kB each
	case under("config/"), under("kv/"), under("connect/intentions/"):
		return 32 << 20
	}
	return 4 << 20 // a key or an entry has half a megabyte at most
}

// check prepares an answer for the official client. That client reads bodies of any length, puts the whole body of an error into its text,
// and ignores all headers if one of them is missing or invalid.
func check(req *http.Request, resp *http.Response) {
	if _, err := strconv.ParseUint(resp.Header.Get(indexHeader), 10, 64); err != nil {
		resp.Header.Del(indexHeader)
	}
	if n, err := strconv.ParseUint(resp.Header.Get(contactHeader), 10, 63); err != nil || n > mostContact {
		resp.Header.Set(contactHeader, "0")
	}
	switch {
	case resp.StatusCode == http.StatusOK:
		most := mostAnswer(req.URL)
		resp.Body = &bounded{ReadCloser: resp.Body, most: most, left: most, objects: mostObjects}
	case resp.StatusCode == http.StatusConflict && strings.HasSuffix(req.URL.Path, "/v1/txn"): // JSON
		resp.Body = &bounded{ReadCloser: resp.Body, most: mostRefusal, left: mostRefusal, objects: mostObjects}
	default:
		resp.Body = &message{ReadCloser: resp.Body, token: req.Header.Get(tokenHeader)}
	}
}

const (
	indexHeader   = "X-Consul-Index"
	contactHeader = "X-Consul-LastContact"
	mostContact   = 1 << 40 // milliseconds
)

// bounded is a body that ends with an error after a number of bytes, or of objects of JSON.
type bounded struct {
	io.ReadCloser
	most, left int64 // bytes
	objects    int   // that are left
}

// Read implements io.Reader.
func (b *bounded) Read(p []byte) (int, error) {
	if b.left >= 0 && int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n := 0
	var err error
	if b.left >= 0 && b.objects >= 0 {
		n, err = b.ReadCloser.Read(p)
		b.left -= int64(n)
		b.objects -= bytes.Count(p[:n], []byte("{"))
	}
	switch { // what was read last does not count, or a decoder would be content with it
	case b.left < 0 && b.most >= 1<<20:
		n, err = 0, fmt.Errorf("the answer is too long: it has more than %d MiB", b.most>>20)
	case b.left < 0:
		n, err = 0, fmt.Errorf("the answer is too long: it has more than %d KiB", b.most>>10)
	case b.objects < 0:
		n, err = 0, fmt.Errorf("the answer is too long: it has more than %d objects", mostObjects)
	}
	return n, err
}

// message is the body of an error. Only its beginning is read, as one line and without the token of the request.
type message struct {
	io.ReadCloser
	token string
	text  *bytes.Reader
}

// Read implements io.Reader.
func (m *message) Read(p []byte) (int, error) {
	if m.text == nil {
		most := mostMessage + len(m.token)
		data, err := io.ReadAll(io.LimitReader(m.ReadCloser, int64(most)))
		if err != nil && len(data) == 0 {
			return 0, err
		}
		text := clean(string(data))
		if m.token != "" {
			text = strings.ReplaceAll(text, m.token, "TOKEN")
		}
		if err != nil || len(data) == most { // it may end with a part of the token
			text = text[:max(0, len(text)-len(m.token))]
		}
		m.text = bytes.NewReader([]byte(text[:min(len(text), mostMessage)]))
	}
	return m.text.Read(p)
}

// clean makes one line of text that can be printed.
func clean(text string) string {
	text = strings.Join(strings.Fields(strings.ToValidUTF8(text, "?")), " ")
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
}

// noRedirect refuses redirects: the client would send the token to any host that it is redirected to.
func noRedirect(req *http.Request, _ []*http.Request) error {
	return fmt.Errorf("the agent redirects to %s, which is not followed: the token is for the agent alone", req.URL.Host)
}

// noSecrets returns a function that chooses a proxy like the given one, and refuses a proxy that would see secrets: a token in a request, or
// the key of a certificate in an answer.
func noSecrets(proxy func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	if proxy == nil {
		return nil
	}
	return func(req *http.Request) (*url.URL, error) {
		by, err := proxy(req)
		if err != nil || by == nil || req.URL.Scheme != "http" {
			return by, err
		}
		if req.Header.Get(tokenHeader) == "" && req.Header.Get("Authorization") == "" && !strings.Contains(req.URL.Path, "/connect/ca/leaf/") {
			return by, nil
		}
		return nil, fmt.Errorf("the proxy %s is not asked: it would read the token, or the key of a certificate; use https, or except the agent (NO_PROXY)", by.Host)
	}
}
