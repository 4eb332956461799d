// Package jwt finds out which user a request comes from, by its JSON Web Tokens, as Istio's RequestAuthentication asks.
//
// [New] turns rules, which are data, into an [Authenticator]. [Authenticator.Authenticate] finds the tokens of a request,
// verifies them, and says what the handler may see. Keys come from the rule itself or from [Remotes], which fetches them
// ahead of need. [Handler] is the layer alone, for a net/http server.
//
// # What is accepted
//
// A token is a JWS in compact form (RFC 7515, section 3.1) of at most 16 KiB, signed by RS256, RS384, RS512, PS256, PS384,
// PS512, ES256, ES384, ES512 or EdDSA with Ed25519. "none" and the HMAC algorithms are refused, as are crit, b64 and whatever
// two readers of JSON may read differently: a name that occurs twice, invalid UTF-8, something behind the object. Keys and
// URLs in the header of a token are ignored (RFC 8725, sections 3.1 to 3.12).
//
// A request without a token passes, without a user: that only users may do something is for an AuthorizationPolicy to say.
// A request with a token that no rule accepts is refused, also when another of its tokens is good. Envoy stops at the first
// rule that a request satisfies, and lets the rest of its tokens through unseen.
//
// A token is a secret. It is never in an error, a log or a realm.
//
// This is a layer: it works alone and imports no documents. It is below policy because documents configure it.
package jwt

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/field"
)

// Rule says which tokens are accepted. Its zero value is not valid: a rule needs keys.
type Rule struct {
	// Issuer is the claim iss that tokens must have, byte for byte. "" means any.
	Issuer string

	// Audiences are those that the claim aud must name one of. One leading http:// or https:// and one trailing slash do not
	// count on either side. None means any.
	Audiences []string

	// Headers, Params and Cookies are the places where tokens are looked for: in request headers, in parameters of the query,
	// and in cookies. If there are none, tokens are in the header Authorization behind "Bearer " and in the parameter
	// access_token.
	Headers []Header
	Params  []string
	Cookies []string

	// Keys verify tokens. Without them, URI is where they are fetched, or Discover says that the issuer tells.
	Keys *Keys

	// URI is an http or https URL of a key set (RFC 7517, section 5).
	URI string

	// Discover finds the key set through the issuer's OpenID configuration (OpenID Connect Discovery 1.0, section 4).
	Discover bool

	// Timeout bounds each fetch of URI, body included. 0 means 5 s.
	Timeout time.Duration

	// Forward leaves the token in the request for the handler. By default the place where it was is removed.
	Forward bool

	// PayloadHeader is the name of a header that gives the handler the payload as it stands in the token. "" means none.
	PayloadHeader string

	// ClaimHeaders give the handler single claims.
	ClaimHeaders []ClaimHeader

	// SpaceDelimited are claims that are lists of words, besides scope and permission; see [Claims.Values].
	SpaceDelimited []string
}

// Header is a header with a token in it.
type Header struct {
	Name string

	// Prefix is what stands before the token, anywhere in the value and case-sensitive: "Bearer ". "" means that the value is
	// the token.
	Prefix string
}

// ClaimHeader gives the handler a claim in a header. The header is removed from what the client sent in any case.
type ClaimHeader struct {
	Header string

	// Claim is the claim's name, or the names of objects and the claim in them, joined by dots.
	Claim string
}

// Equal reports whether the rules accept the same tokens and do the same with them.
func (r *Rule) Equal(o *Rule) bool {
	return r.Issuer == o.Issuer && slices.Equal(r.Audiences, o.Audiences) && slices.Equal(r.Headers, o.Headers) &&
		slices.Equal(r.Params, o.Params) && slices.Equal(r.Cookies, o.Cookies) && r.Keys.equal(o.Keys) && r.URI == o.URI &&
		r.Discover == o.Discover && r.Timeout == o.Timeout && r.Forward == o.Forward && r.PayloadHeader == o.PayloadHeader &&
		slices.Equal(r.ClaimHeaders, o.ClaimHeaders) && slices.Equal(r.SpaceDelimited, o.SpaceDelimited)
}

// Validate reports what is wrong with the rule.
func (r *Rule) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	sources := 0
	for _, given := range []bool{r.Keys != nil, r.URI != "", r.Discover} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		bad("want one of Keys, URI and Discover, which say where the keys are")
	}
	if r.Discover && r.Issuer == "" {
		bad("Discover needs an Issuer")
	}
	if source := r.source(); source != (Source{}) {
		if err := source.validate(); err != nil {
			errs = append(errs, err)
		}
	}
	for _, h := range r.Headers {
		if !field.IsToken(h.Name) {
			bad("Headers: %q is not the name of a header", h.Name)
		}
	}
	for name, list := range map[string][]string{"Audiences": r.Audiences, "Params": r.Params, "Cookies": r.Cookies, "SpaceDelimited": r.SpaceDelimited} {
		if slices.Contains(list, "") {
			bad("%s: one is empty", name)
		}
	}
	if r.PayloadHeader != "" && !field.IsToken(r.PayloadHeader) {
		bad("PayloadHeader: %q is not the name of a header", r.PayloadHeader)
	}
	seen := map[string]bool{plainName(r.PayloadHeader): r.PayloadHeader != ""}
	for _, c := range r.ClaimHeaders {
		switch name := plainName(c.Header); {
		case !field.IsToken(c.Header):
			bad("ClaimHeaders: %q is not the name of a header", c.Header)
		case seen[name]:
			bad("ClaimHeaders: the header %q is set twice", c.Header)
		case c.Claim == "":
			bad("ClaimHeaders: the header %q has no claim", c.Header)
		default:
			seen[name] = true
		}
	}
	return errors.Join(errs...)
}

// source returns where the keys are fetched; the zero Source if the rule has them.
func (r *Rule) source() Source {
	switch {
	case r.Discover:
		return Source{URI: strings.TrimSuffix(r.Issuer, "/") + "/.well-known/openid-configuration", Discover: true, Timeout: r.timeout()}
	case r.URI != "":
		return Source{URI: r.URI, Timeout: r.timeout()}
	}
	return Source{}
}

func (r *Rule) timeout() time.Duration { return cmp.Or(r.Timeout, 5*time.Second) }

// plainName returns the name of a header in the spelling that says whether another is the same to a server that takes "_" for
// "-", as CGI does.
func plainName(name string) string {
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}
