package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/judge"
	"github.com/nosidecar/mesh/policy"
	access "github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/jwt"
)

// verdict is what authz prints: whether a request is allowed, by which rule, and why. The rule is omitted if none decided.
type verdict struct {
	Decision string `json:"decision"` // ALLOW or DENY
	Policy   string `json:"policy,omitempty"`
	Rule     *int   `json:"rule,omitempty"` // from 0
	Reason   string `json:"reason"`
}

// authz says whether an inbound request to the workload is allowed. The code is valid if err is nil.
func authz(args []string, stdout io.Writer) (code int, err error) {
	flags, keys := newRequestFlags("authz"), make(keyFiles)
	peer := inbound{source: netip.AddrFrom4([4]byte{127, 0, 0, 1}), now: time.Now()}
	peer.flags(flags)
	flags.Func("jwks", "", keys.add)
	flags.StringVar(&flags.workload.ServiceAccount, "service-account", "", "")
	flags.BoolVar(&flags.workload.AllowByDefault, "allow-by-default", false, "")
	target, err := flags.parse(args)
	if err != nil {
		return 0, err
	}
	if peer.trustedHops < 0 {
		return 0, usagef("-trusted-hops is not negative")
	}
	raw, err := parseTarget(target)
	if err != nil {
		return 0, &usageError{err}
	}
	if raw.host, err = takeHost(flags.header, raw.host); err != nil {
		return 0, &usageError{err}
	}
	raw.method, raw.header = cmp.Or(flags.method, http.MethodGet), flags.header
	if strings.ContainsFunc(raw.method, notInName) {
		return 0, usagef("%q is not a method", raw.method)
	}
	peer.port = cmp.Or(peer.port, raw.port)
	if flags.workload.Service == "" {
		flags.workload.Service, _, _ = strings.Cut((&url.URL{Host: raw.host}).Hostname(), ".")
	}
	flags.workload.TrustDomain = connectDomain(peer.principal)
	flags.workload.Keys = &jwt.Remotes{Transport: func(*http.Request) http.RoundTripper { return fetched(keys) }}
	defer flags.workload.Keys.Close()
	plan, err := flags.plan()
	if err != nil {
		return 0, err
	}
	if err := keys.read(plan.Inbound().Tokens(), flags.workload.Keys); err != nil {
		return 0, err
	}

	v, code := verdict{Decision: "DENY"}, exitDenied
	if req, err := raw.receive(); err != nil {
		v.Reason = "a server answers 400 itself: " + err.Error()
	} else {
		d := peer.decide(plan, req)
		v.Reason = d.Reason
		if d.Allowed {
			v.Decision, code = "ALLOW", exitOK
		}
		if d.Policy != "" {
			v.Policy, v.Rule = d.Policy, &d.Rule
		}
	}
	return code, printJSON(stdout, v)
}

// connectDomain returns the trust domain of a principal in the form of Consul Connect, which is also the workload's, and "" for any other
// principal.
func connectDomain(principal string) string {
	domain, path, _ := strings.Cut(principal, "/")
	if _, _, ok := connectid.Parse("/" + path); !ok {
		return ""
	}
	return domain
}

// inbound says from where and when a request arrives, and at which port.
type inbound struct {
	principal   string
	source      netip.Addr
	port        uint16
	trustedHops int
	now         time.Time
}

// flags adds the flags that say where the request comes from.
func (in *inbound) flags(flags *requestFlags) {
	flags.Func("principal", "", func(name string) error {
		in.principal = name
		return checkPrincipal(name)
	})
	flags.Func("source-ip", "", func(text string) (err error) {
		in.source, err = netip.ParseAddr(text)
		return err
	})
	flags.Func("port", "", func(text string) (err error) {
		in.port, err = parsePort(text)
		return err
	})
	flags.Func("time", "", func(text string) (err error) {
		in.now, err = time.Parse(time.RFC3339, text)
		return err
	})
	flags.IntVar(&in.trustedHops, "trusted-hops", 0, "")
}

// checkPrincipal returns an error for a name that no peer can have: a request of such a peer never arrives.
func checkPrincipal(name string) error {
	const form = "write the trust domain and the path of a SPIFFE ID, such as cluster.local/ns/default/sa/web"
	switch {
	case name == "":
		return errors.New("it is empty: leave the flag out for a peer without an identity")
	case strings.Contains(name, "://"):
		return errors.New("it is an identity as documents write it, without spiffe://")
	case strings.Contains(name, "*"):
		return errors.New("it is the identity of one peer, without stars: " + form)
	}
	id, err := spiffeid.FromString("spiffe://" + name)
	switch {
	case err != nil:
		return fmt.Errorf("no peer can have it (%w): %s", err, form)
	case id.Path() == "":
		return errors.New("no peer can have it, since it has no path: " + form)
	}
	return nil
}

// decide asks the plan in the way the handler of a mesh does.
func (in *inbound) decide(plan *policy.Plan, req *http.Request) access.Decision {
	req.RemoteAddr = net.JoinHostPort(in.source.String(), "0")
	view := access.NewRequest(req, in.principal, in.trustedHops)
	view.Destination = netip.AddrPortFrom(netip.Addr{}, in.port)
	rules := plan.Inbound()
	if result, _ := judge.Authenticate(context.Background(), rules, req, &view, in.now); result.Err != nil {
		return judge.Refused(result.Err)
	}
	return rules.Authorize(&view)
}

// rawRequest is a request as it is sent. Its target is not cleaned, since how a server reads it is the question.
type rawRequest struct {
	method, host, target string
	port                 uint16
	header               http.Header
}

// parseTarget splits a URL at the end of its authority.
func parseTarget(text string) (*rawRequest, error) {
	scheme, rest, ok := strings.Cut(text, "://")
	switch {
	case !ok:
		return nil, fmt.Errorf("the URL %q has no scheme: it begins with http:// or https://", text)
	case !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https"):
		return nil, fmt.Errorf("the URL %q is neither http nor https", text)
	}
	end := len(rest)
	if i := strings.IndexAny(rest, `/?#\`); i >= 0 {
		end = i
	}
	u, err := url.Parse(scheme + "://" + rest[:end])
	if err != nil {
		return nil, err
	}
	if u.Hostname() == "" {
		return nil, fmt.Errorf("the URL %q has no host", text)
	}
	r := &rawRequest{host: u.Host, target: rest[end:], port: 80}
	if r.target == "" || r.target[0] == '?' {
		r.target = "/" + r.target
	}
	if u.Scheme == "https" {
		r.port = 443
	}
	if port := u.Port(); port != "" {
		if r.port, err = parsePort(port); err != nil {
			return nil, fmt.Errorf("the URL %q: %w", text, err)
		}
	}
	return r, nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is not a port: it must be from 1 to 65535", text)
	}
	return uint16(port), nil
}

// receive returns the request as a server reads it. The error is that of a server that answers 400.
func (r *rawRequest) receive() (*http.Request, error) {
	if strings.ContainsFunc(r.target, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		return nil, fmt.Errorf("the target %q is not all of the line", r.target)
	}
	if strings.ContainsFunc(r.host, func(c rune) bool { return c > 0x7f || strings.ContainsRune(`"<>`, c) }) {
		return nil, fmt.Errorf("the Host %q has characters that no host has", r.host)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", r.method, r.target, r.host)
	if err := r.header.Write(&b); err != nil {
		return nil, err
	}
	b.WriteString("\r\n")
	return http.ReadRequest(bufio.NewReader(strings.NewReader(b.String())))
}
