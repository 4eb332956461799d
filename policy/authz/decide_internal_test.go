package authz

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
)

// FuzzDecide holds the Authorizer, with its index and its short cuts, against a reference that walks all rules under all
// combinations of readings, and matches with the regular expressions that Istio would make of the values.
func FuzzDecide(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed, seed*7, "/a/b", uint8(seed))
	}
	for i, path := range []string{"//a", "/a/../b", "/a%2Fb", "/a;x", "/a#/../b", `/a\..\b`, "/%61", "/a%3Ab", "/a:b", "/%", "/%0A", "x://h", "a://u@[H.]:80/b", "://h"} {
		f.Add(uint64(100+i), uint64(i), path, uint8(i))
	}
	f.Add(uint64(25), uint64(194), "/"+strings.Repeat("Q", 800)+`\`+strings.Repeat("Q", 300), uint8(0)) // too long for its oddity
	f.Fuzz(func(t *testing.T, seed, request uint64, path string, mode uint8) {
		cfg := Config{Normalization: Normalization(mode % 4)}
		policies := randomPolicies(rand.New(rand.NewPCG(seed, 1)), cfg.Normalization)
		a, err := Compile(policies, cfg)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(request, 2))
		for range 8 {
			r := randomRequest(rng, path)
			got, want := decide(t, a, rng, &r), refDecide(policies, cfg, &r)
			if got != want {
				t.Fatalf("Decide(%+v)\n of %+v\n = %+v,\nwant %+v", r, policies, got, want)
			}
		}
	})
}

// TestDecideAgrees is what FuzzDecide does, for a hundred sets of policies.
func TestDecideAgrees(t *testing.T) {
	paths := []string{"a/b", "/a", "a/../b", "a%2Fb", "a;x", "a#/../b", `/a\..\b`, "%61", "a%3Ab", "a%20b", "%00", "%0A", "./a", "a/"}
	allowed, denied := 0, 0
	for seed := range uint64(150) {
		rng := rand.New(rand.NewPCG(seed, 3))
		cfg := Config{Normalization: Normalization(seed % 4)}
		policies := randomPolicies(rng, cfg.Normalization)
		a, err := Compile(policies, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			r := randomRequest(rng, pick(rng, paths...))
			got, want := decide(t, a, rng, &r), refDecide(policies, cfg, &r)
			if got != want {
				t.Fatalf("Decide(%+v)\n of %+v\n = %+v,\nwant %+v", r, policies, got, want)
			}
			if got.Rule >= 0 && got.Allowed {
				allowed++
			} else if got.Rule >= 0 {
				denied++
			}
		}
	}
	if allowed < 100 || denied < 100 {
		t.Errorf("%d requests were allowed by a rule and %d denied: the policies test nothing", allowed, denied)
	}
}

// decide returns the decision about a request, without Steady, which it checks: requests with other headers and another host get the same.
func decide(t *testing.T, a *Authorizer, rng *rand.Rand, r *Request) Decision {
	t.Helper()
	got := a.Decide(r)
	if got.Steady {
		other := randomRequest(rng, "/")
		if !other.L4 {
			other.Header[":protocol"] = []string{"websocket"}
		}
		other.Host, r.Host, other.Header, r.Header = r.Host, other.Host, r.Header, other.Header
		if now := a.Decide(r); now != got {
			t.Fatalf("Decide(%+v) = %+v, want %+v as with the host %s and the header %v", r, now, got, other.Host, other.Header)
		}
		r.Host, r.Header = other.Host, other.Header
	}
	got.Steady = false
	return got
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func some[T any](r *rand.Rand, p float64, from ...T) []T {
	if r.Float64() > p {
		return nil
	}
	list := make([]T, 1+r.IntN(3))
	for i := range list {
		list[i] = pick(r, from...)
	}
	return list
}

var (
	somePrincipals = []string{"td/ns/a/sa/x", "td/ns/a/sa/y", "td/ns/b/sa/x", "td2/ns/a/sa/x", "td/ns/ns/sa/x", "td/spire/x",
		"td/ns/a/k/v/sa/x/k/v", "td/ns/ab/sa/x", "td/ns/a/sa/xy"}
	somePaths     = []string{"/", "/a", "/b", "/a/b", "/a:b", "/a/b/c", "/ab", "/a b"}
	principalVals = append(slices.Clone(somePrincipals), "*", "td/*", "td/ns/a/*", "*/sa/x", "td2*")
	namespaceVals = []string{"a", "b", "a*", "*", "ns", "sa", "*a*"}
	accountVals   = []string{"a/x", "a/y", "b/x", "ns/x"}
	pathVals      = append(slices.Clone(somePaths), "*", "/a*", "/a/*", "*/b", "/a%2Fb", "/a%3Ab", "/a%20b", "/{*}", "/a/{**}",
		"/{*}/b", "/a/{*}/c", "/%61", "/a;x", "//a")
	methodVals = []string{"GET", "POST", "*", "P*"}
	hostVals   = []string{"h", "H.example", "*.example", "h:*", "*"}
	prefixVals = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("10.0.0.1/32"),
		netip.MustParsePrefix("fd00::/8")}
	headerVals  = []string{"1", "2", "1,2", "*", "1*", "*2"}
	pathExprs   = []string{"/a.*", "/(a|b)", "/a/[^/]*", ".*b", "/a|/", ".*"}
	headerExprs = []string{"1|2", "1.*", "[12]*", "1,2"}
)

func randomPolicies(r *rand.Rand, mode Normalization) []Policy {
	var policies []Policy
	for i := range r.IntN(8) {
		p := Policy{Name: fmt.Sprint("ns/", i), Action: Action(r.IntN(3)), DryRun: r.IntN(4) == 0}
		for range r.IntN(10) {
			p.Rules = append(p.Rules, randomRule(r, mode))
		}
		policies = append(policies, p)
	}
	return policies
}

func randomRule(r *rand.Rand, mode Normalization) Rule {
	var rule Rule
	for range r.IntN(3) {
		s := Source{
			Principals: some(r, 0.5, principalVals...), NotPrincipals: some(r, 0.1, principalVals...),
			Namespaces: some(r, 0.2, namespaceVals...), NotNamespaces: some(r, 0.1, namespaceVals...),
			ServiceAccounts: some(r, 0.2, accountVals...), NotServiceAccounts: some(r, 0.1, accountVals...),
			TrustDomains: some(r, 0.1, "td", "td2", "td*", "*d*", "t*2", "*"), NotTrustDomains: some(r, 0.05, "td", "*2", "*t*2"),
			IPBlocks: some(r, 0.1, prefixVals...), NotIPBlocks: some(r, 0.1, prefixVals...),
			RemoteIPBlocks: some(r, 0.1, prefixVals...), NotRemoteIPBlocks: some(r, 0.1, prefixVals...),
		}
		if _, err := compileSource(&s); err == nil {
			rule.From = append(rule.From, s)
		}
	}
	for range r.IntN(3) {
		o := Operation{
			Hosts: some(r, 0.1, hostVals...), NotHosts: some(r, 0.05, hostVals...),
			Methods: some(r, 0.3, methodVals...), NotMethods: some(r, 0.1, methodVals...),
			Paths: some(r, 0.6, pathVals...), NotPaths: some(r, 0.2, pathVals...), PathRegexes: some(r, 0.2, pathExprs...),
			Ports: some(r, 0.1, uint16(80), 8080), NotPorts: some(r, 0.1, uint16(80), 8080),
		}
		if _, err := compileOperation(&o, mode); err == nil {
			rule.To = append(rule.To, o)
		}
	}
	// One condition a key: see (*rule).match for two on one header.
	for _, c := range []Condition{
		{"request.headers[X-A]", some(r, 0.1, headerVals...), some(r, 0.1, headerVals...), some(r, 0.1, headerExprs...)},
		{"request.headers[:method]", some(r, 0.05, methodVals...), nil, some(r, 0.05, "G.*|PUT")},
		{"source.principal", some(r, 0.1, principalVals...), nil, nil},
		{"source.namespace", nil, some(r, 0.05, namespaceVals...), nil},
		{"source.serviceAccount", some(r, 0.03, accountVals...), some(r, 0.03, accountVals...), nil},
		{"source.trustDomain", nil, some(r, 0.03, "td", "*2"), nil},
		{"source.ip", some(r, 0.05, "10.0.0.1", "10.0.0.0/8"), nil, nil},
		{"remote.ip", nil, some(r, 0.03, "10.0.0.1", "10.0.0.0/8"), nil},
		{"destination.ip", some(r, 0.03, "10.0.0.1", "10.0.0.0/8"), some(r, 0.03, "10.0.0.1"), nil},
		{"request.headers[Host]", some(r, 0.03, hostVals...), some(r, 0.03, hostVals...), nil},
		{"destination.port", some(r, 0.05, "80"), some(r, 0.05, "8080"), nil},
		{"connection.sni", some(r, 0.05, hostVals...), nil, nil},
	} {
		if len(c.Values)+len(c.NotValues)+len(c.Regexes) > 0 {
			rule.When = append(rule.When, c)
		}
	}
	return rule
}

func randomRequest(r *rand.Rand, path string) Request {
	addr := func() netip.Addr {
		return pick(r, netip.Addr{}, netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1"),
			netip.MustParseAddr("::ffff:10.1.1.1"))
	}
	req := Request{
		Principal:   pick(r, append([]string{""}, somePrincipals...)...),
		Source:      addr(),
		Remote:      addr(),
		Destination: netip.AddrPortFrom(addr(), pick(r, uint16(0), 80, 8080)),
		SNI:         pick(r, "", "h", "x.EXAMPLE"),
		L4:          r.IntN(6) == 0,
	}
	if !req.L4 {
		req.Host = pick(r, "h", "H:80", "x.Example", "", "h.", " h", "h.:80", "u@h", "[::1]", "[H.]:80", "\u212a.example")
		req.Method = pick(r, "GET", "POST")
		req.Target = pick(r, append(somePaths, "/"+path, path, "http://"+pick(r, "h", "h.:80", "u@x.example", "[h]", "", "\uff48")+"/"+path)...)
		req.Header = http.Header{"X-A": some(r, 0.5, "1", "2", "", "12", " 1", "2\t", "1,2", "1, 12 ,", "\u00a02")}
		if r.IntN(4) == 0 {
			req.Header["Host"] = some(r, 0.8, "h", "x.example.", "y")
		}
	}
	return req
}

// refRequest is a request under one combination of readings.
type refRequest struct {
	*Request
	path   reading
	header *string
	line   string   // the only line of the header
	hosts  []string // all readings of the host
}

// unreadablePath and anyHost stand for a path and a host that might be any.
const unreadablePath, anyHost = "?", "?"

var (
	dotBeforePort = regexp.MustCompile(`\.+(:[^:\]]*)?$`)
	inBrackets    = regexp.MustCompile(`^\[([^:]*?)\]?(:|:[^:]*[^:\]])?$`)
	authorityOf   = regexp.MustCompile(`(?s)^(?:[^/].*?)??://(?:[^/?]*@)?([^/?]*)`)
	notASCII      = regexp.MustCompile(`[^\x00-\x7f]`)
)

// refHosts returns all readings of the host.
func refHosts(r *Request) (hosts []string) {
	sent := append([]string{r.Host}, r.Header["Host"]...)
	if m := authorityOf.FindStringSubmatch(r.Target); m != nil && m[1] != "" {
		sent = append(sent, m[1])
	}
	for _, h := range sent {
		trimmed := strings.TrimSpace(h)
		bare := trimmed[strings.LastIndex(trimmed, "@")+1:]
		unbracketed := inBrackets.ReplaceAllString(bare, "$1$2")
		hosts = append(hosts, h, trimmed, bare, unbracketed, dotBeforePort.ReplaceAllString(unbracketed, "$1"))
	}
	if slices.ContainsFunc(sent, notASCII.MatchString) {
		return []string{anyHost}
	}
	return hosts
}

func refDecide(policies []Policy, cfg Config, r *Request) Decision {
	d := Decision{Allowed: true, Reason: reasonNone, Match: noMatch, Audit: noMatch, Shadow: Shadow{Match: noMatch}}
	if len(policies) == 0 {
		return d
	}
	enforced := slices.DeleteFunc(slices.Clone(policies), func(p Policy) bool { return p.DryRun && p.Action != Audit })
	shadow := len(enforced) != len(policies)
	var views []refRequest
	unreadable := false
	paths := map[reading]bool{{}: true}
	if !r.L4 {
		path, plain, ok := targetPath(r.Method, r.Target)
		malformed := func() bool { found := escapesOf(path); return !valid(path, found) || !plain && tooLong(path, found) }
		if !ok || path != "" && path[0] == '/' && malformed() {
			if shadow {
				d.Shadow = Shadow{Present: true, Match: noMatch, Reason: reasonMalformed}
			}
			if !slices.ContainsFunc(enforced, func(p Policy) bool { return p.Action == Allow || p.Action == Deny && len(p.Rules) > 0 }) {
				unreadable = true
			} else {
				d.Allowed, d.BadRequest, d.Reason = false, true, reasonMalformed
				return d
			}
		}
		if unreadable {
			paths = map[reading]bool{{path: unreadablePath}: true}
		} else if path == "" || path[0] != '/' {
			paths = map[reading]bool{{path: path}: true}
		} else {
			paths = refReadings(path, cfg.Normalization)
		}
	}
	headers := []*string{nil}
	line := ""
	if values := r.Header["X-A"]; len(values) > 0 {
		headers = nil
		add := func(v string) {
			trimmed := strings.TrimSpace(v)
			headers = append(headers, &v, &trimmed)
		}
		add(strings.Join(values, ","))
		for _, v := range values {
			add(v)
			for element := range strings.SplitSeq(v, ",") {
				if strings.Contains(v, ",") && strings.TrimSpace(element) != "" {
					add(element[len(element)-len(strings.TrimLeft(element, " ")):])
				}
			}
		}
		if len(values) == 1 {
			line = values[0]
		}
	}
	hosts := []string{r.Host}
	if !r.L4 {
		hosts = refHosts(r)
	}
	for path := range paths {
		for _, h := range headers {
			for _, host := range hosts {
				view := *r
				view.Host = host
				views = append(views, refRequest{&view, path, h, line, hosts})
			}
		}
	}
	verdict := func(policies []Policy) (bool, Match, string) {
		if m := refFirst(policies, Deny, views); m != noMatch {
			return false, m, reasonDenied
		}
		if !slices.ContainsFunc(policies, func(p Policy) bool { return p.Action == Allow }) {
			return true, noMatch, reasonNoAllow
		}
		if m := refFirst(policies, Allow, views); m != noMatch {
			return true, m, reasonAllowed
		}
		return false, noMatch, reasonUnmatched
	}
	d.Audit = refFirst(policies, Audit, views)
	d.Allowed, d.Match, d.Reason = verdict(enforced)
	if shadow && !unreadable {
		d.Shadow.Present = true
		d.Shadow.Allowed, d.Shadow.Match, d.Shadow.Reason = verdict(policies)
		// Enforced policies come first, wherever they stand.
		if d.Reason == reasonDenied || d.Reason == reasonAllowed && d.Shadow.Reason == reasonAllowed {
			d.Shadow.Match = d.Match
		}
	}
	return d
}

func refFirst(policies []Policy, action Action, views []refRequest) Match {
	for _, p := range policies {
		if p.Action != action {
			continue
		}
		for i := range p.Rules {
			under := func(v refRequest) bool { return refRule(&p.Rules[i], action, v) }
			all := !slices.ContainsFunc(views, func(v refRequest) bool { return !under(v) })
			if action == Allow && all || action != Allow && slices.ContainsFunc(views, under) {
				return Match{p.Name, i}
			}
		}
	}
	return noMatch
}

// refRule judges one rule under one combination of readings.
func refRule(rule *Rule, action Action, v refRequest) bool {
	if v.L4 {
		needsHTTP := func(o Operation) bool {
			return len(o.Hosts)+len(o.NotHosts)+len(o.Methods)+len(o.NotMethods)+len(o.Paths)+len(o.NotPaths)+len(o.PathRegexes) > 0
		}
		headers := func(c Condition) bool { return strings.HasPrefix(c.Key, "request.") }
		if action == Allow && (slices.ContainsFunc(rule.To, needsHTTP) || slices.ContainsFunc(rule.When, headers)) {
			return false
		}
	}
	from := len(rule.From) == 0 || slices.ContainsFunc(rule.From, func(s Source) bool {
		id := func(values, not []string, expr func(string) string) bool {
			return refTexts(values, not, expr, "spiffe://"+v.Principal, v.Principal != "")
		}
		return id(s.Principals, s.NotPrincipals, principalExpr) && id(s.Namespaces, s.NotNamespaces, namespaceExpr) &&
			id(s.ServiceAccounts, s.NotServiceAccounts, accountExpr) &&
			id(s.TrustDomains, s.NotTrustDomains, trustDomainExpr) &&
			refAddr(s.IPBlocks, s.NotIPBlocks, v.Source, action) && refAddr(s.RemoteIPBlocks, s.NotRemoteIPBlocks, v.Remote, action)
	})
	to := len(rule.To) == 0 || slices.ContainsFunc(rule.To, func(o Operation) bool {
		if !refPort(o.Ports, o.NotPorts, v.Destination.Port(), action) {
			return false
		}
		return v.L4 || refTexts(o.Methods, o.NotMethods, textExpr, v.Method, true) &&
			(v.Host == anyHost && (action != Allow || len(o.Hosts)+len(o.NotHosts) == 0) || v.Host != anyHost && refTexts(o.Hosts, o.NotHosts, hostExpr, v.Host, true)) &&
			(v.path.path == unreadablePath && (action != Allow || len(o.Paths)+len(o.NotPaths)+len(o.PathRegexes) == 0) || v.path.path != unreadablePath) &&
			(v.path.path == unreadablePath || refTexts(slices.Concat(o.Paths, regexes(o.PathRegexes)), o.NotPaths, func(value string) string {
				if expr, ok := strings.CutPrefix(value, regexMark); ok {
					return expr
				}
				plain := unreserved.MatchString
				if v.path.decoded {
					plain = func(string) bool { return true }
				}
				return pathExpr(refUnescape(value, plain))
			}, v.path.path, true))
	})
	return from && to && !slices.ContainsFunc(rule.When, func(c Condition) bool { return !refCondition(c, action, v) })
}

func refCondition(c Condition, action Action, v refRequest) bool {
	switch c.Key {
	case "request.headers[X-A]":
		if v.L4 {
			return true
		}
		value := ""
		if v.header != nil {
			value = *v.header
		}
		values := slices.Concat(c.Values, regexes(c.Regexes))
		if action == Allow && v.line != "" && slices.Contains(values, v.line) {
			values = nil // they name the whole line
		}
		return refTexts(values, c.NotValues, func(v string) string {
			if v == "*" {
				return ".*"
			}
			return anyExpr(v)
		}, value, v.header != nil)
	case "request.headers[:method]":
		return v.L4 || refTexts(slices.Concat(c.Values, regexes(c.Regexes)), c.NotValues, anyExpr, v.Method, true)
	case "source.principal":
		return refTexts(c.Values, c.NotValues, principalExpr, "spiffe://"+v.Principal, v.Principal != "")
	case "source.namespace":
		return refTexts(c.Values, c.NotValues, namespaceExpr, "spiffe://"+v.Principal, v.Principal != "")
	case "connection.sni":
		return refTexts(c.Values, c.NotValues, func(v string) string { return "(?i)" + textExpr(v) }, v.SNI, true)
	case "source.serviceAccount":
		return refTexts(c.Values, c.NotValues, accountExpr, "spiffe://"+v.Principal, v.Principal != "")
	case "source.trustDomain":
		return refTexts(c.Values, c.NotValues, trustDomainExpr, "spiffe://"+v.Principal, v.Principal != "")
	case "request.headers[Host]":
		// Each condition has the readings of the host for itself, as those of other headers.
		matches := func(host string) bool {
			return host == anyHost && action != Allow || host != anyHost && refTexts(c.Values, c.NotValues, hostExpr, host, true)
		}
		if action == Allow {
			return v.L4 || !slices.ContainsFunc(v.hosts, func(host string) bool { return !matches(host) })
		}
		return v.L4 || slices.ContainsFunc(v.hosts, matches)
	case "source.ip", "remote.ip", "destination.ip":
		prefixes := func(values []string) (prefixes []netip.Prefix) {
			for _, value := range values {
				if !strings.Contains(value, "/") {
					value += "/32"
				}
				prefixes = append(prefixes, netip.MustParsePrefix(value))
			}
			return prefixes
		}
		addr := map[string]netip.Addr{"source.ip": v.Source, "remote.ip": v.Remote, "destination.ip": v.Destination.Addr()}[c.Key]
		return refAddr(prefixes(c.Values), prefixes(c.NotValues), addr, action)
	case "destination.port":
		ports := func(values []string) (ports []uint16) {
			for _, value := range values {
				var port uint16
				fmt.Sscan(value, &port)
				ports = append(ports, port)
			}
			return ports
		}
		return refPort(ports(c.Values), ports(c.NotValues), v.Destination.Port(), action)
	}
	panic(c.Key)
}

func refTexts(values, notValues []string, expr func(string) string, s string, present bool) bool {
	in := func(value string) bool {
		return present && compiled("(?s)^(?:"+expr(value)+")$").MatchString(s)
	}
	return (len(values) == 0 || slices.ContainsFunc(values, in)) && !slices.ContainsFunc(notValues, in)
}

var compiledExprs sync.Map

func compiled(expr string) *regexp.Regexp {
	if e, ok := compiledExprs.Load(expr); ok {
		return e.(*regexp.Regexp)
	}
	e := regexp.MustCompile(expr)
	compiledExprs.Store(expr, e)
	return e
}

func refAddr(values, notValues []netip.Prefix, addr netip.Addr, action Action) bool {
	if len(values)+len(notValues) == 0 || !addr.IsValid() {
		return len(values)+len(notValues) == 0 || action != Allow
	}
	in := func(p netip.Prefix) bool { return p.Contains(addr.Unmap()) }
	return (len(values) == 0 || slices.ContainsFunc(values, in)) && !slices.ContainsFunc(notValues, in)
}

func refPort(values, notValues []uint16, port uint16, action Action) bool {
	if len(values)+len(notValues) == 0 || port == 0 {
		return len(values)+len(notValues) == 0 || action != Allow
	}
	return (len(values) == 0 || slices.Contains(values, port)) && !slices.Contains(notValues, port)
}

func textExpr(v string) string {
	switch {
	case v == "*":
		return ".+"
	case strings.HasPrefix(v, "*"):
		return ".*" + regexp.QuoteMeta(v[1:])
	case strings.HasSuffix(v, "*"):
		return regexp.QuoteMeta(v[:len(v)-1]) + ".*"
	}
	return regexp.QuoteMeta(v)
}

// regexMark is before values that are regular expressions.
const regexMark = "\x00"

func regexes(list []string) (values []string) {
	for _, expr := range list {
		values = append(values, regexMark+expr)
	}
	return values
}

// anyExpr is textExpr, or the regular expression itself.
func anyExpr(v string) string {
	if expr, ok := strings.CutPrefix(v, regexMark); ok {
		return expr
	}
	return textExpr(v)
}

func hostExpr(v string) string {
	if v == "*" {
		return ".*"
	}
	return "(?i)" + textExpr(v)
}

func principalExpr(v string) string { return "spiffe://" + textExpr(v) }

func namespaceExpr(v string) string {
	return ".*/ns/" + strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, ".*") + "/.*"
}

func trustDomainExpr(v string) string {
	return "spiffe://" + strings.ReplaceAll(regexp.QuoteMeta(v), `\*`, "[^/]*") + "/.*"
}

func accountExpr(v string) string {
	ns, name, _ := strings.Cut(v, "/")
	return "spiffe://.+/ns/" + regexp.QuoteMeta(ns) + "/(.+/|)sa/" + regexp.QuoteMeta(name) + "(/.+)?"
}

func pathExpr(v string) string {
	if !strings.Contains(v, "{*}") && !strings.Contains(v, "{**}") {
		return textExpr(v)
	}
	v = strings.ReplaceAll(regexp.QuoteMeta(v), `\{\*\*\}`, ".*")
	return strings.ReplaceAll(v, `\{\*\}`, "[^/]+")
}
