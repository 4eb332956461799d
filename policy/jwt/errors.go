package jwt

import (
	"net/http"
	"slices"
	"strings"
)

// Error says why a request is refused: what is wrong with its tokens, or with the keys that should verify them. The text is Envoy's, and
// contains nothing of the token.
type Error struct {
	text string
	code int
}

// Error returns the text, such as "Jwt is expired".
func (e *Error) Error() string { return e.text }

// Status returns the status of the answer: 403 if the audience is not accepted, and 401 otherwise.
func (e *Error) Status() int {
	if e.code == 0 {
		return http.StatusUnauthorized
	}
	return e.code
}

// The errors, in Envoy's words (jwt_verify_lib, status.cc) where Envoy has the error.
var (
	errShape           = &Error{text: "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"}
	errHeaderBase64    = &Error{text: "Jwt header is an invalid Base64url encoded"}
	errHeaderJSON      = &Error{text: "Jwt header is an invalid JSON"}
	errNoAlg           = &Error{text: "Jwt header [alg] field is required and must be a string"}
	errAlg             = &Error{text: "Jwt header [alg] is not supported"}
	errKid             = &Error{text: "Jwt header [kid] field is not a string"}
	errCritical        = &Error{text: "Jwt header [crit] is not supported"}
	errPayloadBase64   = &Error{text: "Jwt payload is an invalid Base64url encoded"}
	errPayloadJSON     = &Error{text: "Jwt payload is an invalid JSON"}
	errIssuerType      = &Error{text: "Jwt payload [iss] field is not a string"}
	errSubjectType     = &Error{text: "Jwt payload [sub] field is not a string"}
	errIDType          = &Error{text: "Jwt payload [jti] field is not a string"}
	errIssuedType      = &Error{text: "Jwt payload [iat] field is not an integer"}
	errIssuedRange     = &Error{text: "Jwt payload [iat] field is not a positive 64 bit integer"}
	errNotBeforeType   = &Error{text: "Jwt payload [nbf] field is not an integer"}
	errNotBeforeRange  = &Error{text: "Jwt payload [nbf] field is not a positive 64 bit integer"}
	errExpiryType      = &Error{text: "Jwt payload [exp] field is not an integer"}
	errExpiryRange     = &Error{text: "Jwt payload [exp] field is not a positive 64 bit integer"}
	errAudienceType    = &Error{text: "Jwt payload [aud] field is not a string or string list"}
	errSignatureBase64 = &Error{text: "Jwt signature is an invalid Base64url encoded"}
	errIssuer          = &Error{text: "Jwt issuer is not configured"}
	errNotYet          = &Error{text: "Jwt not yet valid"}
	errExpired         = &Error{text: "Jwt is expired"}
	errAudience        = &Error{text: "Audiences in Jwt are not allowed", code: http.StatusForbidden}
	errVerification    = &Error{text: "Jwt verification fails"}
	errNoKey           = &Error{text: "Jwks doesn't have key to match kid or alg from Jwt"}
	errNoKeys          = &Error{text: "Jwks remote fetch is failed"}
	errClaimForHeader  = &Error{text: "Jwt payload has a claim that cannot be the value of a header"}
)

// realmLength bounds the host in a realm, and the path with the query.
const realmLength = 256

// cut returns the beginning of a text.
func cut(s string, most int) string { return s[:min(len(s), most)] }

// Realm returns the realm of a request for WWW-Authenticate: its URL, with at most 256 bytes of path and query. Bytes that would end the
// realm are escaped, and parameters that may hold a token are left out.
func (a *Authenticator) Realm(r *http.Request) string {
	var out strings.Builder
	out.WriteString("http")
	if r.TLS != nil {
		out.WriteByte('s')
	}
	out.WriteString("://")
	target := append(make([]byte, 0, realmLength), cut(r.URL.EscapedPath(), realmLength)...)
	next := byte('?')
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		if len(target) >= realmLength || r.URL.RawQuery == "" {
			break
		}
		if name, _, _ := strings.Cut(pair, "="); slices.Contains(a.params, unescaped(name)) {
			continue
		}
		target = append(append(target, next), cut(pair, realmLength)...)
		next = '&'
	}
	for _, part := range []string{cut(r.Host, realmLength), cut(string(target), realmLength)} {
		for _, c := range []byte(part) {
			if c <= ' ' || c == '"' || c == '\\' || c >= 0x7f {
				const digits = "0123456789ABCDEF"
				out.Write([]byte{'%', digits[c>>4], digits[c&15]})
			} else {
				out.WriteByte(c)
			}
		}
	}
	return out.String()
}
