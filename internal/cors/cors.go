// Package cors decides about requests that web pages of other origins make, as Envoy's CORS filter does. It knows nothing of documents,
// routes and connections.
package cors

import (
	"cmp"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Config is a CORS policy.
type Config struct {
	// Origins are those whose pages may read responses: an origin is allowed if any of them matches it.
	Origins []Match

	// Methods and Headers are those that a page may use, and Expose are the headers of responses that it may read. "*" as the only method or
	// header stands for those that a preflight asks for.
	Methods, Headers, Expose []string

	// MaxAge is how long a browser may remember the answer to a preflight, in whole seconds. 0 leaves that to the browser.
	MaxAge time.Duration

	// Credentials lets pages send cookies and other credentials.
	Credentials bool

	// Unmatched says what becomes of a preflight of an origin that is not allowed. The zero value is Forward.
	Unmatched Unmatched
}

// Kind says how a [Match] compares.
type Kind uint8

// The kinds of comparison.
const (
	Exact  Kind = iota // compares the whole origin
	Prefix             // compares its start
	Regex              // an RE2 expression that must match the whole origin
)

// Match is a condition on an origin. As in Envoy, one that takes the text "*" takes every origin.
type Match struct {
	Kind  Kind
	Value string
}

// Unmatched says what becomes of a preflight of an origin that is not allowed.
type Unmatched uint8

// What may become of it.
const (
	Forward  Unmatched = iota // the handler answers it
	Ignore                    // it is answered as if the origin were allowed, but without saying so
	Withhold                  // it is answered without a word about what is allowed
)

// maxOrigin is the length of the longest origin that can be allowed. That of a browser is a scheme, a host of at most 253 characters and a
// port; what is longer only costs time, a third of a second for 1 MB and a common expression.
const maxOrigin = 512

// Policy is a compiled [Config]. It is immutable and safe for concurrent use.
type Policy struct {
	config  Config
	all     bool // every origin is allowed
	regexes []*regexp.Regexp

	// The values of the fields of responses; nil for those that are not set.
	methods, headers, expose, age, credentials []string
}

var allowed = []string{"true"}

// New compiles a policy. The slices of the Config must not be changed afterwards.
func New(config Config) (*Policy, error) {
	p := &Policy{config: config}
	for _, o := range config.Origins {
		if o.Kind == Regex {
			_, alone := regexp.Compile(o.Value) // without the group, so that "a)|(b" is an error
			re, err := regexp.Compile(`\A(?:` + o.Value + `)\z`)
			if err = cmp.Or(alone, err); err != nil { // the group may be one too many
				return nil, fmt.Errorf("cors: %w", err)
			}
			p.regexes = append(p.regexes, re)
		}
	}
	p.all = p.matches("*")
	value := func(list []string) []string {
		if len(list) == 0 {
			return nil
		}
		return []string{strings.Join(list, ",")}
	}
	p.methods, p.headers, p.expose = value(config.Methods), value(config.Headers), value(config.Expose)
	if config.MaxAge > 0 {
		p.age = []string{strconv.FormatInt(int64(config.MaxAge/time.Second), 10)}
	}
	if config.Credentials {
		p.credentials = allowed
	}
	return p, nil
}

// Allows reports whether pages of an origin may read responses.
func (p *Policy) Allows(origin string) bool {
	return len(origin) <= maxOrigin && (p.all || p.matches(origin))
}

func (p *Policy) matches(origin string) bool {
	for _, o := range p.config.Origins {
		switch {
		case o.Kind == Exact && origin == o.Value, o.Kind == Prefix && strings.HasPrefix(origin, o.Value):
			return true
		}
	}
	return slices.ContainsFunc(p.regexes, func(re *regexp.Regexp) bool { return re.MatchString(origin) })
}

// Visit is a request that a page of some origin makes, under a policy.
type Visit struct {
	policy    *Policy
	origin    string
	allowed   bool
	preflight bool
	method    []string // that a preflight asks for
	headers   []string // those that it asks for, in one value; nil if it asks for none
}

// Visit returns the visit that a request is. It reports false for a request without an origin, about which the policy says nothing. The
// visit does not refer to the header.
func (p *Policy) Visit(method string, h http.Header) (v Visit, ok bool) {
	origin := joined(h["Origin"])
	if origin == "" {
		return v, false
	}
	v = Visit{policy: p, origin: origin, allowed: p.Allows(origin)}
	if asked := joined(h["Access-Control-Request-Method"]); method == http.MethodOptions && asked != "" {
		v.preflight, v.method = true, []string{asked}
		if headers := joined(h["Access-Control-Request-Headers"]); headers != "" {
			v.headers = []string{headers}
		}
	}
	return v, true
}

// joined returns the values of a field as one, as Envoy has them.
func joined(values []string) string {
	if len(values) == 1 {
		return values[0]
	}
	return strings.Join(values, ",")
}

// Ends reports whether the policy answers the request: it is a preflight, and ends with status 200 and the header that Edit makes.
func (v *Visit) Ends() bool {
	return v.preflight && (v.allowed || v.policy.config.Unmatched != Forward)
}

// Edit sets the fields that the policy has for the header of the response, in place of those that a handler has set. To call it twice is
// to call it once.
func (v *Visit) Edit(h http.Header) {
	vary(h)
	p := v.policy
	if v.allowed {
		set(h, "Access-Control-Allow-Origin", []string{v.origin})
	}
	switch {
	case v.Ends() && (v.allowed || p.config.Unmatched == Ignore):
		set(h, "Access-Control-Allow-Credentials", p.credentials)
		set(h, "Access-Control-Allow-Methods", asked(p.methods, v.method))
		set(h, "Access-Control-Allow-Headers", asked(p.headers, v.headers))
		set(h, "Access-Control-Max-Age", p.age)
	case v.allowed:
		set(h, "Access-Control-Allow-Credentials", p.credentials)
		set(h, "Access-Control-Expose-Headers", p.expose)
	}
}

// asked returns what is allowed, or what a preflight asks for if everything is.
func asked(allowed, asks []string) []string {
	if len(allowed) == 1 && allowed[0] == "*" {
		return asks
	}
	return allowed
}

// set replaces a field of a header, in whatever spelling a handler has set it, unless the values are nil.
func set(h http.Header, name string, values []string) {
	if values == nil {
		return
	}
	for key := range h {
		if len(key) == len(name) && key != name && strings.EqualFold(key, name) {
			delete(h, key)
		}
	}
	h[name] = values
}

// vary tells caches that the response depends on the origin. Envoy does not.
func vary(h http.Header) {
	const name = "Vary"
	for _, value := range h[name] {
		for field := range strings.SplitSeq(value, ",") {
			if field = strings.TrimSpace(field); field == "*" || strings.EqualFold(field, "Origin") {
				return
			}
		}
	}
	h[name] = append(slices.Clip(h[name]), "Origin")
}
