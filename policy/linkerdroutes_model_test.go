package policy_test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// The model chooses the route of a request as Linkerd's proxy does, one request and one reading of its path at a time, and compares what matched.

type modelRoute struct {
	group, kind, name string
	created           int
	hosts             []string
	rules             [][]modelMatch
}

type modelMatch struct{ kind, path, method, header string } // the zero value is a rule of a GRPCRoute without matches, for all requests

// matched is what a match has of a request, the most important first.
type matched [6]int

func (m modelMatch) of(grpc bool, method, at, header string) (matched, bool) {
	var got matched
	if m == (modelMatch{}) {
		return got, true
	}
	switch rest, below := strings.CutPrefix(at, strings.TrimSuffix(m.path, "/")); m.kind {
	case "Exact":
		got[2], got[3] = 2, len(m.path)
		if at != m.path {
			return got, false
		}
	case "RegularExpression":
		got[2] = 1
		if !regexp.MustCompile(`\A(?:` + m.path + `)\z`).MatchString(at) {
			return got, false
		}
	default:
		got[3] = max(1, len(strings.TrimSuffix(m.path, "/")))
		if !below || rest != "" && rest[0] != '/' {
			return got, false
		}
	}
	if grpc { // "/svc/", "/svc/method" or "" for all calls
		got[2], got[3] = 0, 0
		if segments := strings.Split(m.path, "/"); m.path != "/" {
			got[3], got[4] = len(segments[1]), len(segments[2])
		}
		if method != http.MethodPost || strings.Count(at, "/") < 2 {
			return got, false
		}
	} else if m.method != "" {
		got[4] = 1
	}
	if m.header != "" {
		got[5] = 1
	}
	return got, (m.method == "" || m.method == method) && (m.header == "" || m.header == header)
}

// find returns the route of a request, or nil.
func find(routes []modelRoute, method, host, at, header string) (best *modelRoute) {
	var most matched
	for i := range routes {
		r := &routes[i]
		var of []matched
		for _, name := range r.hosts {
			suffix, star := strings.CutPrefix(name, "*")
			if star && strings.HasSuffix(host, suffix) && host != suffix {
				of = append(of, matched{1, len(suffix)})
			} else if host == name {
				of = append(of, matched{2, len(name)})
			}
		}
		if r.hosts == nil {
			of = append(of, matched{})
		}
		for _, on := range of {
			for _, rule := range r.rules {
				for _, m := range rule {
					got, ok := m.of(r.kind == "GRPCRoute", method, at, header)
					got[0], got[1] = on[0], on[1]
					if ok && (best == nil || slices.Compare(got[:], most[:]) > 0) {
						best, most = r, got
					}
				}
			}
		}
	}
	return best
}

func (r *modelRoute) document() string {
	var rules []string
	for _, rule := range r.rules {
		var matches []string
		for _, m := range rule {
			if m == (modelMatch{}) {
				continue
			}
			header := ""
			if m.header != "" {
				header = fmt.Sprintf(", headers: [{name: x-of, value: %q}]", m.header)
			}
			of := fmt.Sprintf("path: {type: %s, value: %q}", m.kind, m.path)
			if m.method != "" {
				of += ", method: " + m.method
			}
			if r.kind == "GRPCRoute" {
				segments := strings.Split(m.path+"/", "/")
				of = fmt.Sprintf("method: {service: %q, method: %q}", segments[1], segments[2])
				if m.path == "/" {
					of, header = "headers: []", strings.Replace(header, ", ", "", 1)
					if header != "" {
						of = header
					}
					header = ""
				}
			}
			matches = append(matches, "{"+of+header+"}")
		}
		rules = append(rules, "{matches: ["+strings.Join(matches, ", ")+"]}")
	}
	hosts := ""
	if r.hosts != nil {
		hosts = "hostnames: [" + quoted(r.hosts) + "], "
	}
	version := "v1"
	if r.group == "policy.linkerd.io" {
		version = "v1beta3"
	}
	return fmt.Sprintf("---\napiVersion: %s/%s\nkind: %s\nmetadata: {name: %s, namespace: shop, creationTimestamp: \"2026-01-01T00:00:%02dZ\"}\n"+
		"spec: {parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}], %srules: [%s]}\n", r.group, version, r.kind, r.name, r.created, hosts, strings.Join(rules, ", "))
}

func randomRoutes(r *rand.Rand, kind string) (routes []modelRoute) {
	for i := range r.IntN(4) {
		one := modelRoute{group: "gateway.networking.k8s.io", kind: kind, name: fmt.Sprint("r", i), created: r.IntN(3)}
		if kind == "HTTPRoute" && r.IntN(2) == 0 {
			one.group = "policy.linkerd.io"
		}
		if r.IntN(4) == 0 {
			one.hosts = some(r, 2, "web", "web.shop", "*.shop", "*.web.shop")
		}
		for range 1 + r.IntN(2) {
			var rule []modelMatch
			for range 1 + r.IntN(2) {
				m := modelMatch{kind: pick(r, "Exact", "PathPrefix", "PathPrefix", "RegularExpression"), path: pick(r, "/", "/a", "/a/b", "/a/", "/b", "/a%20b"), method: pick(r, "", "", "GET", "POST")}
				if m.kind == "RegularExpression" {
					m.path = pick(r, "/a.*", "/[ab]", "/.*b", "/")
				}
				if kind == "GRPCRoute" {
					m = pick(r, modelMatch{"Exact", "/a/b", "", ""}, modelMatch{"PathPrefix", "/a/", "", ""}, modelMatch{"Exact", "/b/b", "", ""}, modelMatch{"PathPrefix", "/", "", ""})
				}
				m.header = pick(r, "", "", "", "x", "y*")
				rule = append(rule, m)
			}
			if kind == "GRPCRoute" && r.IntN(4) == 0 {
				rule = make([]modelMatch, 1)
			}
			one.rules = append(one.rules, rule)
		}
		routes = append(routes, one)
	}
	slices.SortStableFunc(routes, func(a, b modelRoute) int { return cmp.Or(a.created-b.created, strings.Compare(a.name, b.name)) })
	return routes
}

// modelReadings are ways to read a path, some of those that the library takes into account. None is that of a path that cannot be read.
func modelReadings(target string) []string {
	cut := regexp.MustCompile(`;[^/]*`).ReplaceAllString(target, "")
	var all []string
	for _, form := range []string{target, cut} {
		plain, err := url.PathUnescape(form)
		if err != nil {
			return nil
		}
		clean := path.Clean(plain)
		if strings.HasSuffix(plain, "/") && clean != "/" {
			clean += "/"
		}
		all = append(all, clean)
	}
	return all
}

// TestRoutes_Model compares decisions about requests to a Server with routes with those of the model. A request whose path has several readings may
// be allowed only if each of them is, and is answered with 404 only if none of them has a route.
func TestRoutes_Model(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var last *policy.Plan
	w := policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}}
	outcomes := make(map[string]int)
	for range 400 {
		protocol, kind := pick(r, "unknown", "HTTP/1", "HTTP/2"), "HTTPRoute"
		if r.IntN(4) == 0 {
			protocol, kind = "gRPC", "GRPCRoute"
		}
		routes := randomRoutes(r, kind)
		text := fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: web, namespace: shop}\n"+
			"spec: {podSelector: {}, port: 80, proxyProtocol: %s, accessPolicy: %s}\n", protocol, pick(r, "deny", "deny", "all-authenticated"))
		granted := make(map[string]bool) // "name of a route, or of the server/account"
		for i := range routes {
			text += routes[i].document()
		}
		for i := range r.IntN(5) {
			to := modelRoute{group: "policy.linkerd.io", kind: "Server", name: "web"}
			if len(routes) > 0 && r.IntN(5) > 0 {
				to = pick(r, routes...)
			}
			account := pick(r, "one", "two")
			granted[to.name+"/"+account] = true
			text += fmt.Sprintf("---\napiVersion: policy.linkerd.io/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p%d, namespace: shop}\n"+
				"spec: {targetRef: {group: %s, kind: %s, name: %s}, requiredAuthenticationRefs: [{kind: ServiceAccount, name: %s}]}\n", i, to.group, to.kind, to.name, account)
		}
		plan, findings := policy.Recompile(last, []policy.Source{{Name: "x.yaml", Data: []byte(text)}}, w)
		if plan == nil {
			t.Fatalf("seed %d: %v\n%s", seed, findings, text)
		}
		last = plan
		for range 60 {
			account, header, host, method := pick(r, "one", "two", ""), pick(r, "", "x", "y*", "yes"), pick(r, "web", "web.shop", "x.web.shop"), pick(r, "GET", "POST", "POST", "PUT")
			target := pick(r, "/", "/a", "/a/", "/a/b", "/b", "/b/b", "/ab", "/a/b/c", "/a%20b", "/a/../b", "//a", "/a;x/b", "/a%2Fb", "/b/..;/a", "/a/./b", "/%61", "/b/%2e%2e/a/b", "/c", `/a\b`)
			q := &authz.Request{Source: netip.MustParseAddr("8.8.8.8"), Destination: netip.MustParseAddrPort("10.9.9.9:80"), Method: method, Target: target, Host: host + pick(r, "", ":80"), Header: http.Header{}}
			if account != "" {
				q.Principal = "cluster.local/ns/shop/sa/" + account
			}
			if header != "" {
				q.Header.Set("X-Of", header)
			}
			d := plan.Inbound().Authorize(q)
			allowed, found := true, false
			for _, at := range modelReadings(target) {
				to := modelRoute{}
				if len(routes) > 0 {
					best := find(routes, method, host, escaped(at), header)
					if best == nil {
						allowed = false
						continue
					}
					to = *best
				}
				found = true
				allowed = allowed && (granted[to.name+"/"+account] || granted["web/"+account] || strings.Contains(text, "all-authenticated") && account != "")
			}
			plain := regexp.MustCompile(`^(/[a-c]+)*/?$`).MatchString(target)
			if d.Allowed && !allowed || d.NotFound && found || plain && (d.Allowed != allowed || d.NotFound == found) {
				t.Fatalf("seed %d: %+v is allowed: %t, not found: %t (%s), want %t, %t\n%s%v", seed, q, d.Allowed, d.NotFound, d.Reason, allowed, !found, text, findings)
			}
			outcomes[fmt.Sprint(plain, d.Allowed, d.NotFound)]++
		}
	}
	if len(outcomes) != 6 {
		t.Errorf("seed %d: outcomes %v: not all kinds occurred", seed, outcomes)
	}
}

// escaped writes a path as documents do.
func escaped(at string) string { return strings.ReplaceAll(at, " ", "%20") }
