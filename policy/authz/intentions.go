package authz

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/nosidecar/mesh/internal/field"
)

// Intentions decide by the first entry that names the peer, as Consul's service-intentions do. Later entries are not consulted: if
// none of the permissions of that entry matches, the default decides.
type Intentions struct {
	// Peers is the form that the identity of a peer must have: "trust-domain/ns/default/dc/{*}/svc/{*}", where {*} is one
	// segment. A peer of another form, or without an identity, is denied, whatever the default is. It must be set.
	Peers string

	// AllowByDefault allows the requests that no entry decides about. They are denied otherwise.
	AllowByDefault bool

	// List has the entries in order of precedence.
	List []Intention
}

// Intention decides about the requests of some peers.
type Intention struct {
	Match // names the entry, for decisions and errors

	// Principal is the identity of the peers, written as [Intentions].Peers.
	Principal string

	// Allow says whether their requests and connections are allowed if there are no Permissions.
	Allow bool

	// Permissions are tried in order, and the first one that matches decides. If there are any, raw TCP connections are denied.
	Permissions []Permission
}

// Permission decides about the requests that match all fields that are set, of which there must be at least one. Text is compared
// literally and with case: a star is an ordinary character.
type Permission struct {
	Allow bool

	// PathExact, PathPrefix and PathRegex are compared to the path without its query, a regular expression to all of it as in [Operation]. At
	// most one is set.
	PathExact, PathPrefix, PathRegex string

	Methods []string
	Headers []HeaderMatch
}

// HeaderMatch matches a header that is present and whose value fulfils one condition. Exactly one of Present, Exact, Prefix, Suffix,
// Contains and Regex must be set.
type HeaderMatch struct {
	Name string

	Present                                bool
	Exact, Prefix, Suffix, Contains, Regex string // Regex matches the whole value

	// Invert negates the condition on the value. The header must still be present; with Present it must be absent.
	Invert bool

	// IgnoreCase ignores the case of ASCII letters. It cannot be combined with Present or Regex.
	IgnoreCase bool
}

// Reasons of decisions by intentions.
const (
	reasonStranger         = "intentions: the peer has no identity of the form that they are about"
	reasonUnnamed          = "intentions: none names the peer: the default decides"
	reasonIntention        = "an intention names the peer"
	reasonPermission       = "a permission of the intention matched"
	reasonNoPermission     = "no permission of the intention matched: the default decides"
	reasonNeedsPermissions = "the intention has permissions, which need HTTP"
)

// intentions is compiled Intentions.
type intentions struct {
	peers  pattern
	allow  bool
	list   []intention
	byName map[string][]int32 // by the last segment of the principal
	rest   []int32            // those with {*} there
}

type intention struct {
	Match
	principal   pattern
	allow       bool
	permissions []*rule // the field every is set if the permission allows
}

// decide decides about a request and reports whether it is allowed.
func (in *intentions) decide(q *query, d *Decision) bool {
	allowed := in.decideAs(q, d)
	if !allowed || !q.extended() {
		return allowed
	}
	return in.decideAsGET(q, d)
}

//go:noinline
func (in *intentions) decideAsGET(q *query, d *Decision) bool { return in.decideAs(q.asGET(), d) }

// decideAs decides about a request under one of its methods.
func (in *intentions) decideAs(q *query, d *Decision) bool {
	if !in.peers.match(q.Principal) { // as it never does if there is none
		d.Reason = reasonStranger
		return false
	}
	best := in.first(in.byName[lastSegment(q.Principal)], len(in.list), q.Principal)
	best = in.first(in.rest, best, q.Principal)
	if best == len(in.list) {
		d.Reason = reasonUnnamed
		return in.allow
	}
	found := &in.list[best]
	d.Match = found.Match
	switch {
	case len(found.permissions) == 0:
		d.Reason = reasonIntention
		return found.allow
	case q.L4:
		d.Reason = reasonNeedsPermissions
		return false
	}
	for _, p := range found.permissions {
		// A permission that allows must match under every reading, one that denies under any. So a request is not allowed if the
		// first permission that matches one of its readings denies it.
		if p.match(q) {
			d.Reason = reasonPermission
			return p.every
		}
	}
	d.Reason = reasonNoPermission
	return in.allow
}

// first returns the first of the given entries that names a peer, or best if none before best does.
func (in *intentions) first(list []int32, best int, peer string) int {
	for _, i := range list {
		if int(i) >= best {
			break
		}
		if in.list[i].principal.match(peer) {
			return int(i)
		}
	}
	return best
}

func lastSegment(principal string) string { return principal[strings.LastIndexByte(principal, '/')+1:] }

// addIntentions compiles the intentions of a policy.
func (a *Authorizer) addIntentions(p *Policy, slots map[string]int) error {
	switch {
	case a.intentions != nil:
		return errors.New("there are intentions in another policy already")
	case p.Action != Allow || p.DryRun || len(p.Rules) > 0:
		return errors.New("a policy with intentions has no action, no rules and no dry run")
	}
	out := &intentions{allow: p.Intentions.AllowByDefault, byName: make(map[string][]int32)}
	var err error
	if out.peers, err = identityPattern(p.Intentions.Peers); err != nil {
		return fmt.Errorf("peers: %q: %w", p.Intentions.Peers, err)
	}
	for i := range p.Intentions.List {
		entry, err := compileIntention(&p.Intentions.List[i], a.normalization)
		if err != nil {
			return fmt.Errorf("intention %d: %w", i, err)
		}
		for _, r := range entry.permissions {
			a.escaped = a.escaped || r.escaped()
			r.prepare(slots)
		}
		out.list = append(out.list, entry)
		if name := lastSegment(entry.principal.text); name == anySegment {
			out.rest = append(out.rest, int32(i))
		} else {
			out.byName[name] = append(out.byName[name], int32(i))
		}
	}
	a.intentions, a.enforced = out, true
	return nil
}

// anySegment stands for any one segment of an identity.
const anySegment = "{*}"

// identityPattern parses the form of an identity.
func identityPattern(v string) (pattern, error) {
	p := pattern{kind: template, text: v}
	return p, checkPrincipal(pattern{kind: exact, text: strings.ReplaceAll(v, anySegment, "x")})
}

func compileIntention(in *Intention, mode Normalization) (intention, error) {
	out := intention{Match: in.Match, allow: in.Allow}
	var err error
	if out.principal, err = identityPattern(in.Principal); err != nil {
		return out, fmt.Errorf("principal: %q: %w", in.Principal, err)
	}
	if in.Allow && len(in.Permissions) > 0 {
		return out, errors.New("it allows, and has permissions")
	}
	for i := range in.Permissions {
		p, err := in.Permissions[i].compile(mode)
		if err != nil {
			return out, fmt.Errorf("permission %d: %w", i, err)
		}
		out.permissions = append(out.permissions, p)
	}
	return out, nil
}

// Check returns an error for the first part of a permission that [Compile] with cfg cannot enforce.
func (p *Permission) Check(cfg Config) error {
	_, err := p.compile(cfg.Normalization)
	return err
}

func (p *Permission) compile(mode Normalization) (*rule, error) {
	out := &rule{every: p.Allow}
	var o operation
	path, set, err := p.path(mode)
	if err != nil {
		return nil, err
	}
	if set {
		o.paths.values = newList([]pattern{path})
	}
	methods := make([]pattern, 0, len(p.Methods))
	for _, m := range p.Methods {
		if !field.IsToken(m) {
			return nil, fmt.Errorf("methods: %q: not a method", m)
		}
		methods = append(methods, literal(exact, m))
	}
	o.methods.values = newList(methods)
	if !o.empty() {
		out.to = []operation{o}
	}
	for i := range p.Headers {
		c, err := p.Headers[i].compile()
		if err != nil {
			return nil, fmt.Errorf("header %d (%s): %w", i, p.Headers[i].Name, err)
		}
		out.when = append(out.when, c)
	}
	if len(out.to)+len(out.when) == 0 {
		return nil, errors.New("it says nothing of the requests that it is about")
	}
	return out, nil
}

func literal(kind kind, text string) pattern { return pattern{kind: kind, text: text, decoded: text} }

// path returns the pattern of a path, if one is set.
func (p *Permission) path(mode Normalization) (out pattern, set bool, err error) {
	for _, v := range []struct {
		kind        kind
		name, value string
	}{{exact, "pathExact", p.PathExact}, {prefix, "pathPrefix", p.PathPrefix}, {regex, "pathRegex", p.PathRegex}} {
		switch {
		case v.value == "":
			continue
		case set:
			return out, true, errors.New("at most one of pathExact, pathPrefix and pathRegex is set")
		case v.kind == regex:
			out, err = pathRegexPattern(v.value)
		default:
			out = pattern{kind: v.kind, text: decodeNone.apply(v.value), decoded: decodeEvery.apply(v.value)}
			err = checkPath(out, mode)
		}
		if set = true; err != nil {
			return out, true, fmt.Errorf("%s: %q: %w", v.name, v.value, err)
		}
	}
	return out, set, nil
}

// regexPattern compiles a regular expression that must match the whole text. Its dot matches line feeds, too: there are none in a
// path as it is sent, but there may be in one that is decoded, and a rule that denies `/a b/.*` denies "/a%20b/%0A".
func regexPattern(v string) (pattern, error) {
	if _, err := regexp.Compile(v); err != nil { // alone, so that the group below cannot make "a)|(b" valid
		return pattern{}, err
	}
	re, err := regexp.Compile(`\A(?s:` + v + `)\z`)
	return pattern{kind: regex, text: v, decoded: v, re: re}, err
}

// pathRegexPattern is regexPattern for paths. Escapes that no reading of a path has would never match.
func pathRegexPattern(v string) (pattern, error) {
	if normal := decodeNone.apply(v); normal != v {
		return pattern{}, fmt.Errorf("the escapes of paths are in upper case, and characters that need none are not escaped: write %s", normal)
	}
	return regexPattern(v)
}

func (h *HeaderMatch) compile() (condition, error) {
	c := condition{attribute: header, header: http.CanonicalHeaderKey(h.Name), demanded: true}
	switch strings.ToLower(h.Name) {
	case "":
		return c, errors.New("the header has no name")
	case "host":
		return c, errors.New("net/http does not pass this header on")
	}
	if strings.HasPrefix(h.Name, ":") {
		return c, errors.New("not the name of a header: methods and paths have fields of their own")
	}
	if err := checkName(h.Name); err != nil {
		return c, err
	}
	p, err := h.pattern()
	switch {
	case err != nil:
		return c, err
	case h.Present && h.Invert:
		c.demanded, c.forbidden = false, true
		return c, nil
	case h.Invert:
		c.texts.notValues = newList([]pattern{p})
	default:
		c.texts.values = newList([]pattern{p})
	}
	c.utf8 = p.kind == regex
	return c, nil
}

// pattern returns the pattern of the value.
func (h *HeaderMatch) pattern() (p pattern, err error) {
	set := 0
	if h.Present {
		set, p = 1, literal(prefix, "")
	}
	for _, v := range []struct {
		kind  kind
		value string
	}{{exact, h.Exact}, {prefix, h.Prefix}, {suffix, h.Suffix}, {substring, h.Contains}, {regex, h.Regex}} {
		if v.value == "" {
			continue
		}
		if set++; v.kind == regex {
			p, err = regexPattern(v.value)
		} else {
			p = literal(v.kind, v.value)
			err = checkHeader(p)
		}
		if err != nil {
			return p, fmt.Errorf("%q: %w", v.value, err)
		}
	}
	switch {
	case set != 1:
		return p, errors.New("exactly one of present, exact, prefix, suffix, contains and regex is set")
	case h.IgnoreCase && (h.Present || p.kind == regex):
		return p, errors.New("ignoreCase does not go with present and regex")
	case h.IgnoreCase:
		p.text = lower(p.text)
		p.decoded = p.text
		p.kind |= foldedBit
	}
	return p, nil
}
