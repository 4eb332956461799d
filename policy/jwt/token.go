package jwt

import (
	"encoding/base64"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxToken bounds the length of a token.
const maxToken = 16 << 10

// leeway is the number of seconds by which the clocks of an issuer and of this process may differ. It is the same as Envoy's.
const leeway = 60

// token is a parsed token that is not yet verified.
type token struct {
	payload
	signed    string // the header and the payload as they stand
	signature []byte
	alg       *algorithm
	kid       string
	named     bool // there is a kid
}

// base64url accepts only one spelling of each text (RFC 7515, section 2): without padding, and with zeros in the unused bits.
var base64url = base64.RawURLEncoding.Strict()

// decode decodes a part of a token, and appends the result to out.
func decode(out []byte, part string) ([]byte, bool) {
	if part == "" || strings.IndexByte(part, '\n') >= 0 || strings.IndexByte(part, '\r') >= 0 { // which Go's decoder skips
		return nil, false
	}
	out, err := base64url.AppendDecode(out, []byte(part))
	return out, err == nil
}

// decodeText is decode for a text. It makes only one copy of a short one.
func decodeText(part string) (string, bool) {
	var room [1024]byte
	data, ok := decode(room[:0], part)
	return string(data), ok
}

// read parses a token. It makes its checks in Envoy's order, so that a token with several faults gets the same error.
func read(s string) (*token, *Error) {
	if len(s) > maxToken || strings.Count(s, ".") != 2 {
		return nil, errShape
	}
	dot, last := strings.IndexByte(s, '.'), strings.LastIndexByte(s, '.')
	head, body, signature := s[:dot], s[dot+1:last], s[last+1:]
	if head == "" || body == "" || signature == "" {
		return nil, errShape
	}
	t := &token{signed: s[:last]}
	t.text = body
	if err := t.readHeader(head); err != nil {
		return nil, err
	}
	data, ok := decodeText(body)
	if !ok {
		return nil, errPayloadBase64
	}
	if t.members, ok = parse(data, nil); !ok {
		return nil, errPayloadJSON
	}
	if err := t.readClaims(); err != nil {
		return nil, err
	}
	if t.signature, ok = decode(nil, signature); !ok {
		return nil, errSignatureBase64
	}
	return t, nil
}

func (t *token) readHeader(part string) *Error {
	data, ok := decodeText(part)
	if !ok {
		return errHeaderBase64
	}
	var room [8]value
	header, ok := parse(data, room[:0])
	if !ok {
		return errHeaderJSON
	}
	alg, kid := find(header, "alg"), find(header, "kid")
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
	// No extension that a token may call critical is understood, nor a payload that is not in base64 (RFC 7797).
	if find(header, "crit").kind != absent || find(header, "b64").kind != absent {
		return errCritical
	}
	return nil
}

// readClaims reads the claims that have a meaning of their own (RFC 7519, section 4.1).
func (p *payload) readClaims() *Error {
	var iss, sub, jti, iat, nbf, exp value
	for _, m := range p.members {
		switch m.name {
		case "iss":
			iss = m
		case "sub":
			sub = m
		case "jti":
			jti = m
		case "iat":
			iat = m
		case "nbf":
			nbf = m
		case "exp":
			exp = m
		case "aud":
			p.audience = m
		}
	}
	if iss.kind != absent && iss.kind != text {
		return errIssuerType
	}
	if sub.kind != absent && sub.kind != text {
		return errSubjectType
	}
	p.issuer, p.subject = iss.text, sub.text
	var issued uint64 // only its type matters, as in Envoy
	if err := seconds(iat, &issued, errIssuedType, errIssuedRange); err != nil {
		return err
	}
	if err := seconds(nbf, &p.notBefore, errNotBeforeType, errNotBeforeRange); err != nil {
		return err
	}
	if err := seconds(exp, &p.expiry, errExpiryType, errExpiryRange); err != nil {
		return err
	}
	p.expires = exp.kind != absent
	if jti.kind != absent && jti.kind != text {
		return errIDType
	}
	if p.audience.kind != absent && p.audience.kind != text && p.audience.kind != list {
		return errAudienceType
	}
	for aud := range p.audience.items {
		if aud.kind != text {
			return errAudienceType
		}
	}
	return nil
}

// seconds reads a time in seconds since 1970. It cuts fractions.
func seconds(v value, n *uint64, wrongType, outOfRange *Error) *Error {
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
func (p *payload) current(now time.Time) *Error {
	at := uint64(max(0, now.Unix()))
	if p.notBefore > at+leeway {
		return errNotYet
	}
	if p.expires && (p.expiry == 0 || p.expiry <= math.MaxUint64-leeway && at > p.expiry+leeway) {
		return errExpired
	}
	return nil
}

// meant reports whether the token is for one of the audiences.
func (p *payload) meant(audiences []string) bool {
	if len(audiences) == 0 || p.audience.kind == text && slices.Contains(audiences, plainAudience(p.audience.text)) {
		return true
	}
	for aud := range p.audience.items {
		if slices.Contains(audiences, plainAudience(aud.text)) {
			return true
		}
	}
	return false
}

// plainAudience returns an audience without the parts that are ignored; see [Rule.Audiences].
func plainAudience(aud string) string {
	if rest, ok := strings.CutPrefix(aud, "https://"); ok {
		aud = rest
	} else {
		aud = strings.TrimPrefix(aud, "http://")
	}
	return strings.TrimSuffix(aud, "/")
}
