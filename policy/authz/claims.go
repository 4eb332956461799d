package authz

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// claims returns the values of a claim. Without a token there are none.
func (q *query) claims(path ...string) []string {
	if q.Claims == nil {
		return nil
	}
	return q.Claims.Values(path...)
}

// users are patterns for the "issuer/subject" of the request's token.
type users struct{ values, notValues []user }

// user is a pattern of request principals, "issuer/subject". Envoy splits it where the last slash is.
type user struct{ issuer, subject pattern }

func (u *users) empty() bool { return len(u.values) == 0 && len(u.notValues) == 0 }

func (u *users) match(q *query) bool {
	if u.empty() {
		return true
	}
	issuer, subject := q.claims("iss"), q.claims("sub")
	if len(issuer) == 0 || len(subject) == 0 { // the request has no user
		return len(u.values) == 0
	}
	is := func(u user) bool { return u.issuer.match(issuer[0]) && u.subject.match(subject[0]) }
	return (len(u.values) == 0 || slices.ContainsFunc(u.values, is)) && !slices.ContainsFunc(u.notValues, is)
}

// anything matches every text, even the empty one.
var anything = pattern{kind: prefix}

// parseUser reads a pattern of request principals as Istio does.
func parseUser(v string) user {
	issuer, subject, both := v, "", false
	if i := strings.LastIndexByte(v, '/'); i >= 0 {
		issuer, subject, both = v[:i], v[i+1:], true
	}
	switch {
	case v == "*":
		return user{pattern{kind: nonEmpty}, pattern{kind: nonEmpty}}
	case v[0] == '*' && both:
		return user{textPattern(issuer), literal(exact, subject)}
	case v[0] == '*':
		return user{anything, textPattern(v)}
	case v[len(v)-1] == '*' && both:
		return user{literal(exact, issuer), literal(prefix, strings.TrimSuffix(subject, "*"))}
	case v[len(v)-1] == '*':
		return user{textPattern(v), anything}
	}
	return user{literal(exact, issuer), literal(exact, subject)}
}

// never returns an error that says why a pattern matches no user, or nil if it can match one.
func never(v string) error {
	u := parseUser(v)
	switch {
	case !strings.Contains(v, "/") && !strings.Contains(v, "*"):
		return errors.New("no token has an issuer and a subject like it: write issuer/subject")
	case u.issuer.kind == exact && (strings.HasSuffix(u.issuer.text, ":/") || strings.HasSuffix(u.issuer.text, ":")):
		return errors.New("no issuer ends so: the pattern is split at its last slash, into issuer and subject")
	case u.issuer.kind != nonEmpty && u.subject.kind == exact && u.subject.text == "*", v[0] == '*' && strings.HasSuffix(v, "/*"):
		return errors.New("the subject would be a star: only one star stands for other text")
	case u.issuer.kind == exact && u.issuer.text == "" || u.subject.kind == exact && u.subject.text == "":
		return errors.New("the issuer or the subject is empty")
	}
	return nil
}

// neverIn returns an error for the first pattern of a rule that matches no user.
func neverIn(r *Rule) error {
	in := func(part string, i int, field string, values, notValues []string) error {
		for _, v := range slices.Concat(values, notValues) {
			if err := never(v); err != nil {
				return fmt.Errorf("%s %d: %s: %q matches nobody: %w", part, i, field, v, err)
			}
		}
		return nil
	}
	var errs []error
	for i := range r.From {
		errs = append(errs, in("from", i, "requestPrincipals", r.From[i].RequestPrincipals, r.From[i].NotRequestPrincipals))
	}
	for i := range r.When {
		if r.When[i].Key == keyUser {
			errs = append(errs, in("when", i, keyUser, r.When[i].Values, r.When[i].NotValues))
		}
	}
	return firstError(errs...)
}

// Keys of conditions on tokens.
const (
	keyUser      = "request.auth.principal"
	keyAudiences = "request.auth.audiences"
	keyPresenter = "request.auth.presenter"
	keyClaims    = "request.auth.claims"
)

// claimPath returns the path of the claim that a condition is about.
func claimPath(key string) ([]string, error) {
	switch key {
	case keyAudiences:
		return []string{"aud"}, nil
	case keyPresenter:
		return []string{"azp"}, nil
	}
	rest, ok := strings.CutPrefix(key, keyClaims)
	if !ok || !strings.HasPrefix(rest, "[") || !strings.HasSuffix(rest, "]") {
		return nil, errors.New("want " + keyClaims + "[name], with more names in brackets for claims in claims")
	}
	path := strings.Split(rest[1:len(rest)-1], "][")
	for _, name := range path {
		if name == "" || strings.ContainsAny(name, "[]") {
			return nil, errors.New("the name of a claim is empty, or has a bracket")
		}
	}
	return path, nil
}

// matchClaim reports whether one of the claim's strings matches the condition's values, and none matches its notValues.
func (c *condition) matchClaim(q *query) bool {
	values := q.claims(c.claim...)
	return (c.texts.values.empty() || slices.ContainsFunc(values, c.texts.values.match)) && !slices.ContainsFunc(values, c.texts.notValues.match)
}
