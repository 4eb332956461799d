// Package route decides where a request goes: it matches the request against a list of routes in order, picks a
// destination by weight, and rewrites the request, the response and their headers.
//
// Routes are plain data. [NewTable] checks and compiles them once; [Table.Match] then decides without allocating. [Transport]
// applies a table to HTTP requests.
//
// This package is a layer: it works alone and does not import policy documents. It is below policy because documents configure it.
package route

import (
	"strconv"
	"time"

	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/retry"
)

// Route is one route of a [Table]. Exactly one of Redirect, Direct and Destinations is set. A route with Redirect or Direct sends
// nothing: it must not have Rewrite or Fault, and its Timeout, Retry and Mirrors have no effect.
type Route struct {
	// Name appears in metrics and logs. It may be empty.
	Name string

	// Matches are alternatives: the route applies if any of them matches, or if there are none.
	Matches []Match

	// Redirect answers requests with a redirect.
	Redirect *Redirect

	// Direct answers requests with a fixed response.
	Direct *DirectResponse

	// Destinations share the requests by weight. A single destination gets all requests, whatever its weight.
	Destinations []Destination

	// Rewrite changes the path and the authority that the destination sees.
	Rewrite Rewrite

	// Headers edits the headers of requests and responses, after the edits of the chosen destination.
	Headers Headers

	// Timeout bounds the call, including all retries and waits. 0 means no timeout.
	Timeout time.Duration

	// Retry says when and how often to retry. Its zero value retries nothing.
	Retry retry.Config

	// RetryTried lets retries go to endpoints that the call was already sent to. Otherwise they prefer other endpoints.
	RetryTried bool

	// Fault delays or aborts a fraction of the requests.
	Fault fault.Config

	// Mirrors get copies of the requests. Their responses are dropped.
	Mirrors []Mirror
}

// Target names a set of endpoints: a host, optionally a subset of its endpoints, and a port. It is comparable: it is the key of
// the state of a destination.
type Target struct {
	// Host is the canonical host name. Empty means the host the request was sent to.
	Host string

	// Subset is the name of a subset of the host's endpoints. Empty means all of them.
	Subset string

	// Port is the service's port. 0 means the port the request was sent to.
	Port int
}

// String returns the host, port and subset for people to read, as far as they are set: "web:80 subset v2".
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

	// Weight is relative to the sum of the weights of the route. A destination with weight 0 gets nothing, unless it is the
	// only one.
	Weight int

	// Headers edits the headers of the requests that go here and of their responses, before the edits of the route.
	Headers Headers
}

// Mirror is a target that gets copies of requests.
type Mirror struct {
	// Target is where the copies go.
	Target Target

	// Fraction is the fraction of requests that are copied, from 0 to 1, with a precision of one millionth. 0 means none.
	Fraction float64
}

// Match is a set of conditions, all of which must match. A zero StringMatch matches everything.
type Match struct {
	// Name appears in logs next to the name of the route. It may be empty.
	Name string

	// URI is matched against the escaped path, without the query.
	URI StringMatch

	Scheme, Method, Authority StringMatch

	// Headers must all match. WithoutHeaders must all fail to match; an absent header counts as empty there, unless the kind is
	// Present. Several values of a header are joined with "," and compared as one. Besides headers, host, :authority, :method,
	// :path (with the query) and :scheme can be named.
	Headers, WithoutHeaders []KeyMatch

	// Query parameters must all match. Of a repeated parameter, the first value counts. Keys and values are compared in their
	// encoded form.
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
	Any     MatchKind = iota // matches everything, even an absent header or parameter
	Exact                    // compares the whole string
	Prefix                   // compares the start of the string; path segments do not matter
	Regex                    // an RE2 expression that must match the whole string
	Present                  // for headers and query parameters only: matches any value, even an empty one
)

// StringMatch is a condition on a string. The zero value matches everything.
type StringMatch struct {
	Kind  MatchKind
	Value string

	// IgnoreCase makes Exact and Prefix ignore case. It does not affect Regex.
	IgnoreCase bool
}

// Rewrite changes what the destination sees. Empty fields change nothing.
type Rewrite struct {
	// URI replaces the part of the path that was matched: the prefix of a Prefix match, the whole path of an Exact or Regex
	// match, or the leading slash if the match has no condition on the path.
	URI string

	// Pattern (RE2) and Substitution (with \1 for the first group) rewrite the path wherever the pattern matches. They exclude
	// URI.
	Pattern, Substitution string

	// Authority replaces the Host header. It takes precedence over a Host in the Headers of the route, which takes precedence
	// over one in the Headers of a destination.
	Authority string
}

// Redirect answers requests with a 3xx status and a Location. An empty field keeps that part of the request's URL.
type Redirect struct {
	// URI replaces the whole path, and the query too if URI has one. PrefixRewrite replaces only the part of the path that was
	// matched. At most one of them is set.
	URI, PrefixRewrite string

	Authority, Scheme string

	// Port replaces the port. If it is 0, DerivePort decides.
	Port int

	// DerivePort says where the port comes from if Port is 0.
	DerivePort DerivePort

	// Status is 301, 302, 303, 307 or 308. 0 means 301.
	Status int
}

// DerivePort says where a [Redirect] without a Port takes the port from.
type DerivePort uint8

// The sources of a redirect's port.
const (
	KeepPort     DerivePort = iota // the port in the request's authority
	FromProtocol                   // the default port of the scheme, which a URL leaves out
	FromRequest                    // the port that the request was sent to
)

// DirectResponse is a response that needs no destination.
type DirectResponse struct {
	Status int
	Body   []byte
}

// Headers are operations on request and response headers.
type Headers struct {
	Request, Response HeaderOps
}

// HeaderOps edits a header: it removes, then sets, then adds. Values may contain Envoy's format commands; [NewTable] lists the
// supported ones. On a request, Host or :authority can be set or added; either replaces the Host header.
type HeaderOps struct {
	Set, Add []Header
	Remove   []string
}

// Header is a name with a value.
type Header struct {
	Name, Value string
}
