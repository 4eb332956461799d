package route

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/internal/reply"
)

// ErrPath is wrapped by the error of a request whose path is not valid once it is rewritten. The request is not sent.
var ErrPath = refusal.New("route: invalid path after rewriting")

// pathRewrite is the compiled part of a [Rewrite] that concerns the path.
type pathRewrite struct {
	uri     string
	pattern *regexp.Regexp
	to      string // in the syntax of regexp.Expand
}

func (w *pathRewrite) none() bool {
	return w.uri == "" && w.pattern == nil
}

// apply returns the path with its first span bytes, or all of it, replaced.
func (w *pathRewrite) apply(path string, span int) string {
	switch {
	case w.pattern != nil:
		return w.pattern.ReplaceAllString(path, w.to)
	case w.uri == "":
		return path
	}
	return replaceStart(path, span, w.uri)
}

func replaceStart(path string, span int, with string) string {
	if span == whole || span >= len(path) {
		return with
	}
	return with + path[span:]
}

func compileRewrite(r *Rewrite, report reporter) pathRewrite {
	var w pathRewrite
	if r.Authority != "" && !validAuthority(r.Authority) {
		report("Authority", fmt.Errorf("%q is not an authority", r.Authority))
	}
	switch {
	case r.Pattern == "" && r.Substitution == "":
		if err := checkPath(r.URI); err != nil && r.URI != "" {
			report("URI", err)
		}
		w.uri = r.URI
	case r.URI != "":
		report("Pattern", errors.New("URI is set too"))
	case r.Pattern == "" || r.Substitution == "":
		report("Pattern", errors.New("only Pattern and Substitution together make sense"))
	default:
		var err error
		if w.pattern, err = regexp.Compile(r.Pattern); err != nil {
			report("Pattern", err)
			break
		}
		if w.to, err = expandSyntax(r.Substitution, w.pattern.NumSubexp()); err != nil {
			report("Substitution", err)
		}
	}
	return w
}

func checkPath(s string) error {
	if !strings.HasPrefix(s, "/") {
		return fmt.Errorf("%q does not start with a slash", s)
	}
	if strings.ContainsAny(s, "?#") {
		return fmt.Errorf("%q has a query or a fragment", s)
	}
	if _, err := url.PathUnescape(s); err != nil {
		return err
	}
	return nil
}

// expandSyntax turns a substitution of RE2 (\1 for a group, \\ for a backslash) into one of regexp.Expand.
func expandSyntax(s string, groups int) (string, error) {
	if strings.ContainsAny(s, "?#") {
		return "", fmt.Errorf("%q has a query or a fragment", s)
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			b.WriteString("$$")
		case c != '\\':
			b.WriteByte(c)
		case i+1 == len(s):
			return "", fmt.Errorf("%q ends in a backslash", s)
		default:
			i++
			switch d := s[i]; {
			case d == '\\':
				b.WriteByte('\\')
			case d < '0' || d > '9':
				return "", fmt.Errorf(`%q has \%c, which means nothing`, s, d)
			case int(d-'0') > groups:
				return "", fmt.Errorf(`%q has \%c, but the pattern has %d groups`, s, d, groups)
			default:
				fmt.Fprintf(&b, "${%c}", d)
			}
		}
	}
	return b.String(), nil
}

// setPath makes escaped the path of u, on the wire and as seen by u.Path.
func setPath(u *url.URL, escaped string) error {
	if !strings.HasPrefix(escaped, "/") {
		return fmt.Errorf("%w: %q does not start with a slash", ErrPath, escaped)
	}
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPath, err)
	}
	u.Path, u.RawPath, u.Opaque = path, "", ""
	if u.EscapedPath() != escaped {
		u.RawPath = escaped // ignored by url.URL if it holds what must be escaped
	}
	return nil
}

func validAuthority(s string) bool {
	u, err := url.Parse("http://" + s + "/")
	return err == nil && s != "" && u.Host == s && u.Path == "/" && u.User == nil && !strings.ContainsAny(s, "%\\")
}

// Rewrites reports whether [Backend.Rewrite] changes anything. If not, a request need not be cloned for it.
func (b *Backend) Rewrites() bool {
	return b.Authority != "" || b.Request != nil || !b.rule.path.none()
}

// Rewrite edits headers, authority and path of out, as the route and the destination have it. The match is the one that
// [Table.Match] returned for the request. URL and Header of out are changed in place: they must not be the caller's.
// The error wraps [ErrPath].
func (b *Backend) Rewrite(out *http.Request, match int) error {
	// Header values may refer to the authority and the path, which Envoy rewrites after them.
	if b.Request != nil {
		if out.Header == nil {
			out.Header = make(http.Header)
		}
		view := NewRequest(out)
		b.Request.Apply(out.Header, &view)
		if _, ok := out.Header["User-Agent"]; !ok && b.dropsUserAgent {
			out.Header["User-Agent"] = nil // or else net/http sends its own
		}
	}
	if b.Authority != "" {
		out.Host = b.Authority
	}
	if b.rule.path.none() {
		return nil
	}
	return setPath(out.URL, b.rule.RewritePath(escapedPath(out.URL), match))
}

// RewritePath returns an escaped path, without query, as the destination gets it. The match is the one that
// [Table.Match] returned for the path.
func (rule *Rule) RewritePath(path string, match int) string {
	return rule.path.apply(path, rule.span(match))
}

// Respond returns the response of a route that answers by itself, with [Route.Redirect] or [Route.Direct], and nil for
// any other route. The match is the one that [Table.Match] returned for req. It leaves req and its body alone.
func (rule *Rule) Respond(req *http.Request, match int) *http.Response {
	if rule.Route.Redirect == nil && rule.Route.Direct == nil {
		return nil
	}
	return rule.answer(req, match)
}

// answer is apart from Respond so that a request that is sent on does not pay for its view.
func (rule *Rule) answer(req *http.Request, match int) *http.Response {
	view := NewRequest(req)
	var resp *http.Response
	if redirect := rule.Route.Redirect; redirect != nil {
		resp = reply.New(req, cmp.Or(redirect.Status, http.StatusMovedPermanently), nil)
		resp.Header["Location"] = []string{redirect.location(&view, rule.span(match))}
	} else {
		resp = reply.New(req, rule.Route.Direct.Status, rule.Route.Direct.Body)
	}
	rule.response.Apply(resp.Header, &view)
	return resp
}

// location is built as Envoy does it.
func (d *Redirect) location(r *Request, span int) string {
	scheme := cmp.Or(d.Scheme, r.Scheme)
	host, port := splitPort(r.Authority)
	if d.Authority != "" {
		host, port = d.Authority, ""
	} else if scheme != r.Scheme && port != "" && port == strconv.Itoa(defaultPort(r.Scheme)) {
		port = "" // the default of the scheme that is left behind
	}
	switch {
	case d.Port != 0:
		port = elided(d.Port, scheme)
	case d.DerivePort == FromRequest:
		port = elided(r.Port, scheme)
	case d.DerivePort == FromProtocol:
		port = ""
	}
	if port != "" {
		host += ":" + port
	}

	path, query := r.Path, r.RawQuery
	switch {
	case d.PrefixRewrite != "":
		path = replaceStart(path, span, d.PrefixRewrite)
	case d.URI != "":
		path = d.URI
		if strings.Contains(path, "?") {
			query = "" // the redirect's own query wins
		}
	}
	if query != "" {
		path += "?" + query
	}
	return scheme + "://" + host + path
}

// splitPort cuts the port off an authority. What is left keeps the brackets of an IPv6 address.
func splitPort(authority string) (host, port string) {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.HasSuffix(authority, "]") {
		return authority, ""
	}
	return authority[:i], authority[i+1:]
}

// elided returns a port as it stands in a URL: the scheme's default is left out.
func elided(port int, scheme string) string {
	if port == 0 || port == defaultPort(scheme) {
		return ""
	}
	return strconv.Itoa(port)
}
