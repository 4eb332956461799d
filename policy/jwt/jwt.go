// Package jwt finds out which user a request comes from, by its JSON Web Tokens, as Istio's RequestAuthentication specifies.
//
// [New] compiles rules, which are data, into an [Authenticator]. [Authenticator.Authenticate] finds the tokens of a request,
// verifies them, and says what the handler may see. Keys are part of a rule or come from [Remotes], which fetches them
// before they are needed. [Handler] is this layer alone, for a net/http server.
//
// # What is accepted
//
// A token is a JWS in compact form (RFC 7515, section 3.1) of at most 16 KiB, signed by RS256, RS384, RS512, PS256, PS384,
// PS512, ES256, ES384, ES512 or EdDSA with Ed25519. "none" and the HMAC algorithms are refused, and so are crit, b64 and any JSON
// that two readers may understand differently: a name that occurs twice, invalid UTF-8, anything after the object. Keys and
// URLs in the header of a token are ignored (RFC 8725, sections 3.1 to 3.12).
//
// The clocks of an issuer and of this process may differ by 60 seconds: exp and nbf are checked with that leeway. A token without exp does not
// expire, and one without nbf is valid from the beginning, as in Envoy.
//
// A request without a token passes, but has no user. Whether it needs one is for an AuthorizationPolicy to say. A request with a
// token that no rule accepts is refused, even if its other tokens are good. Envoy stops at the first rule that a request satisfies,
// and does not look at the rest of its tokens.
//
// For a token without a key ID, every key that may have signed it is tried, as in Envoy. While many forged tokens arrive, fewer keys are
// tried; see [ParseKeys].
//
// A token is a secret: it never appears in an error, a log or a realm.
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
	// Issuer is what the claim iss of a token must be, byte for byte. "" means any issuer.
	Issuer string

	// Audiences are the accepted audiences: the claim aud must name at least one of them. One leading http:// or https:// and one
	// trailing slash are ignored on both sides. An empty list means any audience.
	Audiences []string

	// Headers, Params and Cookies are the places where tokens are looked for: request headers, parameters of the query, and
	// cookies. If all are empty, the places are the header Authorization, after "Bearer ", and the parameter access_token. Each line of a
	// header may have a token, but if several parameters or cookies have the same name, only the first one is looked at, as in Envoy. A
	// handler to which tokens are forwarded must read the first one, too, and a parameter from the URL: FormValue prefers the body, in which
	// no tokens are looked for.
	Headers []Header
	Params  []string
	Cookies []string

	// Keys verify tokens. Without them, either URI or Discover says where the keys are fetched.
	Keys *Keys

	// URI is an http or https URL of a key set (RFC 7517, section 5).
	URI string

	// Discover finds the key set through the issuer's OpenID configuration (OpenID Connect Discovery 1.0, section 4).
	Discover bool

	// Timeout bounds each fetch of URI, body included. 0 means 5 s.
	Timeout time.Duration

	// Forward leaves the token in the request for the handler. By default it is removed, with the header, parameter or cookie that it
	// was in. A request is refused if the header of a forwarded token has other lines without a token, which a handler might read.
	Forward bool

	// PayloadHeader is the name of a header in which the handler gets the payload, encoded as in the token. "" means no header.
	PayloadHeader string

	// ClaimHeaders are headers in which the handler gets single claims.
	ClaimHeaders []ClaimHeader

	// SpaceDelimited are the claims, besides scope and permission, that are lists of words; see [Claims.Values]. iss and sub cannot be among
	// them.
	SpaceDelimited []string
}

// Header is a request header that may hold a token.
type Header struct {
	Name string

	// Prefix precedes the token, as "Bearer " does. It is case-sensitive, and may be anywhere in the value. "" means that the whole value
	// is the token.
	Prefix string
}

// ClaimHeader is a header in which the handler gets a claim. If the client has sent a header of this name, it is always removed.
type ClaimHeader struct {
	Header string

	// Claim is the name of the claim. For a claim inside objects, it is the path to it, with dots between the names.
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
	for _, claim := range r.SpaceDelimited {
		if claim == "iss" || claim == "sub" { // their first words may be the name of somebody else
			bad("SpaceDelimited: %s is not a list of words: it says who the user is", claim)
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

// source returns where the keys are fetched. It is the zero Source if they are part of the rule.
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

// plainName returns the spelling of a header name by which names are compared. A server that takes "_" for "-", as CGI does, sees names
// with equal spellings as the same header.
func plainName(name string) string {
	return http.CanonicalHeaderKey(strings.ReplaceAll(name, "_", "-"))
}
