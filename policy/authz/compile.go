package authz

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Compile turns policies into an Authorizer. The error describes the first value that cannot be enforced, with its policy, rule
// and field. The Authorizer does not refer to policies.
func Compile(policies []Policy, cfg Config) (*Authorizer, error) {
	if cfg.Normalization > DecodeAndMergeSlashes {
		return nil, fmt.Errorf("authz: unknown normalization %d", cfg.Normalization)
	}
	a := &Authorizer{normalization: cfg.Normalization, present: len(policies) > 0}
	slots := make(map[string]int)
	for i := range policies {
		if err := a.addRoutes(&policies[i], slots); err != nil {
			return nil, fmt.Errorf("authz: policy %s: %w", policies[i].Name, err)
		}
	}
	for i := range policies {
		p := &policies[i]
		if p.Name == "" {
			return nil, fmt.Errorf("authz: policy %d has no name", i)
		}
		if p.Action > Audit {
			return nil, fmt.Errorf("authz: policy %s: unknown action %d", p.Name, p.Action)
		}
		if p.Intentions != nil {
			if err := a.addIntentions(p, slots); err != nil {
				return nil, fmt.Errorf("authz: policy %s: %w", p.Name, err)
			}
			continue
		}
		if p.DryRun && p.Action != Audit {
			a.hasShadow = true
			a.hasShadowAllow = a.hasShadowAllow || p.Action == Allow
		} else if p.Action == Allow {
			a.hasAllow, a.enforced = true, true
		} else if p.Action == Deny && len(p.Rules) > 0 {
			a.enforced = true
		}
		for n := range p.Rules {
			if err := a.addRule(p, n, slots); err != nil {
				return nil, fmt.Errorf("authz: policy %s: rule %d: %w", p.Name, n, err)
			}
		}
	}
	a.slots = len(slots)
	a.http.index()
	a.l4.index()
	for i := range a.routes {
		a.routes[i].allow.index()
	}
	return a, nil
}

// addRule compiles a rule of a policy.
func (a *Authorizer) addRule(p *Policy, n int, slots map[string]int) error {
	in := &p.Rules[n]
	r, err := compileRule(in, a.normalization)
	if err == nil && p.Action != Allow {
		err = neverIn(in)
	}
	if err != nil {
		return err
	}
	r.name = Match{Policy: p.Name, Rule: n}
	r.every = p.Action == Allow
	a.note(r, slots)
	if len(in.Of) > 0 {
		return a.allowOf(p, in.Of, r)
	}
	a.http.of(p).add(r)
	if l4, ok := r.withoutHTTP(); ok {
		a.l4.of(p).add(l4)
	}
	return nil
}

// note notes what the readings of a request must have for a rule.
func (a *Authorizer) note(r *rule, slots map[string]int) {
	a.escaped = a.escaped || r.escaped()
	a.hosts = r.prepare(slots) || a.hosts
}

// prepare assigns a slot to each header that the rule reads, and reports whether the rule has conditions on hosts.
func (r *rule) prepare(slots map[string]int) (hosts bool) {
	for i := range r.to {
		r.hosts = r.hosts || !r.to[i].hosts.empty()
		r.paths = r.paths || !r.to[i].paths.empty()
	}
	hosts = r.hosts
	for i := range r.when {
		switch c := &r.when[i]; c.attribute {
		case host:
			hosts = true
		case header:
			slot, ok := slots[c.header]
			if !ok {
				slot = len(slots)
				slots[c.header] = slot
			}
			c.slot, c.single, c.binary = slot, isSingle(c.header), isBinary(c.header)
		}
	}
	return hosts
}

// of returns the group that the rules of p belong to.
func (s *ruleSet) of(p *Policy) *group {
	switch {
	case p.Action == Audit:
		return &s.audit
	case p.Action == Deny && p.DryRun:
		return &s.shadowDeny
	case p.Action == Deny:
		return &s.deny
	case p.DryRun:
		return &s.shadowAllow
	}
	return &s.allow
}

func (s *ruleSet) index() {
	for _, g := range []*group{&s.deny, &s.allow, &s.audit, &s.shadowDeny, &s.shadowAllow} {
		g.index()
	}
}

func compileRule(in *Rule, mode Normalization) (*rule, error) {
	out := new(rule)
	for i := range in.From {
		s, err := compileSource(&in.From[i])
		if err != nil {
			return nil, fmt.Errorf("from %d: %w", i, err)
		}
		out.from = append(out.from, s)
	}
	for i := range in.To {
		o, err := compileOperation(&in.To[i], mode)
		if err != nil {
			return nil, fmt.Errorf("to %d: %w", i, err)
		}
		out.to = append(out.to, o)
	}
	for i := range in.When {
		c, err := compileCondition(&in.When[i])
		if err != nil {
			return nil, fmt.Errorf("when %d: %w", i, err)
		}
		out.when = append(out.when, c)
	}
	return out, nil
}

func compileSource(in *Source) (source, error) {
	var out source
	err := firstError(
		compileTexts("principals", in.Principals, in.NotPrincipals, principalPattern, &out.principals),
		compileTexts("namespaces", in.Namespaces, in.NotNamespaces, namespacePattern, &out.namespaces),
		compileTexts("serviceAccounts", in.ServiceAccounts, in.NotServiceAccounts, accountPattern, &out.accounts),
		compileUsers("requestPrincipals", in.RequestPrincipals, in.NotRequestPrincipals, &out.users),
		compileTexts("trustDomains", in.TrustDomains, in.NotTrustDomains, trustDomainPattern, &out.trustDomains),
		compilePrefixes("ipBlocks", in.IPBlocks, in.NotIPBlocks, &out.source),
		compilePrefixes("remoteIpBlocks", in.RemoteIPBlocks, in.NotRemoteIPBlocks, &out.remote),
	)
	if err == nil && out.empty() {
		err = fmt.Errorf("the source is empty")
	}
	return out, err
}

func compileOperation(in *Operation, mode Normalization) (operation, error) {
	var out operation
	out.ports = ports{slices.Clone(in.Ports), slices.Clone(in.NotPorts)}
	if slices.Contains(in.Ports, 0) || slices.Contains(in.NotPorts, 0) {
		return out, fmt.Errorf("ports: 0 is not a port")
	}
	err := firstError(
		compileTexts("hosts", in.Hosts, in.NotHosts, hostPattern, &out.hosts),
		compileTexts("methods", in.Methods, in.NotMethods, methodPattern, &out.methods),
		compileTexts("paths", in.Paths, in.NotPaths, pathPattern(mode), &out.paths),
		addRegexes("pathRegexes", in.PathRegexes, pathRegexPattern, &out.paths),
	)
	if err == nil && out.empty() {
		err = fmt.Errorf("the operation is empty")
	}
	return out, err
}

func compileCondition(in *Condition) (condition, error) {
	var out condition
	name, isHeader := strings.CutPrefix(in.Key, "request.headers[")
	switch isHeader = isHeader && strings.HasSuffix(name, "]"); {
	case len(in.Values) == 0 && len(in.NotValues) == 0 && len(in.Regexes) == 0:
		return out, fmt.Errorf("%s: neither values nor notValues", in.Key)
	case isHeader:
		return compileHeader(in, strings.TrimSuffix(name, "]"))
	case len(in.Regexes) > 0:
		return out, fmt.Errorf("%s: regular expressions are for headers only", in.Key)
	}
	text := func(about attribute, parse func(string) (pattern, error)) (condition, error) {
		out.attribute = about
		err := compileTexts(in.Key, in.Values, in.NotValues, parse, &out.texts)
		return out, err
	}
	address := func(about attribute) (condition, error) {
		out.attribute = about
		values, notValues, err := parseBoth(in, ParsePrefix)
		if err == nil {
			err = compilePrefixes(in.Key, values, notValues, &out.addresses)
		}
		return out, err
	}
	switch in.Key {
	case "source.ip":
		return address(sourceIP)
	case "remote.ip":
		return address(remoteIP)
	case "destination.ip":
		return address(destinationIP)
	case "destination.port":
		var err error
		out.attribute = destinationPort
		out.ports.values, out.ports.notValues, err = parseBoth(in, parsePort)
		return out, err
	case "source.principal":
		return text(principal, principalPattern)
	case "source.namespace":
		return text(namespace, namespacePattern)
	case "source.serviceAccount":
		return text(account, accountPattern)
	case "source.trustDomain":
		return text(trustDomain, trustDomainPattern)
	case "connection.sni":
		return text(sni, foldedPattern)
	}
	switch {
	case in.Key == keyUser:
		out.attribute = requestPrincipal
		err := compileUsers(in.Key, in.Values, in.NotValues, &out.users)
		return out, err
	case in.Key == keyAudiences, in.Key == keyPresenter, strings.HasPrefix(in.Key, keyClaims):
		var err error
		if out.claim, err = claimPath(in.Key); err != nil {
			return out, fmt.Errorf("%s: %w", in.Key, err)
		}
		return text(claim, claimPattern)
	}
	return out, fmt.Errorf("unknown key %q", in.Key)
}

// compileHeader compiles a condition on a header. Some headers have two names in Envoy.
func compileHeader(in *Condition, name string) (condition, error) {
	out := condition{attribute: header, header: http.CanonicalHeaderKey(name)}
	parse := headerPattern
	switch strings.ToLower(name) {
	case "":
		return out, fmt.Errorf("%s: the header has no name", in.Key)
	case "host", ":authority":
		out.attribute, out.header, parse = host, "", hostPattern
	case ":method":
		out.attribute, out.header, parse = method, "", methodPattern
	default:
		if err := checkName(name); err != nil {
			return out, fmt.Errorf("%s: %w", in.Key, err)
		}
	}
	out.utf8 = len(in.Regexes) > 0
	return out, firstError(
		compileTexts(in.Key, in.Values, in.NotValues, parse, &out.texts),
		addRegexes(in.Key, in.Regexes, regexPattern, &out.texts),
	)
}

// addRegexes adds regular expressions to the values of a field.
func addRegexes(field string, regexes []string, parse func(string) (pattern, error), to *texts) error {
	if len(regexes) == 0 {
		return nil
	}
	all := slices.Clone(to.values.all)
	for _, v := range regexes {
		if v == "" {
			return fmt.Errorf("%s: an empty value", field)
		}
		p, err := parse(v)
		if err != nil {
			return fmt.Errorf("%s: %q: %w", field, v, err)
		}
		all = append(all, p)
	}
	to.values = newList(all)
	return nil
}

func compileUsers(field string, values, notValues []string, out *users) (err error) {
	if out.values, err = parseUsers(field, values); err != nil {
		return err
	}
	out.notValues, err = parseUsers(notField(field), notValues)
	return err
}

func parseUsers(field string, values []string) (all []user, err error) {
	for _, v := range values {
		if v == "" {
			return nil, fmt.Errorf("%s: an empty value", field)
		}
		all = append(all, parseUser(v))
	}
	return all, nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// notField returns the name of the negation of a field of a source or operation. For a condition, it returns the key, which is the name of
// both lists.
func notField(field string) string {
	if strings.Contains(field, ".") {
		return field
	}
	return "not" + strings.ToUpper(field[:1]) + field[1:]
}

func compileTexts(field string, values, notValues []string, parse func(string) (pattern, error), out *texts) error {
	var err error
	if out.values, err = compileList(field, values, parse); err != nil {
		return err
	}
	out.notValues, err = compileList(notField(field), notValues, parse)
	return err
}

func compileList(field string, values []string, parse func(string) (pattern, error)) (list, error) {
	all := make([]pattern, 0, len(values))
	for _, v := range values {
		if v == "" {
			return list{}, fmt.Errorf("%s: an empty value", field)
		}
		p, err := parse(v)
		if err != nil {
			return list{}, fmt.Errorf("%s: %q: %w", field, v, err)
		}
		all = append(all, p)
	}
	return newList(all), nil
}

func compilePrefixes(field string, values, notValues []netip.Prefix, out *addresses) error {
	var err error
	if out.values, err = maskPrefixes(field, values); err != nil {
		return err
	}
	out.notValues, err = maskPrefixes(notField(field), notValues)
	return err
}

func maskPrefixes(field string, in []netip.Prefix) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, p := range in {
		if p.Addr().Is4In6() && p.Bits() >= 96 {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		if !p.IsValid() || p.Addr().Is4In6() {
			return nil, fmt.Errorf("%s: %v is not an address prefix", field, p)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// parseBoth parses Values and NotValues of a condition.
func parseBoth[T any](c *Condition, parse func(string) (T, error)) (values, notValues []T, err error) {
	read := func(texts []string) (list []T) {
		for _, text := range texts {
			value, wrong := parse(text)
			if wrong != nil && err == nil {
				err = fmt.Errorf("%s: %w", c.Key, wrong)
			}
			list = append(list, value)
		}
		return list
	}
	values, notValues = read(c.Values), read(c.NotValues)
	return values, notValues, err
}

// ParsePrefix parses an address, or a prefix in CIDR notation, as they appear in ipBlocks. An address is a prefix that contains
// only itself.
func ParsePrefix(text string) (netip.Prefix, error) {
	if strings.Contains(text, "/") {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return p, fmt.Errorf("%q is not an address prefix", text)
		}
		return p, nil
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Prefix{}, fmt.Errorf("%q is not an address", text)
	}
	return netip.PrefixFrom(addr, addr.BitLen()), nil
}

func parsePort(text string) (uint16, error) {
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port", text)
	}
	return uint16(n), nil
}
