// Package authz decides whether an inbound request is allowed, by the rules of Istio's AuthorizationPolicy and of Consul's
// service-intentions.
//
// [Compile] turns policies, which are plain data, into an [Authorizer]. [Authorizer.Decide] decides about a [Request], which is a
// view of an inbound request. [Handler] applies an Authorizer in a net/http server; [NewRequest] returns the view that it uses.
//
// # Order
//
// A request that matches a rule of a [Deny] policy is denied. Otherwise it is allowed if there is no [Allow] policy at all, or if
// it matches a rule of one. Otherwise it is denied. If there are [Intentions], they must allow the request too, after the Deny and
// before the Allow policies. If there are routes, a request must belong to one, and Allow policies may be about the requests of some
// routes. [Audit] policies only mark requests. Policies with DryRun set are not
// enforced; [Decision.Shadow] has the decision that they would have led to.
//
// # Readings
//
// The application gets the path as it was sent. How it reads `//admin`, `/x/..%2Fadmin` or `/admin;a=b` is unknown: libraries and
// servers differ. So a path has several readings. An Allow rule, including its negations, must match under every reading. For a
// Deny or Audit rule, one reading is enough. Headers have readings too: all lines joined by commas, each line alone, and each
// element of a line that is a list, with and without surrounding space. An Allow value that equals the whole line, commas
// included, matches all of them. Values of binary headers (-bin) match encoded or decoded. A host is also read without a trailing
// dot. If an HTTP/2 request has :authority, a host header and a host in :path, each of them is a reading.
//
// Once any enforced policy can deny requests, a path that cannot be read gets a 400 response. So does an unusual path that is too
// long to try every reading. A header with too many values, or a host that is not ASCII, could mean anything: it matches no Allow rule,
// and every Deny or Audit rule that has a condition on it.
//
// A value that no request can match is an error, because a Deny rule with such a value would deny nothing.
//
// This package is a layer: it works alone and does not import policy documents. It is below policy because documents configure it. A
// server that enforces a file of documents is the handler of a mesh: mesh.WithPolicyDir and Mesh.Handler.
package authz

import (
	"net/http"
	"net/netip"
)

// Action is what a policy does with the requests that match it.
type Action uint8

const (
	Allow Action = iota // allow; once there is an Allow policy, requests that match none are denied
	Deny                // deny; takes precedence over Allow
	Audit               // only mark
)

// String returns the name that documents use.
func (a Action) String() string {
	switch a {
	case Allow:
		return "ALLOW"
	case Deny:
		return "DENY"
	case Audit:
		return "AUDIT"
	}
	return "unknown action"
}

// Normalization says which spellings of a path are the same path to the application, like Istio's MeshConfig.pathNormalization.
// It sets the least normalised reading of a path. Readings that are normalised further always count, because this package does
// not rewrite the path that the application gets.
type Normalization uint8

const (
	// Base resolves dot segments, including percent-encoded ones, treats `\` as `/`, and decodes the escapes of unreserved
	// characters. It is Istio's default, which Istio also calls DEFAULT.
	Base Normalization = iota

	// None adds the path as it was sent, without its query, and the path as URL.Path has it. It is the strictest mode. Choose it
	// if the application's router treats `/admin/../healthz` as a path below `/admin/`.
	None

	// MergeSlashes is Base, with `//` treated as `/`.
	MergeSlashes

	// DecodeAndMergeSlashes is MergeSlashes, with %2F and %5C treated as `/`. http.ServeMux does not do that: choose this mode
	// only for an application that decodes them before it routes.
	DecodeAndMergeSlashes
)

// Policy is one policy. A policy without rules never matches: an Allow policy without rules denies every request that no other
// policy allows, and a Deny policy without rules has no effect.
type Policy struct {
	Name   string // "namespace/name", for decisions and errors; must not be empty
	Action Action
	DryRun bool // not enforced; see [Decision.Shadow]. It has no effect on an Audit policy
	Rules  []Rule

	// Intentions take the place of Action and Rules. At most one policy may have them.
	Intentions *Intentions

	// Routes divide the requests, as the routes of a Server of Linkerd do. They are in order of precedence: a request belongs to the
	// first one that matches it. It is allowed by the Allow rules about all requests and by those about its route, and denied, with
	// [Decision.NotFound], if it belongs to none. All readings of a request must be allowed, whichever routes they belong to, and
	// one that allows must match all of them. Routes say nothing of peers. At most one policy, an enforced Allow policy, may have them.
	Routes []Rule
}

// Rule matches if one source of From, one operation of To and every condition of When match. An empty list matches everything,
// and so does the zero Rule.
type Rule struct {
	From []Source
	To   []Operation
	When []Condition

	// Of are the indices of the routes that the rule is about, in an enforced Allow policy; see [Policy].Routes. It is about all
	// requests and raw TCP connections if there are none.
	Of []int
}

// Source describes a peer. It matches if all its fields match. A field matches if one of its values matches; a field that begins
// with Not matches if none of them does; an empty field matches everything. A source without any field is an error.
//
// "*" matches any text but the empty one, "*x" matches text that ends in x, "x*" matches text that begins with x, and anything
// else matches itself. Only one star is special: the path "*x*" matches paths that end in "x*". In fields whose text cannot
// contain a star, such as principals and hosts, a second star is an error.
//
// Fields about identities never match a plaintext peer, which has no certificate. So NotPrincipals "*" matches it.
type Source struct {
	// Principals are SPIFFE IDs without "spiffe://", such as "cluster.local/ns/default/sa/web".
	Principals, NotPrincipals []string

	// Namespaces are the namespaces of principals. A star may be anywhere in them and matches any text.
	Namespaces, NotNamespaces []string

	// RequestPrincipals are "issuer/subject" of the request's verified token. A pattern is split at its last slash. A star at the
	// beginning stands for any start of the issuer ("*/alice"), or of the subject if there is no slash ("*alice"). A star at the end
	// stands for any end of the subject ("issuer/a*"), or of the issuer if there is no slash ("issuer*").
	RequestPrincipals, NotRequestPrincipals []string

	// ServiceAccounts are "namespace/name", without stars.
	ServiceAccounts, NotServiceAccounts []string

	// TrustDomains are the trust domains of principals. A star may be anywhere in them and matches any text.
	TrustDomains, NotTrustDomains []string

	// IPBlocks are compared to the address of the direct peer, RemoteIPBlocks to that of the client; see [Request].
	IPBlocks, NotIPBlocks             []netip.Prefix
	RemoteIPBlocks, NotRemoteIPBlocks []netip.Prefix
}

// Operation describes a request. Its fields are combined, and their values are compared, like those of [Source]. All fields except
// the ports need HTTP, and so do conditions on tokens: on a raw TCP connection, an Allow rule with such a field never matches, and
// Deny and Audit rules ignore the field.
type Operation struct {
	// Hosts are compared to the host as it was sent, including the port and ignoring case, as in Istio: "example.com" does not
	// match "example.com:8080", but "example.com:*" does. "*" matches any host, even an empty one.
	Hosts, NotHosts []string

	// Methods are case-sensitive.
	Methods, NotMethods []string

	// Paths are compared to the path without its query. A path may also be a template: {*} matches exactly one segment, and {**}
	// matches any number of segments, including none. {**} must be the last operator. Percent-escapes are compared ignoring
	// case, and those of unreserved characters as if they were decoded.
	Paths, NotPaths []string

	// PathRegexes are regular expressions for Paths: a path matches if one of them matches all of it, or one of Paths does. They are
	// compared to each reading of a path as it is. An escape that no reading has, such as %c3 or %61, is an error.
	PathRegexes []string

	// Ports are compared to the port at which the request arrived.
	Ports, NotPorts []uint16
}

// Condition is an additional condition of a rule. Key is one of request.headers[name], source.ip, remote.ip, source.namespace,
// source.serviceAccount, source.trustDomain, source.principal, destination.ip, destination.port, connection.sni,
// request.auth.principal, request.auth.audiences, request.auth.presenter and request.auth.claims[name], with more names in brackets
// for claims in claims. The condition matches if one of Values or Regexes matches, or there are none, and none of NotValues matches; a
// claim that is a list matches if one of its strings does. Any other key is an error.
type Condition struct {
	Key               string
	Values, NotValues []string

	// Regexes are regular expressions, one of which must match the whole value of a header. With any other key, they are an error.
	Regexes []string
}

// Config has the settings of [Compile]. The zero value is Istio's default. Values are comparable.
type Config struct {
	// Normalization says which spellings of a path are the same.
	Normalization Normalization
}

// Request is a view of one inbound request or connection. [NewRequest] returns that of an HTTP request.
//
// The zero value of an address or port means that it is unknown. A condition on it does not match in an Allow rule, and matches in
// a Deny or Audit rule.
type Request struct {
	Principal   string         // "trust-domain/ns/default/sa/x", without spiffe://; "" for a peer without a certificate
	Source      netip.Addr     // the direct peer
	Remote      netip.Addr     // the client, by x-forwarded-for; see [NewRequest]. The same as Source without trusted hops
	Destination netip.AddrPort // the local address at which the request arrived
	SNI         string         // the server name that the peer asked for

	// L4 marks a raw TCP connection. The fields below are ignored then.
	L4 bool

	Host   string // as sent, with the port if there was one
	Method string
	Target string // as in the request line (http.Request.RequestURI), :path in HTTP/2
	Header http.Header

	// Claims are the claims of the request's verified token, which [NewRequest] does not look for. They are nil if the request has
	// none: then no condition on tokens matches, and the negated ones do.
	Claims interface {
		// Values returns the strings of the claim at path; see jwt.Claims.
		Values(path ...string) []string
	}
}

// Match names a rule of a policy, or no rule.
type Match struct {
	Policy string // the name of the policy; "" for no rule
	Rule   int    // the index of the rule in the policy; -1 for no rule
}

// Decision is the decision about a request.
type Decision struct {
	Allowed bool

	// Match is the rule that decided: the first one in the order of the policies. If no rule matched, it names none.
	Match

	// Reason is a short text for logs. Do not send it to the peer.
	Reason string

	// BadRequest says that the path or the method cannot be read, so that the response is 400 rather than 403.
	BadRequest bool

	// NotFound says that there are routes and none of them matches the request, so that the response is 404 rather than 403.
	NotFound bool

	// BadToken says that a token of the request was not accepted, so that no policy was asked; Reason is the text of the
	// [jwt.Error]. An Authorizer never sets it.
	//
	// [jwt.Error]: https://pkg.go.dev/github.com/nosidecar/mesh/policy/jwt#Error
	BadToken bool

	// Steady says that headers and hosts cannot have changed the decision: no rule depends on them.
	Steady bool

	// Audit is the first rule of an Audit policy that matches.
	Audit Match

	// Shadow is the decision that would have been made if the policies with DryRun were enforced too.
	Shadow Shadow
}

// Shadow is a decision that is not enforced.
type Shadow struct {
	Present bool // there are policies with DryRun; if not, the other fields mean nothing
	Allowed bool
	Match
	Reason string
}

// Reasons of decisions.
const (
	reasonNone      = "no AuthorizationPolicy selects the workload"
	reasonNoAllow   = "no ALLOW policy"
	reasonAllowed   = "matched an ALLOW policy"
	reasonDenied    = "matched a DENY policy"
	reasonUnmatched = "no ALLOW policy matched"
	reasonMalformed = "malformed path or method"
	reasonUnrouted  = "no route matched"
	reasonDivided   = "the readings of the request belong to several routes"
)
