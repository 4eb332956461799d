package gateway

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

// content is the field of a filter for one type.
type content struct {
	of, field string
	set       bool
}

func (f *HTTPRouteFilter) contents() []content {
	return []content{
		{"RequestHeaderModifier", "requestHeaderModifier", f.RequestHeaderModifier != nil},
		{"ResponseHeaderModifier", "responseHeaderModifier", f.ResponseHeaderModifier != nil},
		{"RequestMirror", "requestMirror", f.RequestMirror != nil},
		{"RequestRedirect", "requestRedirect", f.RequestRedirect != nil},
		{"URLRewrite", "urlRewrite", f.URLRewrite != nil},
		{"CORS", "cors", f.CORS != nil},
		{"ExternalAuth", "externalAuth", f.ExternalAuth != nil},
		{"ExtensionRef", "extensionRef", f.ExtensionRef != nil},
	}
}

// filters checks the filters of a rule or a backend.
func (c check) filters(list []HTTPRouteFilter, at string) {
	c.most(at, len(list), maxReferred)
	seen := make(map[string]int)
	for i := range list {
		f, at := &list[i], yamldoc.Index(at, i)
		for _, has := range f.contents() {
			switch {
			case has.of == f.Type && !has.set:
				c.Errorf(at+"."+has.field, "missing: a filter of type %s has it", f.Type)
			case has.of != f.Type && has.set:
				c.Errorf(at+"."+has.field, "belongs to a filter of type %s, not %s", has.of, f.Type)
			}
		}
		if first, twice := seen[f.Type]; twice && f.Type != "RequestMirror" && f.Type != "ExtensionRef" {
			c.Errorf(at+".type", "%s is there before, in element %d: use it once", f.Type, first)
		}
		seen[f.Type] = i
		c.headers(f.RequestHeaderModifier, at+".requestHeaderModifier", c.grpc)
		c.headers(f.ResponseHeaderModifier, at+".responseHeaderModifier", false)
		c.mirror(f.RequestMirror, at+".requestMirror")
		c.cors(f.CORS, at+".cors")
		if d := f.RequestRedirect; d != nil {
			c.redirect(d, at+".requestRedirect")
		}
		if w := f.URLRewrite; w != nil {
			c.hostname(w.Hostname, at+".urlRewrite.hostname")
			c.path(w.Path, at+".urlRewrite.path")
		}
	}
}

// headers checks edits of headers. With sent, gRPC sends the result as metadata.
func (c check) headers(h *HTTPHeaderFilter, at string, sent bool) {
	if h == nil {
		return
	}
	where := make(map[string]string) // by name: the list that it is in
	once := func(name, list string, at string) {
		key := strings.ToLower(name)
		switch before := where[key]; {
		case !field.IsToken(name):
			c.Errorf(at, "%q is not the name of a header", name)
		case c.grpc && field.OwnedByGRPC(key):
			c.Errorf(at, "is not enforced: gRPC sets %s itself: remove it", name)
		case sent && list != "remove" && !field.IsMetadata(key):
			c.Errorf(at, "%q is not the name of metadata of gRPC: use letters, digits, hyphens, underscores and dots", name)
		case before == list:
			c.Warnf(at, "has no effect: %s is there before, and the first one counts", name)
		case before != "":
			c.Errorf(at, "%s is in %s, too: do one thing with a header", name, before)
		default:
			where[key] = list
		}
	}
	for _, list := range []struct {
		name    string
		headers []HTTPHeader
	}{{"set", h.Set}, {"add", h.Add}} {
		at := at + "." + list.name
		c.most(at, len(list.headers), maxReferred)
		for i, header := range list.headers {
			once(header.Name, list.name, yamldoc.Index(at, i)+".name")
			if header.Value == "" || strings.ContainsAny(header.Value, "\r\n\x00") {
				c.Errorf(yamldoc.Index(at, i)+".value", "%q is not the value of a header", header.Value)
			} else if sent && !field.IsMetadataValue(strings.ToLower(header.Name), header.Value) {
				c.Errorf(yamldoc.Index(at, i)+".value", "%q cannot be sent with gRPC: use printable characters of ASCII", header.Value)
			}
		}
	}
	c.most(at+".remove", len(h.Remove), maxReferred)
	for i, name := range h.Remove {
		once(name, "remove", yamldoc.Index(at+".remove", i))
	}
}

func (c check) mirror(m *HTTPRequestMirrorFilter, at string) {
	if m == nil {
		return
	}
	c.backend(&m.BackendRef, at+".backendRef")
	if m.Percent != nil && (*m.Percent < 0 || *m.Percent > 100) {
		c.Errorf(at+".percent", "%d is not a percentage: it must be from 0 to 100", *m.Percent)
	}
	if f := m.Fraction; f != nil {
		switch whole := f.whole(); {
		case whole < 1:
			c.Errorf(at+".fraction.denominator", "%d is not positive", whole)
		case f.Numerator < 0 || f.Numerator > whole:
			c.Errorf(at+".fraction.numerator", "%d is not a part of %d", f.Numerator, whole)
		}
	}
}

func (f *Fraction) whole() int32 {
	if f.Denominator == nil {
		return defaultWhole
	}
	return *f.Denominator
}

func (c check) redirect(d *HTTPRequestRedirectFilter, at string) {
	c.hostname(d.Hostname, at+".hostname")
	c.path(d.Path, at+".path")
	c.port(d.Port, at+".port")
	if d.StatusCode != nil && !slices.Contains([]int{301, 302, 303, 307, 308}, *d.StatusCode) {
		c.Errorf(at+".statusCode", "%d is not one of 301, 302, 303, 307 and 308", *d.StatusCode)
	}
}

func (c check) hostname(name, at string) {
	if name != "" && !yamldoc.IsName(name) {
		c.Errorf(at, "%q is not a host name without a port: use lower-case letters, digits, hyphens and dots", name)
	}
}

func (c check) path(p *HTTPPathModifier, at string) {
	if p == nil {
		return
	}
	full := p.Type == "ReplaceFullPath"
	for _, has := range []struct {
		name  string
		value *string
		mine  bool
	}{{"replaceFullPath", p.ReplaceFullPath, full}, {"replacePrefixMatch", p.ReplacePrefixMatch, !full}} {
		switch {
		case has.mine && has.value == nil:
			c.Errorf(at+"."+has.name, "missing: type %s has it", p.Type)
		case !has.mine && has.value != nil:
			c.Errorf(at+"."+has.name, "does not belong to type %s", p.Type)
		case has.value != nil:
			if message := wrongReplacement(*has.value); message != "" {
				c.Errorf(at+"."+has.name, "%s", message)
			}
		}
	}
}

// wrongReplacement returns what is wrong with a path that replaces another, or "".
func wrongReplacement(path string) string {
	switch {
	case path == "":
		return ""
	case !strings.HasPrefix(path, "/"):
		return fmt.Sprintf("%q does not start with a slash", path)
	case !pathCharacters.MatchString(path):
		return fmt.Sprintf("%q has characters that a path must not have unless they are escaped, as in %%20", path)
	}
	return ""
}
