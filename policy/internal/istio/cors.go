package istio

import (
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/cors"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

// corsMethods are the methods that Istio knows in a CORS policy.
var corsMethods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"}

func (c check) cors(r *HTTPRoute, at string) {
	p := r.CorsPolicy
	if p == nil {
		return
	}
	at += ".corsPolicy"
	for i, origin := range p.AllowOrigins {
		at := yamldoc.Index(at+".allowOrigins", i)
		if origin.any() || origin.Exact != nil && *origin.Exact == "" {
			c.Errorf(at, "must not be empty: set exact, prefix or regex")
			continue
		}
		c.stringMatch(&origin, at)
	}
	if i := slices.Index(p.AllowOrigin, ""); i >= 0 {
		c.Errorf(yamldoc.Index(at+".allowOrigin", i), "must not be empty")
	} else if len(p.AllowOrigin) > 0 {
		c.Warnf(at+".allowOrigin", "deprecated: use allowOrigins")
		if len(p.AllowOrigins) > 0 {
			c.Warnf(at+".allowOrigin", "has no effect: allowOrigins takes its place")
		}
	}
	for i, method := range p.AllowMethods {
		if !slices.Contains(corsMethods, method) {
			c.Errorf(yamldoc.Index(at+".allowMethods", i), "%q is not one of %s", method, strings.Join(corsMethods, ", "))
		}
	}
	c.fieldNames(p.AllowHeaders, at+".allowHeaders")
	c.fieldNames(p.ExposeHeaders, at+".exposeHeaders")
	if c.that(wrongDuration(p.MaxAge), at, ".maxAge") && p.MaxAge.Duration%time.Second != 0 {
		c.Errorf(at+".maxAge", "%v is not a whole number of seconds, which is all that the header can say", p.MaxAge.Duration)
	}
	if c.idle || c.Failed() {
		return
	}
	c.idleCORS(r, at)
}

// idleCORS warns about what a policy does not do, or does to everybody.
func (c check) idleCORS(r *HTTPRoute, at string) {
	fromSome := func(m HTTPMatchRequest) bool {
		return m.atGateways() || len(m.Gateways) == 0 && (len(m.SourceLabels) > 0 || m.SourceNamespace != "")
	}
	config, p := r.CORS(), r.CorsPolicy
	switch {
	case config == nil:
		c.Warnf(at, "has no effect: a route with redirect or directResponse sends no request to a server")
		return
	case len(r.Match) > 0 && !slices.ContainsFunc(r.Match, func(m HTTPMatchRequest) bool { return !fromSome(m) }):
		c.Warnf(at, "has no effect: where a request arrives, the labels and the namespace of its sender are not known, and all matches ask for them")
	case len(config.Origins) == 0 && r.Delegate == nil:
		c.Warnf(at+".allowOrigins", "missing: no origin is allowed")
	}
	config.Mistakes(func(field string, i int, message string) {
		at := at + "." + field
		switch {
		case field == "allowOrigins" && len(p.AllowOrigins) == 0:
			at = yamldoc.Index(strings.TrimSuffix(at, "s"), i)
		case i >= 0:
			at = yamldoc.Index(at, i)
		}
		c.Warnf(at, "%s", message)
	})
}

// fieldNames checks names of header fields.
func (c check) fieldNames(names []string, at string) {
	for i, name := range names {
		if !field.IsToken(name) {
			c.Errorf(yamldoc.Index(at, i), "%q is not a header name", name)
		}
	}
}

// HasCORS reports whether the document has a CORS policy in a route for the mesh.
func (vs *VirtualService) HasCORS() bool {
	return slices.ContainsFunc(vs.Spec.HTTP, func(r HTTPRoute) bool { return r.CORS() != nil && !r.AtGateways() })
}

// BySender reports whether a match depends on who sends the request.
func (vs *VirtualService) BySender() bool {
	return slices.ContainsFunc(vs.Spec.HTTP, func(r HTTPRoute) bool {
		return slices.ContainsFunc(r.Match, func(m HTTPMatchRequest) bool { return len(m.SourceLabels) > 0 || m.SourceNamespace != "" })
	})
}

// CORS translates the CORS policy of the route, which must have passed Check. It is nil if requests have none.
func (r *HTTPRoute) CORS() *cors.Config {
	p := r.CorsPolicy
	if p == nil || r.Redirect != nil || r.DirectResponse != nil {
		return nil
	}
	out := &cors.Config{
		Methods: p.AllowMethods, Headers: p.AllowHeaders, Expose: p.ExposeHeaders,
		MaxAge:      p.MaxAge.Duration,
		Credentials: p.AllowCredentials != nil && *p.AllowCredentials,
	}
	if p.UnmatchedPreflights == "IGNORE" {
		out.Unmatched = cors.Ignore
	}
	if len(p.AllowOrigins) == 0 {
		for _, origin := range p.AllowOrigin {
			out.Origins = append(out.Origins, cors.Match{Kind: cors.Exact, Value: origin})
		}
	}
	for _, o := range p.AllowOrigins {
		switch {
		case o.Exact != nil:
			out.Origins = append(out.Origins, cors.Match{Kind: cors.Exact, Value: *o.Exact})
		case o.Prefix != nil:
			out.Origins = append(out.Origins, cors.Match{Kind: cors.Prefix, Value: *o.Prefix})
		case o.Regex != nil:
			out.Origins = append(out.Origins, cors.Match{Kind: cors.Regex, Value: *o.Regex})
		}
	}
	return out
}
