package jwt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/field"
)

// Authenticator verifies the tokens of requests by a set of rules. It is immutable except for the tokens that it remembers, and safe
// for concurrent use.
type Authenticator struct {
	rules   []*rule  // sorted by issuer, which is the order in which they are tried
	places  []place  // of all rules, each once
	params  []string // names of query parameters that may hold a token
	outputs outputs
	known   known
}

// rule is a compiled Rule.
type rule struct {
	Rule
	places    []int // indexes in places of the Authenticator
	audiences []string
	remote    *remoteSet // nil if the rule has its keys
	payloadTo string     // the canonical name of PayloadHeader
	claimsTo  []string   // the canonical names of ClaimHeaders
}

// outputs are the headers that rules set, in their plain spelling.
type outputs struct {
	names   map[string]bool
	lengths uint64 // bit n is set if a name has n bytes, or if n is 63 and a name has more
}

func (o *outputs) add(name string) {
	name = plainName(name)
	if o.names == nil {
		o.names = make(map[string]bool)
	}
	o.names[name] = true
	o.lengths |= 1 << min(len(name), 63)
}

// has reports whether a rule sets a header of this name, whatever its spelling.
func (o *outputs) has(name string) bool {
	return o.lengths&(1<<min(len(name), 63)) != 0 && o.names[plainName(name)]
}

// New compiles rules. remotes fetches the keys of rules without Keys; it may be nil if there are none. The errors of several rules are
// joined.
func New(rules []Rule, remotes *Remotes) (*Authenticator, error) {
	a := new(Authenticator)
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
			r.payloadTo = http.CanonicalHeaderKey(r.PayloadHeader)
			a.outputs.add(r.payloadTo)
		}
		for _, c := range r.ClaimHeaders {
			r.claimsTo = append(r.claimsTo, http.CanonicalHeaderKey(c.Header))
			a.outputs.add(c.Header)
		}
		if source := r.source(); source != (Source{}) {
			if remotes == nil {
				errs = append(errs, fmt.Errorf("jwt: rule %d: its keys must be fetched: New needs Remotes", i))
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

// remotes returns the key sets that are fetched. One may occur more than once. A nil Authenticator has none.
func (a *Authenticator) remotes() (all []*remoteSet) {
	if a == nil {
		return nil
	}
	for _, r := range a.rules {
		if r.remote != nil {
			all = append(all, r.remote)
		}
	}
	return all
}

// Output reports whether a rule sets a header of this name, whatever its spelling. If a client sends such a header, it must be removed
// before any code reads it, from every request; [Result.Header] does that. A nil Authenticator has no rules.
func (a *Authenticator) Output(name string) bool {
	return a != nil && a.outputs.has(name)
}

// Result is what the tokens of a request say.
type Result struct {
	// Claims are those of the user. They are nil if there is no token.
	Claims *Claims

	// Err says why the request is refused. It is nil if the request is not refused.
	Err *Error

	rule    *rule    // the rule that gave the claims
	headers []string // the values of its ClaimHeaders
	used    []place  // the places of accepted tokens that the handler must not see
	from    *Authenticator
}

// Authenticate looks for the tokens of a request and verifies them. It waits for keys only if a token has a key ID that is not known yet,
// and until ctx ends at the latest. At most 128 requests wait for the keys of an issuer. A single IP address, or /64 of IPv6, gets at most
// half of these places, and less if others wait.
func (a *Authenticator) Authenticate(ctx context.Context, r *http.Request, now time.Time) Result {
	result := Result{from: a}
	if r.Method == http.MethodOptions && r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != "" {
		return result // a preflight, which browsers send without a token
	}
	var found [4]sighting
	all := found[:0]
	var room [4]string
	for i := range a.places {
		for _, text := range a.places[i].tokens(room[:0], r) {
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
	for i := range all {
		all[i].known = a.known.get(all[i].text)
	}
	var failure *Error
	at := arrival{ctx, r, now}
	for _, rule := range a.rules {
		claims, err := a.judge(at, rule, all)
		if claims != nil && result.Claims == nil {
			result.take(claims, rule)
		}
		if err != nil && (failure == nil || err != errIssuer) {
			failure = err
		}
	}
	for i := range all {
		if s := &all[i]; s.by == nil {
			result.Err = s.err
		} else if s.by.Forward {
			if a.hasOtherLines(r, all, s.place) {
				result.Err = errShape
			}
		} else {
			if place := s.place; result.used == nil {
				result.used = a.places[place : place+1 : place+1] // no copy
			} else {
				result.used = append(result.used, a.places[place])
			}
		}
	}
	if result.Claims == nil {
		result.Err = failure
	}
	if result.Err != nil {
		result.Claims = nil
	}
	return result
}

// hasOtherLines reports whether a header with tokens, whose place is given, has lines without one, too: a handler that gets the header might
// take what is there, such as "bearer x", for what was verified.
func (a *Authenticator) hasOtherLines(r *http.Request, all []sighting, place int) bool {
	p := &a.places[place]
	if p.kind != inHeader {
		return false
	}
	lines := len(r.Header[p.name])
	for i := range all {
		if other := &a.places[all[i].place]; other.kind == inHeader && other.name == p.name {
			lines--
		}
	}
	return lines > 0
}

// Again returns what the rules make of claims that were verified earlier, perhaps by other rules: the first rule for their issuer and
// audience sets headers. claims may be nil.
func (a *Authenticator) Again(claims *Claims) Result {
	result := Result{from: a}
	if claims == nil {
		return result
	}
	for _, r := range a.rules {
		if (r.Issuer == "" || r.Issuer == claims.issuer) && claims.meant(r.audiences) {
			result.take(claims, r)
			break
		}
	}
	return result
}

// take sets the claims of the user, and the headers that a rule makes of them. That rule need not be the one that accepted the claims.
func (r *Result) take(claims *Claims, rule *rule) {
	r.Claims, r.rule = claims, rule
	var unfit bool
	if r.headers, unfit = claims.headers, claims.unfit; claims.rule != rule {
		r.headers, unfit = claims.headersFor(rule)
	}
	if unfit {
		r.Err = errClaimForHeader
	}
}

// maxSightings bounds the tokens of a request.
const maxSightings = 8

// sighting is a token in a request.
type sighting struct {
	place int
	text  string
	known *verified // nil if nothing is known about it
	by    *rule     // the first rule that accepts it
	err   *Error    // why the last rule refused it; nil if none did

	token *token // nil until it is read
	bad   *Error // why it cannot be read
}

// read takes the token apart, once for all rules.
func (s *sighting) read() (*token, *Error) {
	if s.token == nil && s.bad == nil {
		s.token, s.bad = read(s.text)
	}
	return s.token, s.bad
}

// arrival is a request whose tokens are verified, and when it came.
type arrival struct {
	ctx     context.Context
	request *http.Request
	now     time.Time
}

// sender returns the address that the request comes from: what the context says, or else its peer.
func (a arrival) sender() netip.Addr {
	if from, ok := a.ctx.Value(admission.SenderKey{}).(netip.Addr); ok {
		return from
	}
	peer, _ := netip.ParseAddrPort(a.request.RemoteAddr)
	return peer.Addr()
}

// judge returns the claims of the first token, in the order of the rule's places, if the rule accepts all tokens that are there.
func (a *Authenticator) judge(at arrival, r *rule, all []sighting) (claims *Claims, failure *Error) {
	for _, place := range r.places {
		for i := range all {
			s := &all[i]
			if s.place != place {
				continue
			}
			c, err := a.accept(at, r, s)
			if err != nil {
				if s.err == nil || err != errIssuer {
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

// accept verifies one token by a rule.
func (a *Authenticator) accept(at arrival, r *rule, s *sighting) (*Claims, *Error) {
	keys := r.keys()
	var p *payload
	if s.known != nil {
		if claims := s.known.claims(r, keys); claims != nil { // only the time has changed
			return claims, claims.current(at.now)
		}
		p = &s.known.by[0].payload
	} else if t, bad := s.read(); bad != nil {
		return nil, bad
	} else {
		p = &t.payload
	}
	if r.Issuer != "" && p.issuer != r.Issuer {
		return nil, errIssuer
	}
	if err := p.current(at.now); err != nil {
		return nil, err
	}
	if !p.meant(r.audiences) {
		return nil, errAudience
	}
	if keys == nil {
		return nil, errNoKeys
	}
	t, bad := s.read()
	if bad != nil {
		return nil, bad
	}
	err := keys.verify(t, at.now)
	if err == errNoKey && r.remote != nil {
		if newer := r.remote.newer(at, keys); newer != keys {
			keys = newer
			err = keys.verify(t, at.now)
		}
	}
	if err != nil {
		return nil, err
	}
	text := strings.Clone(s.text) // it may be part of a much longer line
	claims := newClaims(text, t, r, keys)
	a.known.add(text, claims)
	return claims, nil
}

func (r *rule) keys() *Keys {
	if r.remote != nil {
		return r.remote.current()
	}
	return r.Keys
}

// Header returns the header that the handler gets: a copy of h without the headers that only rules may set and without tokens that are
// not forwarded, and with the headers that the rule sets. A Connection header cannot have a proxy behind the handler remove those. Header
// returns nil if the result is the same as h.
func (r *Result) Header(h http.Header) http.Header {
	var copied http.Header
	edit := func() http.Header {
		if copied == nil {
			copied = maps.Clone(h)
		}
		return copied
	}
	if r.from.outputs.lengths != 0 {
		for name := range h {
			if r.from.outputs.has(name) {
				delete(edit(), name)
			}
		}
		if options, changed := field.ConnectionOptions(h["Connection"], r.from.Output); changed {
			setOrDelete(edit(), "Connection", options)
		}
	}
	for _, p := range r.used {
		switch p.kind {
		case inHeader:
			delete(edit(), p.name)
		case inCookie:
			setOrDelete(edit(), "Cookie", withoutCookie(edit()["Cookie"], p.name))
		}
	}
	if r.Claims == nil {
		return copied
	}
	if name := r.rule.payloadTo; name != "" {
		edit()[name] = []string{r.Claims.text}
	}
	for i, value := range r.headers {
		if value != "" {
			edit()[r.rule.claimsTo[i]] = []string{value}
		}
	}
	return copied
}

func setOrDelete(h http.Header, name string, values []string) {
	if len(values) > 0 {
		h[name] = values
	} else {
		delete(h, name)
	}
}
