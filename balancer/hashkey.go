package balancer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/field"
)

// KeySource is where the key of a call comes from.
type KeySource uint8

const (
	NoKey       KeySource = iota // the caller of Pick provides its own hashes, or none
	HeaderKey                    // a request header, or :authority, :path, :method or :scheme; several values count together
	CookieKey                    // a cookie of the request
	SourceIPKey                  // the IP address of the caller
	QueryKey                     // the first value of a query parameter, whose name is case-sensitive
)

// HashKey says where the key of a call is found. A call without a key goes to a random endpoint. The zero value is no key.
type HashKey struct {
	// Source is where the key comes from. The zero value is [NoKey].
	Source KeySource

	// Name is the name of the header, the cookie or the query parameter.
	Name string

	// SourceIP is the address of this process. It is the key of requests that have none of their own: a request that a
	// server received and forwards has its sender's address in RemoteAddr. It requires SourceIPKey. Empty means that such
	// requests have no key.
	SourceIP string

	// Generate makes a cookie for calls that have none, and sets it on the response. Without Generate, such calls have no
	// key. It requires CookieKey; TTL, Path and Attributes require Generate.
	Generate bool

	// TTL is how long the generated cookie is kept, in whole seconds. 0 means until the end of the session.
	TTL time.Duration

	// Path is the path of the generated cookie. Empty means none is set.
	Path string

	// Attributes are further attributes of the generated cookie, each as in Set-Cookie: "SameSite=Strict", "Secure".
	Attributes []string
}

func (k HashKey) check() error {
	named := k.Source == HeaderKey || k.Source == CookieKey || k.Source == QueryKey
	switch {
	case k.Source > QueryKey:
		return fmt.Errorf("unknown source %d", k.Source)
	case named && k.Name == "":
		return errors.New("no name")
	case k.Source == HeaderKey && !isHeader(k.Name):
		return fmt.Errorf("%q is not the name of a header", k.Name)
	case !named && k.Name != "":
		return fmt.Errorf("name %q is of nothing", k.Name)
	case k.SourceIP != "" && k.Source != SourceIPKey:
		return errors.New("SourceIP is only for SourceIPKey")
	case k.SourceIP != "" && net.ParseIP(k.SourceIP) == nil:
		return fmt.Errorf("SourceIP %q is not an IP address", k.SourceIP)
	case k.Generate && k.Source != CookieKey:
		return errors.New("only cookies can be generated")
	case !k.Generate && (k.TTL != 0 || k.Path != "" || len(k.Attributes) > 0):
		return errors.New("TTL, Path and Attributes are only for generated cookies")
	case k.TTL < 0 || k.TTL%time.Second != 0:
		return fmt.Errorf("TTL %v is not in whole seconds", k.TTL)
	case k.Source == CookieKey && (&http.Cookie{Name: k.Name, Value: "x"}).Valid() != nil:
		return fmt.Errorf("%q is not the name of a cookie", k.Name)
	}
	for _, text := range append([]string{k.Path}, k.Attributes...) {
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' || r == ';' }) {
			return fmt.Errorf("%q has characters that cannot be sent in Path or Attributes", text)
		}
	}
	return nil
}

func isHeader(name string) bool {
	switch strings.ToLower(name) {
	case ":authority", ":path", ":method", ":scheme":
		return true
	}
	return field.IsToken(name)
}

// Of returns the key of r, and false if r has none. It does not look at the body.
func (k HashKey) Of(r *http.Request) (key string, ok bool) {
	switch k.Source {
	case HeaderKey:
		values := r.Header.Values(k.Name)
		switch {
		case strings.HasPrefix(k.Name, ":") || strings.EqualFold(k.Name, "Host"): // net/http keeps them separately
			return pseudoHeader(r, k.Name)
		case len(values) == 1:
			return values[0], true
		}
		return strings.Join(values, ","), len(values) > 0
	case CookieKey:
		c, err := r.Cookie(k.Name)
		if err != nil {
			return "", false
		}
		return c.Value, true
	case SourceIPKey:
		if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
			return host, true
		}
		return k.SourceIP, k.SourceIP != ""
	case QueryKey:
		return queryValue(r.URL.RawQuery, k.Name)
	}
	return "", false
}

// pseudoHeader returns what HTTP/2 would send for r under a name that begins with a colon (RFC 9113, section 8.3.1),
// whatever the protocol; Host is the same as :authority.
func pseudoHeader(r *http.Request, name string) (string, bool) {
	switch strings.ToLower(name) {
	case ":authority", "host":
		if r.Host != "" {
			return r.Host, true
		}
		return r.URL.Host, r.URL.Host != ""
	case ":path":
		return r.URL.RequestURI(), true
	case ":method":
		if r.Method == "" {
			return http.MethodGet, true
		}
		return r.Method, true
	case ":scheme":
		return r.URL.Scheme, r.URL.Scheme != ""
	}
	return "", false
}

// queryValue is url.ParseQuery for one parameter, without the map.
func queryValue(query, name string) (string, bool) {
	for pair := range strings.SplitSeq(query, "&") {
		key, value, _ := strings.Cut(pair, "=")
		if k, err := url.QueryUnescape(key); err != nil || k != name || pair == "" {
			continue
		}
		if v, err := url.QueryUnescape(value); err == nil {
			return v, true
		}
	}
	return "", false
}

// NewCookie returns a new cookie for a call that has none, as the key of that call and as the Set-Cookie header of its
// response. It returns false unless Generate is set.
func (k HashKey) NewCookie() (key, setCookie string, ok bool) {
	if !k.Generate {
		return "", "", false
	}
	key = rand.Text()
	var b strings.Builder
	b.WriteString(k.Name + "=" + key)
	if k.TTL > 0 {
		b.WriteString("; Max-Age=" + strconv.FormatInt(int64(k.TTL/time.Second), 10))
	}
	if k.Path != "" {
		b.WriteString("; Path=" + k.Path)
	}
	for _, attribute := range k.Attributes {
		b.WriteString("; " + attribute)
	}
	b.WriteString("; HttpOnly")
	return key, b.String(), true
}
