// Package route decides where a request goes: it matches the request against a list of routes in order, picks a
// destination by weight, and says how the request, the response and their headers are rewritten on the way.
//
// The types below are plain data. [NewTable] checks and compiles them once; [Table.Match] then decides without
// allocating. [Transport] applies a table by itself, without documents.
//
// This is a layer: it works alone and imports no documents. It is below policy because documents configure it.
package route

import (
	"strconv"
	"time"

	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/retry"
)

// Route is one rule of a [Table]. Exactly one of Redirect, Direct and Destinations is set. A route that answers by itself
// sends nothing, so that it cannot have Rewrite or Fault, and Timeout, Retry and Mirrors have nothing to act on.
type Route struct {
	// Name appears in metrics and logs. It may be empty.
	Name string

	// Matches are alternatives: the route applies if any of them holds, or if there are none.
	Matches []Match

	// Redirect answers with a redirection.
	Redirect *Redirect

	// Direct answers with a fixed response.
	Direct *DirectResponse

	// Destinations share the requests by weight. A single destination gets all of them, whatever its weight.
	Destinations []Destination

	// Rewrite changes the path and authority on the way to the destination.
	Rewrite Rewrite

	// Headers change on the way, after those of the chosen destination.
	Headers Headers

	// Timeout bounds the call with all its retries and waits. 0 means no bound.
	Timeout time.Duration

	// Retry says when and how often to try again. Its zero value retries nothing.
	Retry retry.Config

	// RetryTried lets retries go to endpoints that the call was sent to before. Else they prefer others.
	RetryTried bool

	// Fault delays or aborts a share of the requests.
	Fault fault.Config

	// Mirrors get copies of the requests; their responses are dropped.
	Mirrors []Mirror
}

// Target names a set of endpoints: a host, perhaps a subset of its endpoints, and a port. It is comparable; the state
// of a destination is kept by it.
type Target struct {
	// Host is the canonical host name. Empty means the host the request was sent to.
	Host string

	// Subset is the name of a subset of the host's endpoints. Empty means all of them.
	Subset string

	// Port is the service's port. 0 means the port the request was sent to.
	Port int
}

// String returns the target as people say it: host, port and subset where they are set.
func (t Target) String() string {
	name := t.Host
	if t.Port != 0 {
		name += ":" + strconv.Itoa(t.Port)
	}
	if t.Subset != "" {
		name += " subset " + t.Subset
	}
	return name
}

// Destination is a target with its share of the requests.
type Destination struct {
	// Target is where they go.
	Target Target

	// Weight is relative to the sum of the weights of its route. 0 gets nothing, unless it is the only destination.
	Weight int

	// Headers change for the requests that go here, before those of the route.
	Headers Headers
}

// Mirror is a target that gets copies of requests.
type Mirror struct {
	// Target is where the copies go.
	Target Target

	// Fraction is the part of the requests that is copied, from 0 to 1, to a millionth. 0 means none.
	Fraction float64
}

// Match is a set of conditions that must all hold. A zero StringMatch holds for everything.
type Match struct {
	// Name appears in logs beside the route's name. It may be empty.
	Name string

	// URI is matched against the escaped path, without the query.
	URI StringMatch

	Scheme, Method, Authority StringMatch

	// Headers must all match. WithoutHeaders must all fail to match; a header that is absent counts as empty there,
	// unless its matcher only asks for presence. Several values are compared joined with ",". Host, :authority, :method,
	// :path (with the query) and :scheme can be asked for too.
	Headers, WithoutHeaders []KeyMatch

	// Query parameters must all match; the first value of a repeated parameter counts. Keys and values are compared as
	// they are encoded in the URL.
	Query []KeyMatch

	// Port is the port the caller dialled. 0 means any.
	Port int
}

// KeyMatch is a condition on a named header or query parameter.
type KeyMatch struct {
	Key   string
	Value StringMatch
}

// MatchKind says how a [StringMatch] compares.
type MatchKind uint8

// The kinds of comparison.
const (
	Any     MatchKind = iota // holds for every string; for a named value, present or not
	Exact                    // the whole string
	Prefix                   // the start of the string, not aware of path segments
	Regex                    // RE2, matched against the whole string
	Present                  // named values only: there is one, even if empty
)

// StringMatch compares a string. The zero value holds for everything.
type StringMatch struct {
	Kind  MatchKind
	Value string

	// IgnoreCase compares Exact and Prefix without regard to case. It does not affect Regex.
	IgnoreCase bool
}

// Rewrite changes what the destination sees. Empty fields change nothing.
type Rewrite struct {
	// URI replaces the part of the path that was matched: the prefix of a Prefix match, the whole path of an Exact or Regex
	// match, the leading slash if the match does not look at the path.
	URI string

	// Pattern (RE2) and Substitution (with \1 for the first group) rewrite the path instead of URI, everywhere the
	// pattern matches.
	Pattern, Substitution string

	// Authority replaces the Host header. It wins over a Host among Headers, and that over one among the headers of a
	// Destination.
	Authority string
}

// Redirect answers with 3xx and a Location. Empty fields keep what the request had.
type Redirect struct {
	// URI replaces the whole path, and the query if it has one itself; PrefixRewrite only the part of the path that was
	// matched. At most one is set.
	URI, PrefixRewrite string

	Authority, Scheme string

	// Port replaces the port. 0 keeps it, unless DerivePort says otherwise.
	Port int

	// DerivePort takes the port from the scheme or from the request.
	DerivePort DerivePort

	// Status is 301, 302, 303, 307 or 308. 0 means 301.
	Status int
}

// DerivePort says where a [Redirect] without a Port gets it from.
type DerivePort uint8

// The sources of a redirect's port.
const (
	KeepPort     DerivePort = iota // what the request's authority says
	FromProtocol                   // none: the scheme's default
	FromRequest                    // the port the request was sent to
)

// DirectResponse answers without a destination.
type DirectResponse struct {
	Status int
	Body   []byte
}

// Headers are operations on request and response headers.
type Headers struct {
	Request, Response HeaderOps
}

// HeaderOps are applied in the order remove, set, add. Values may hold Envoy's format commands; see [NewTable] for
// those that are supported. Host and :authority can be set or added on a request, where they replace the Host header.
type HeaderOps struct {
	Set, Add []Header
	Remove   []string
}

// Header is a name with a value.
type Header struct {
	Name, Value string
}
