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

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/refusal"
	"github.com/nosidecar/mesh/internal/reply"
)

// errPath is wrapped by the error of a request whose path is invalid after it was rewritten. Such a request is not sent.
var errPath = refusal.New("route: invalid path after rewriting")

// pathRewrite is the compiled path rewrite of a [Rewrite]. A nil one changes nothing.
type pathRewrite struct {
	uri     string
	pattern *regexp.Regexp
	to      string // in the syntax of regexp.Expand
}

// apply returns the rewritten path. span is the length of the prefix that a rewrite by URI replaces, or whole.
func (w *pathRewrite) apply(path string, span int32) string {
	switch {
	case w == nil:
		return path
	case w.pattern != nil:
		return w.pattern.ReplaceAllString(path, w.to)
	}
	return replaceStart(path, span, w.uri)
}

func replaceStart(path string, span int32, with string) string {
	if span == whole || int(span) >= len(path) {
		return with
	}
	return with + path[span:]
}

func compileRewrite(r *Rewrite, report reporter) *pathRewrite {
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
		report("Pattern", errors.New("set Pattern and Substitution together"))
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
	if w.uri == "" && w.pattern == nil {
		return nil
	}
	return &w
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

// expandSyntax converts an RE2 substitution (\1 for a group, \\ for a backslash) to the syntax of regexp.Expand.
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

// setPath sets the path of u, so that both the wire and u.Path have it.
func setPath(u *url.URL, escaped string) error {
	if !strings.HasPrefix(escaped, "/") {
		return fmt.Errorf("%w: %q does not start with a slash", errPath, escaped)
	}
	path, err := url.PathUnescape(escaped)
	if err != nil {
		return fmt.Errorf("%w: %w", errPath, err)
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

// Rewrites reports whether [Backend.Rewrite] changes anything. If not, the request need not be cloned.
func (b *Backend) Rewrites() bool {
	return b.Authority != "" || b.Request != nil || b.rule.path != nil
}

// Rewrite edits the headers, authority and path of out as the route and the destination specify. The match is the one that
// [Table.Match] returned for the request. Rewrite changes out.URL and out.Header in place, so they must not be shared with the
// caller. It returns an error if the path is invalid afterwards: such a request must not be sent.
func (b *Backend) Rewrite(out *http.Request, match int) error {
	// Header values may refer to the authority and the path. Envoy rewrites those after the headers.
	if b.Request != nil {
		if out.Header == nil {
			out.Header = make(http.Header)
		}
		view := NewRequest(out)
		b.Request.Apply(out.Header, &view)
		if _, ok := out.Header["User-Agent"]; !ok && b.dropsUserAgent {
			out.Header["User-Agent"] = nil // otherwise net/http sends its own
		}
	}
	if b.Authority != "" {
		out.Host = b.Authority
	}
	if b.rule.path == nil {
		return nil
	}
	return setPath(out.URL, b.rule.rewritePath(field.SentPath(out.URL), match))
}

// rewritePath returns an escaped path without a query as it is sent to the destination. The match is the one that [Table.Match]
// returned for the path.
func (rule *Rule) rewritePath(path string, match int) string {
	return rule.path.apply(path, rule.span(match))
}

// Respond returns the response of a route with [Route.Redirect] or [Route.Direct], and nil for any other route. The match is the
// one that [Table.Match] returned for req. Respond does not change req or close its body.
func (rule *Rule) Respond(req *http.Request, match int) *http.Response {
	if rule.Route.Redirect == nil && rule.Route.Direct == nil {
		return nil
	}
	return rule.answer(req, match)
}

// answer is separate from Respond so that requests that are sent on do not pay for the view.
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

// location returns the Location header of the redirect, built as Envoy builds it.
func (d *Redirect) location(r *Request, span int32) string {
	scheme := cmp.Or(d.Scheme, r.Scheme)
	host, port := splitPort(r.Authority)
	if d.Authority != "" {
		host, port = d.Authority, ""
	} else if scheme != r.Scheme && port != "" && port == strconv.Itoa(defaultPort(r.Scheme)) {
		port = "" // it was the default of the old scheme
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

// splitPort splits an authority into host and port. The host keeps the brackets of an IPv6 address.
func splitPort(authority string) (host, port string) {
	i := strings.LastIndexByte(authority, ':')
	if i < 0 || strings.HasSuffix(authority, "]") {
		return authority, ""
	}
	return authority[:i], authority[i+1:]
}

// elided returns a port as it appears in a URL, which leaves out the default of the scheme.
func elided(port int, scheme string) string {
	if port == 0 || port == defaultPort(scheme) {
		return ""
	}
	return strconv.Itoa(port)
}
