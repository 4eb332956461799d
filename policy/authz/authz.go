// Package authz decides whether an inbound request is allowed, by the rules of Istio's AuthorizationPolicy.
//
// [Compile] turns policies, which are data, into an [Authorizer]; [Authorizer.Decide] judges a [Request], which is a
// view of what arrived. [Handler] is the layer alone, for a net/http server; [NewRequest] makes the view that it
// uses.
//
// # Order
//
// A request that a rule of a [Deny] policy matches is denied. Otherwise it is allowed if there is no [Allow] policy
// at all, or if a rule of one matches; else it is denied. [Audit] policies only mark. Policies with DryRun set decide
// nothing; what they would have changed is in [Decision.Shadow].
//
// # Readings
//
// The application gets the path that was sent, and what it makes of `//admin`, `/x/..%2Fadmin` or `/admin;a=b` is its
// business: another library, or a server behind it, reads them otherwise. So a path has several readings. An Allow
// rule matches only if it does under every one of them, negations included; a Deny or Audit rule if it does under
// any. A header has readings, too: its lines joined by commas, each line alone, and each element of a line that is a list,
// with the space around them and without. An Allow value that is the whole line, commas included, matches all of them. Values
// of binary headers (-bin) match encoded or decoded. A host is also read without a dot at its end, and as the host header of
// an HTTP/2 request that has both.
//
// A path that cannot be read at all is answered with 400, as is an odd one that is too long to be read in every way, once
// there is a policy that decides anything. A header with too many values might say anything: it matches no Allow rule, and
// every Deny or Audit rule that asks for it.
//
// A value that no request can match is an error: a Deny rule with it would deny nothing.
//
// This is a layer: it works alone and imports no documents. It is below policy because documents configure it.
package authz

import (
	"net/http"
	"net/netip"
)

// Action is what a policy does with the requests that it matches.
type Action uint8

const (
	Allow Action = iota // let pass; what no Allow policy matches is denied once there is one
	Deny                // deny, before any Allow policy is asked
	Audit               // mark, and nothing else
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

// Normalization says which spellings of a path are the same path to the application, as MeshConfig.pathNormalization
// does. It decides where the readings of a path begin: those that are normalised less do not count, those that are
// normalised more always do, because nothing here rewrites the path that the application gets.
type Normalization uint8

const (
	// Base resolves dot segments, also percent-encoded ones, takes `\` for `/` and decodes the escapes of unreserved
	// characters. It is Istio's default, also under the name DEFAULT.
	Base Normalization = iota

	// None adds the path as it was sent, without its query, and as URL.Path has it: the strictest mode. Choose it where the
	// application's router takes `/admin/../healthz` for something below `/admin/`.
	None

	// MergeSlashes is Base, and `//` is the same as `/`.
	MergeSlashes

	// DecodeAndMergeSlashes is MergeSlashes, and %2F and %5C are the same as `/`. They are not to http.ServeMux: choose it
	// only for an application that decodes them before it routes.
	DecodeAndMergeSlashes
)

// Policy is one policy. One without rules never matches: an Allow policy then denies what no other allows, and a Deny
// policy has no effect.
type Policy struct {
	Name   string // "namespace/name", for decisions and errors; must not be empty
	Action Action
	DryRun bool // decides nothing; see [Decision.Shadow]. An Audit policy marks all the same
	Rules  []Rule
}

// Rule matches if one source of From, one operation of To and every condition of When do. A list that is empty matches
// everything, and so does the zero Rule.
type Rule struct {
	From []Source
	To   []Operation
	When []Condition
}

// Source describes a peer. A field matches if one of its values does, a field that begins with Not if none does; an
// empty field matches everything; a source matches if all its fields do. A source without any field is an error.
//
// Text that is "*" matches what is there and not empty, "*x" what ends in x, "x*" what begins with x, and anything
// else itself. Only one star is read: the path "*x*" is what ends in "x*". Where no text can contain a star, as in
// principals and hosts, a second one is an error.
//
// What is said of identities needs a certificate: it never matches a plaintext peer. So NotPrincipals "*" does.
type Source struct {
	// Principals are SPIFFE IDs without "spiffe://", such as "cluster.local/ns/default/sa/web".
	Principals, NotPrincipals []string

	// Namespaces are the namespaces of principals. In them a star may be anywhere and stands for any text.
	Namespaces, NotNamespaces []string

	// ServiceAccounts are "namespace/name", without stars.
	ServiceAccounts, NotServiceAccounts []string

	// TrustDomains are the trust domains of principals. In them, too, a star may be anywhere.
	TrustDomains, NotTrustDomains []string

	// IPBlocks hold the address of the direct peer, RemoteIPBlocks that of the client; see [Request].
	IPBlocks, NotIPBlocks             []netip.Prefix
	RemoteIPBlocks, NotRemoteIPBlocks []netip.Prefix
}

// Operation describes a request. Its fields combine, and its texts are read, as those of [Source]. All but ports need
// HTTP: on a raw TCP connection an Allow rule that has one never matches, and a Deny or Audit rule matches without it.
type Operation struct {
	// Hosts are compared without case to the host as it was sent, port included, as Istio does: "example.com" does not
	// match "example.com:8080", which "example.com:*" does. "*" is any host, also an empty one.
	Hosts, NotHosts []string

	// Methods are compared with case.
	Methods, NotMethods []string

	// Paths are compared to the path without its query. A path may also be a template: a segment {*} stands for one
	// segment, and {**}, after which there is no other operator, for none or more. Percent-escapes are compared without
	// case, and those of unreserved characters as if decoded.
	Paths, NotPaths []string

	// Ports are the port of the workload that the request arrived at.
	Ports, NotPorts []uint16
}

// Condition is one more demand, by its documented key: request.headers[name], source.ip, remote.ip, source.namespace,
// source.serviceAccount, source.trustDomain, source.principal, destination.ip, destination.port or connection.sni. It
// holds if one of Values, unless empty, and none of NotValues matches. Any other key is an error, as are those that
// need a token (request.auth...).
type Condition struct {
	Key               string
	Values, NotValues []string
}

// Config is how policies are read. The zero value is Istio's default. Values are comparable.
type Config struct {
	// Normalization says which spellings of a path are the same.
	Normalization Normalization
}

// Request is a view of one inbound request or connection. [NewRequest] makes it for net/http.
//
// An address or port that is not known (the zero value) might be any: what is said of it does not match in an Allow
// rule, and does in a Deny or Audit rule.
type Request struct {
	Principal   string         // "trust-domain/ns/default/sa/x", without spiffe://; "" for a peer without a certificate
	Source      netip.Addr     // the direct peer
	Remote      netip.Addr     // the client, by x-forwarded-for; see [RemoteAddr]. The same as Source without trusted hops
	Destination netip.AddrPort // where it arrived
	SNI         string         // the server name that the peer asked for

	// L4 says that this is a raw TCP connection, and that the fields below mean nothing.
	L4 bool

	Host   string // as sent, with the port if there was one
	Method string
	Target string // as in the request line (http.Request.RequestURI), :path in HTTP/2
	Header http.Header
}

// Match names a rule.
type Match struct {
	Policy string // "" for none
	Rule   int    // index in the policy; -1 for none
}

// Decision is what becomes of a request.
type Decision struct {
	Allowed bool

	// Match is the first rule, in the order of the policies, that decided. There is none when nothing matched.
	Match

	// Reason is a short text for the log. It is not meant for the peer.
	Reason string

	// BadRequest says that the path cannot be read: the answer is 400 rather than 403.
	BadRequest bool

	// Audit is the first rule of an Audit policy that matches.
	Audit Match

	// Shadow is what would have been decided if the policies with DryRun were enforced beside the others.
	Shadow Shadow
}

// Shadow is a decision that is not enforced.
type Shadow struct {
	Present bool // there are policies with DryRun; if not, the rest means nothing
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
	reasonMalformed = "malformed path"
)
