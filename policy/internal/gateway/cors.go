package gateway

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/cors"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

const (
	maxCORS        = 64
	maxCORSMethods = 9
	defaultMaxAge  = 5 // seconds
)

// origins has the form of the origins that a filter may name: "*", or a scheme and a host, whose first label may be a star, with a port.
var origins = regexp.MustCompile(`^(?:\*|https?://(?:\*|(?:\*\.)?(?:[A-Za-z0-9-]+\.)*[A-Za-z0-9-]+)(?::[0-9]{1,5})?)$`)

var corsMethods = []string{"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "*"}

// cors checks a filter for requests of other origins.
func (c check) cors(f *HTTPCORSFilter, at string) {
	if f == nil {
		return
	}
	c.corsList(f.AllowOrigins, maxCORS, at+".allowOrigins", true, func(origin string) string {
		if len(origin) > 253 || !origins.MatchString(origin) {
			return `is not an origin: write "*", or http or https with a host, such as https://*.example.com`
		}
		return ""
	})
	c.corsList(f.AllowMethods, maxCORSMethods, at+".allowMethods", true, func(method string) string {
		if !slices.Contains(corsMethods, method) {
			return "is not one of " + strings.Join(corsMethods, ", ")
		}
		return ""
	})
	name := func(name string) string {
		if !field.IsToken(name) {
			return "is not the name of a header"
		}
		return ""
	}
	c.corsList(f.AllowHeaders, maxCORS, at+".allowHeaders", true, name)
	c.corsList(f.ExposeHeaders, maxCORS, at+".exposeHeaders", false, name)
	if f.MaxAge != nil && *f.MaxAge < 1 {
		c.Errorf(at+".maxAge", "%d is not a number of seconds: it must be at least 1", *f.MaxAge)
	}
	if c.Failed() {
		return
	}
	config := f.translate()
	if len(config.Origins) == 0 {
		c.Warnf(at+".allowOrigins", "missing: no origin is allowed")
	}
	config.Mistakes(func(field string, i int, message string) {
		at := at + "." + field
		if i >= 0 {
			at = yamldoc.Index(at, i)
		}
		c.Warnf(at, "%s", message)
	})
}

// corsList checks a list of different values. With alone, a star must be the only one.
func (c check) corsList(list []string, most int, at string, alone bool, wrong func(string) string) {
	c.most(at, len(list), most)
	for i, value := range list {
		switch message := wrong(value); {
		case message != "":
			c.Errorf(yamldoc.Index(at, i), "%q %s", value, message)
		case alone && value == "*" && len(list) > 1:
			c.Errorf(yamldoc.Index(at, i), `"*" stands for all: remove the others`)
		case slices.Index(list, value) < i:
			c.Errorf(yamldoc.Index(at, i), "%q is there before: remove one", value)
		}
	}
}

// corsParents checks that a rule with a filter for requests of other origins is known where they arrive.
func (c check) corsParents(r *HTTPRoute, rule *HTTPRouteRule, at string) {
	for i := range rule.Filters {
		if rule.Filters[i].CORS == nil {
			continue
		}
		at := yamldoc.Index(at, i) + ".cors"
		if groupOf(&r.Object) == LinkerdGroup {
			c.Errorf(at, "routes of %s have no such filter: write a route of %s", LinkerdGroup, Group)
		}
		for _, p := range r.Parents() {
			if p.Namespace != r.Namespace() {
				c.Errorf(at, "acts where requests arrive, and a route for callers of the namespace %s alone is not in force there: write it in a route of the namespace %s",
					r.Namespace(), p.Namespace)
			}
		}
	}
}

// HasCORS reports whether some rule has a filter for requests of other origins.
func (r *HTTPRoute) HasCORS() bool {
	return slices.ContainsFunc(r.Spec.Rules, func(rule HTTPRouteRule) bool { return rule.cors() != nil })
}

// HasCORS implements [Document]. Such routes have no filters of this kind.
func (r *GRPCRoute) HasCORS() bool { return false }

// cors returns what the rule says about requests of other origins, or nil.
func (r *HTTPRouteRule) cors() *cors.Config {
	if r.redirect() != nil {
		return nil
	}
	for i := range r.Filters {
		if f := r.Filters[i].CORS; f != nil {
			return f.translate()
		}
	}
	return nil
}

func (f *HTTPCORSFilter) translate() *cors.Config {
	out := &cors.Config{
		Methods: f.AllowMethods, Headers: f.AllowHeaders, Expose: f.ExposeHeaders,
		MaxAge:      defaultMaxAge * time.Second,
		Credentials: f.AllowCredentials != nil && *f.AllowCredentials,
		Unmatched:   cors.Withhold,
	}
	if f.MaxAge != nil {
		out.MaxAge = time.Duration(*f.MaxAge) * time.Second
	}
	for _, origin := range f.AllowOrigins {
		out.Origins = append(out.Origins, originMatch(origin))
	}
	return out
}

// originMatch translates an origin. Browsers send it in lower case and without the default port of its scheme.
func originMatch(origin string) cors.Match {
	origin = strings.ToLower(origin)
	if scheme, host, ok := strings.Cut(origin, "://"); ok {
		host = strings.TrimSuffix(host, map[string]string{"http": ":80", "https": ":443"}[scheme])
		origin = scheme + "://" + host
		if rest, wild := strings.CutPrefix(host, "*"); wild {
			return cors.Match{Kind: cors.Regex, Value: scheme + "://[^/:,]+" + regexp.QuoteMeta(rest)}
		}
	}
	return cors.Match{Kind: cors.Exact, Value: origin}
}
