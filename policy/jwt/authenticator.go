package jwt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/field"
)

// Authenticator verifies the tokens of requests by a set of rules. It is immutable but for the tokens that it remembers, and safe
// for concurrent use.
type Authenticator struct {
	rules   []*rule         // sorted by issuer: the order in which they are tried
	places  []place         // of all rules, each once
	params  []string        // those that may hold a token
	outputs map[string]bool // the headers that rules set, in their plain spelling
}

// rule is a compiled Rule.
type rule struct {
	Rule
	places    []int // indexes in those of the Authenticator
	audiences []string
	remote    *remoteSet // nil if the rule has its keys
	known     known
}

// New compiles rules. remotes fetches the keys of those that do not have theirs; it may be nil if there are none. Errors of
// several rules are joined.
func New(rules []Rule, remotes *Remotes) (*Authenticator, error) {
	a := &Authenticator{outputs: make(map[string]bool)}
	var errs []error
	for i := range rules {
		r := &rule{Rule: rules[i]}
		if err := r.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("jwt: rule %d: %w", i, err))
			continue
		}
		for _, p := range r.Rule.places() {
			at := slices.Index(a.places, p)
			if at < 0 {
				at = len(a.places)
				a.places = append(a.places, p)
			}
			if p.kind == inParam && !slices.Contains(a.params, p.name) {
				a.params = append(a.params, p.name)
			}
			r.places = append(r.places, at)
		}
		for _, aud := range r.Audiences {
			r.audiences = append(r.audiences, plainAudience(aud))
		}
		if r.PayloadHeader != "" {
			a.outputs[plainName(r.PayloadHeader)] = true
		}
		for _, c := range r.ClaimHeaders {
			a.outputs[plainName(c.Header)] = true
		}
		if source := r.source(); source != (Source{}) {
			if remotes == nil {
				errs = append(errs, fmt.Errorf("jwt: rule %d: its keys must be fetched, and there is nothing that fetches", i))
				continue
			}
			r.remote = remotes.of(source)
		}
		a.rules = append(a.rules, r)
	}
	slices.SortStableFunc(a.rules, func(x, y *rule) int { return strings.Compare(x.Issuer, y.Issuer) })
	return a, errors.Join(errs...)
}

// Sources returns where the keys of the rules are fetched.
func (a *Authenticator) Sources() []Source {
	var all []Source
	for i := range a.rules {
		if source := a.rules[i].source(); source != (Source{}) && !slices.Contains(all, source) {
			all = append(all, source)
		}
	}
	return all
}

// Output reports whether a rule gives the handler something in the header of this name, in any spelling. Such a header of the
// client must be removed from every request, before anything reads it; [Result.Header] does. A nil Authenticator has no rules.
func (a *Authenticator) Output(name string) bool {
	return a != nil && len(a.outputs) > 0 && a.outputs[plainName(name)]
}

// Result is what the tokens of a request say.
type Result struct {
	// Claims are those of the user. They are nil if there is no token.
	Claims *Claims

	// Err says why the request is refused, nil if it is not.
	Err *Error

	rule  *rule   // that gave the claims
	used  []place // where accepted tokens were, that the handler is not to see
	outer *Authenticator
}

// Authenticate looks for the tokens of a request and verifies them. It waits for keys, at most until ctx ends, only where a token
// has a key ID that is not known yet.
func (a *Authenticator) Authenticate(ctx context.Context, r *http.Request, now time.Time) Result {
	result := Result{outer: a}
	if r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		return result // a preflight, which browsers send without a token
	}
	var found [4]sighting
	all := found[:0]
	var texts [4]string
	for i := range a.places {
		for _, text := range a.places[i].tokens(texts[:0], r) {
			all = append(all, sighting{place: i, text: text})
		}
	}
	if len(all) == 0 {
		return result
	}
	if len(all) > maxSightings {
		result.Err = errShape
		return result
	}
	var failure *Error
	for i := range a.rules {
		claims, err := a.rules[i].judge(ctx, a, all, now)
		if claims != nil && result.Claims == nil {
			result.Claims, result.rule = claims, a.rules[i]
		}
		if err != nil && (failure == nil || failure == errIssuer || err != errIssuer) {
			failure = err
		}
	}
	for i := range all {
		if s := &all[i]; s.by == nil {
			result.Err = s.err
		} else if !s.by.Forward {
			if at := s.place; result.used == nil {
				result.used = a.places[at : at+1 : at+1]
			} else {
				result.used = append(result.used, a.places[at])
			}
		}
	}
	if result.Claims == nil {
		result.Err = failure
	}
	if result.Err == nil {
		result.Err = result.checkHeaders()
	}
	if result.Err != nil {
		result.Claims = nil
	}
	return result
}

// Again returns what the rules make of claims that were verified before, perhaps by other rules: the first rule for their issuer and
// audience sets headers. claims may be nil.
func (a *Authenticator) Again(claims *Claims) Result {
	result := Result{outer: a}
	if claims == nil {
		return result
	}
	for _, r := range a.rules {
		if t := claims.token; (r.Issuer == "" || r.Issuer == t.issuer) && t.meant(r.audiences) {
			result.Claims, result.rule = claims, r
			result.Err = result.checkHeaders()
			break
		}
	}
	return result
}

// maxSightings bounds the tokens of a request, each of which may cost a verification by each rule.
const maxSightings = 8

// sighting is a token in a request.
type sighting struct {
	place int
	text  string
	by    *rule  // the first that accepts it
	err   *Error // of the last rule that does not, nil if none was asked

	token *token // once it was read, whichever rule asked
	bad   *Error // why it cannot be
}

// read reads the token once for all rules, and not at all if one of them remembers it.
func (s *sighting) read(a *Authenticator) (*token, *Error) {
	if s.token != nil || s.bad != nil {
		return s.token, s.bad
	}
	for _, r := range a.rules {
		if claims := r.known.get(s.text, r.keys()); claims != nil {
			s.token = claims.token
			return s.token, nil
		}
	}
	s.token, s.bad = read(s.text)
	return s.token, s.bad
}

// judge returns the claims of the first token, in the order of the rule's places, if the rule accepts all that are there.
func (r *rule) judge(ctx context.Context, a *Authenticator, all []sighting, now time.Time) (claims *Claims, failure *Error) {
	for _, place := range r.places {
		for i := range all {
			s := &all[i]
			if s.place != place {
				continue
			}
			c, err := r.accept(ctx, a, s, now)
			if err != nil {
				if s.err == nil || s.err == errIssuer || err != errIssuer {
					s.err = err
				}
				if failure == nil {
					failure = err
				}
				continue
			}
			if s.by == nil {
				s.by = r
			}
			if claims == nil {
				claims = c
			}
		}
	}
	if failure != nil {
		return nil, failure
	}
	return claims, nil
}

// accept verifies one token.
func (r *rule) accept(ctx context.Context, a *Authenticator, s *sighting, now time.Time) (*Claims, *Error) {
	keys := r.keys()
	claims := r.known.get(s.text, keys)
	if claims != nil {
		s.token = claims.token
	}
	t, bad := s.read(a)
	switch {
	case bad != nil:
		return nil, bad
	case r.Issuer != "" && t.issuer != r.Issuer:
		return nil, errIssuer
	case t.current(now) != nil:
		return nil, t.current(now)
	case !t.meant(r.audiences):
		return nil, errAudience
	case claims != nil:
		return claims, nil
	}
	if keys == nil {
		return nil, errNoKeys
	}
	err := keys.verify(t)
	if err == errNoKey && r.remote != nil {
		if newer := r.remote.newer(ctx, keys); newer != keys {
			keys = newer
			err = keys.verify(t)
		}
	}
	if err != nil {
		return nil, err
	}
	t.complete()
	claims = &Claims{token: t, words: r.SpaceDelimited}
	r.known.add(s.text, keys, claims)
	return claims, nil
}

func (r *rule) keys() *Keys {
	if r.remote != nil {
		return r.remote.current()
	}
	return r.Keys
}

// checkHeaders refuses claims that cannot be given to the handler.
func (r *Result) checkHeaders() *Error {
	if r.Claims == nil {
		return nil
	}
	for _, c := range r.rule.ClaimHeaders {
		if _, ok := r.Claims.header(c.Claim); !ok {
			return errClaimForHeader
		}
	}
	return nil
}

// Header returns the header that the handler gets: a copy of h without what the client may not assert, or have a proxy behind the handler
// remove, and without tokens that are not forwarded, with what the rule adds. It returns nil if that is h itself.
func (r *Result) Header(h http.Header) http.Header {
	copied := false
	edit := func() http.Header {
		if !copied {
			h, copied = maps.Clone(h), true
		}
		return h
	}
	changed := func() http.Header {
		if copied {
			return h
		}
		return nil
	}
	if len(r.outer.outputs) > 0 {
		for name := range h {
			if r.outer.Output(name) {
				delete(edit(), name)
			}
		}
		if options, changed := field.ConnectionOptions(h["Connection"], r.outer.Output); len(options) > 0 && changed {
			edit()["Connection"] = options
		} else if changed {
			delete(edit(), "Connection")
		}
	}
	for _, p := range r.used {
		switch p.kind {
		case inHeader:
			delete(edit(), p.name)
		case inCookie:
			if lines := withoutCookie(h["Cookie"], p.name); len(lines) > 0 {
				edit()["Cookie"] = lines
			} else {
				delete(edit(), "Cookie")
			}
		}
	}
	if r.Claims == nil {
		return changed()
	}
	if name := r.rule.PayloadHeader; name != "" {
		edit().Set(name, r.Claims.token.payload)
	}
	for _, c := range r.rule.ClaimHeaders {
		if value, _ := r.Claims.header(c.Claim); value != "" {
			edit().Set(c.Header, value)
		}
	}
	return changed()
}
