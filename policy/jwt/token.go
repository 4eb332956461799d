package jwt

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxToken bounds the length of a token. Whole header sections of HTTP servers have 64 KiB or less.
const maxToken = 16 << 10

// leeway is how far apart the clocks of whoever issues tokens and of this process may be. It is Envoy's.
const leeway = 60

// token is a token in its parts, of which nothing is verified yet.
type token struct {
	signed    string // header and payload as they stand
	payload   string // as it stands
	signature []byte
	alg       *algorithm
	kid       string
	named     bool // there is a kid
	claims    value

	issuer    string
	notBefore uint64
	expiry    uint64
	expires   bool
	aud       *value // a string, a list of strings, or absent
}

// base64url is the only spelling of a text (RFC 7515, section 2): without padding, and the bits that are left over are zero.
var base64url = base64.RawURLEncoding.Strict()

func decode(part string) ([]byte, bool) {
	if part == "" || strings.ContainsAny(part, "\r\n") { // which Go's decoder skips
		return nil, false
	}
	data, err := base64url.DecodeString(part)
	return data, err == nil
}

// decodeText is decode for a text, of which one copy is made.
func decodeText(part string) (string, bool) {
	if part == "" || strings.ContainsAny(part, "\r\n") {
		return "", false
	}
	var space [1024]byte
	data, err := base64url.AppendDecode(space[:0], []byte(part))
	return string(data), err == nil
}

// read takes a token apart. The checks are in the order of Envoy, so that the answer does not depend on who looks first.
func read(s string) (*token, *Error) {
	if len(s) > maxToken || strings.Count(s, ".") != 2 {
		return nil, errShape
	}
	dot, last := strings.IndexByte(s, '.'), strings.LastIndexByte(s, '.')
	head, payload, signature := s[:dot], s[dot+1:last], s[last+1:]
	if head == "" || payload == "" || signature == "" {
		return nil, errShape
	}
	t := &token{signed: s[:last], payload: payload}
	if err := t.readHeader(head); err != nil {
		return nil, err
	}
	data, ok := decodeText(payload)
	if !ok {
		return nil, errPayloadBase64
	}
	if t.claims, ok = scan(data); !ok {
		return nil, errPayloadJSON
	}
	if err := t.readClaims(); err != nil {
		return nil, err
	}
	if t.signature, ok = decode(signature); !ok {
		return nil, errSignatureBase64
	}
	return t, nil
}

func (t *token) readHeader(part string) *Error {
	data, ok := decodeText(part)
	if !ok {
		return errHeaderBase64
	}
	header, ok := scan(data)
	if !ok {
		return errHeaderJSON
	}
	alg, kid := header.member("alg"), header.member("kid")
	if alg.kind != text {
		return errNoAlg
	}
	if t.alg = algorithmOf(alg.text); t.alg == nil {
		return errAlg
	}
	if kid.kind != absent && kid.kind != text {
		return errKid
	}
	t.kid, t.named = kid.text, kid.kind == text
	// What must be understood is not; and a payload that is not in base64 would be signed differently (RFC 7797).
	if header.member("crit").kind != absent || header.member("b64").kind != absent {
		return errCritical
	}
	return nil
}

func (t *token) readClaims() *Error {
	iss, sub, jti := t.claims.member("iss"), t.claims.member("sub"), t.claims.member("jti")
	if iss.kind != absent && iss.kind != text {
		return errIssuerType
	}
	if sub.kind != absent && sub.kind != text {
		return errSubjectType
	}
	t.issuer = iss.text
	var issued uint64 // typed, as in Envoy, and not compared to anything
	if err := seconds(t.claims.member("iat"), &issued, errIssuedType, errIssuedRange); err != nil {
		return err
	}
	if err := seconds(t.claims.member("nbf"), &t.notBefore, errNotBeforeType, errNotBeforeRange); err != nil {
		return err
	}
	exp := t.claims.member("exp")
	if err := seconds(exp, &t.expiry, errExpiryType, errExpiryRange); err != nil {
		return err
	}
	t.expires = exp.kind != absent
	if jti.kind != absent && jti.kind != text {
		return errIDType
	}
	t.aud = t.claims.member("aud")
	if t.aud.kind != absent && t.aud.kind != text && t.aud.kind != list {
		return errAudienceType
	}
	for _, ok := range t.aud.texts {
		if !ok {
			return errAudienceType
		}
	}
	return nil
}

// complete reads the claims that are objects or lists. The token is verified: what it has is what the issuer wrote.
func (t *token) complete() {
	for i := range t.claims.inner {
		t.claims.inner[i].read()
	}
}

// seconds reads a time in seconds since 1970. Fractions are cut.
func seconds(v *value, n *uint64, wrongType, outOfRange *Error) *Error {
	if v.kind == absent {
		return nil
	}
	if v.kind != number {
		return wrongType
	}
	whole, err := strconv.ParseUint(v.text, 10, 64)
	if err == nil {
		*n = whole
		return nil
	}
	f, err := strconv.ParseFloat(v.text, 64)
	if err != nil || f < 0 || f >= 1<<64 {
		return outOfRange
	}
	*n = uint64(f)
	return nil
}

// current reports what is wrong with the token at this time.
func (t *token) current(now time.Time) *Error {
	at := uint64(max(0, now.Unix()))
	if at+leeway < t.notBefore {
		return errNotYet
	}
	if t.expires && (t.expiry == 0 || t.expiry <= math.MaxUint64-leeway && at > t.expiry+leeway) {
		return errExpired
	}
	return nil
}

// meant reports whether the token is for one of the audiences.
func (t *token) meant(audiences []string) bool {
	if len(audiences) == 0 {
		return true
	}
	for aud := range t.aud.texts {
		if slices.Contains(audiences, plainAudience(aud)) {
			return true
		}
	}
	return false
}

// plainAudience returns an audience without what does not count in it.
func plainAudience(aud string) string {
	if rest, ok := strings.CutPrefix(aud, "https://"); ok {
		aud = rest
	} else {
		aud = strings.TrimPrefix(aud, "http://")
	}
	return strings.TrimSuffix(aud, "/")
}
