// Package linkerd reads Linkerd's documents: it declares them field by field, checks them as Linkerd's validator
// (linkerd2 pkg/profiles) and its proxy do, and translates them into what the layers of this library understand.
//
// What this library does with a field stands in its mesh tag; see [github.com/nosidecar/mesh/internal/yamldoc]. Fields
// without the tag are enforced.
//
// This is where it differs from Linkerd:
//
//   - A route may have retries, which bound the number of retries and the time of each try. Retries without such a limit
//     are bounded by the budget, and end after 100 of them.
//   - Of the gRPC statuses that are failures, unknown and data-loss are not retried, and the others only if they come in
//     the headers of the response.
//   - A call that got no response is retried if the status that the proxy would make of it, 502, 503 or 504, is a failure.
//   - The budget counts for each destination: where requests are split, each backend has one of the same size.
//   - An authority without a port, which Linkerd ignores, is an error. So are a budget that the proxy drops, a pattern of
//     which it drops the route, and conditions that grow too large or cannot be combined.
package linkerd

import "github.com/nosidecar/mesh/internal/yamldoc"

// Group is the API group of the documents.
const Group = "linkerd.io"

// ServiceProfile describes the routes of a service: which of them time out, and which are retried.
type ServiceProfile struct {
	yamldoc.Object
	Spec ServiceProfileSpec `yaml:"spec"`
}

// ServiceProfileSpec is the spec of a [ServiceProfile].
type ServiceProfileSpec struct {
	Routes       []Route       `yaml:"routes"`
	RetryBudget  *RetryBudget  `yaml:"retryBudget"`
	DstOverrides []WeightedDst `yaml:"dstOverrides"`
	OpaquePorts  yamldoc.Any   `yaml:"opaquePorts" mesh:"meaningless: no protocol is guessed in-process that a port would have to be exempt from"`
}

// Route is a class of requests.
type Route struct {
	Name            string           `yaml:"name,required"`
	Condition       *RequestMatch    `yaml:"condition,required"`
	ResponseClasses []ResponseClass  `yaml:"responseClasses"`
	IsRetryable     *bool            `yaml:"isRetryable"`
	Timeout         yamldoc.Duration `yaml:"timeout"`

	// Retries is not part of Linkerd's API. It says how often and how long each try, where Linkerd has only a budget.
	Retries *Retries `yaml:"retries"`
}

// Retries bounds the retries of a route.
type Retries struct {
	Limit   *uint32          `yaml:"limit"`
	Timeout yamldoc.Duration `yaml:"timeout"`
}

// RequestMatch is a condition on a request. Several fields must all hold.
type RequestMatch struct {
	PathRegex string         `yaml:"pathRegex"`
	Method    string         `yaml:"method"`
	All       []RequestMatch `yaml:"all"`
	Any       []RequestMatch `yaml:"any"`
	Not       *RequestMatch  `yaml:"not"`
}

// ResponseClass says whether responses are failures. The first class that matches counts; without one, server errors
// are.
type ResponseClass struct {
	Condition *ResponseMatch `yaml:"condition,required"`
	IsFailure bool           `yaml:"isFailure"`
}

// ResponseMatch is a condition on a response. Several fields must all hold.
type ResponseMatch struct {
	Status *StatusRange    `yaml:"status"`
	All    []ResponseMatch `yaml:"all"`
	Any    []ResponseMatch `yaml:"any"`
	Not    *ResponseMatch  `yaml:"not"`
}

// StatusRange is a range of status codes. One bound alone stands for both.
type StatusRange struct {
	Min uint32 `yaml:"min"`
	Max uint32 `yaml:"max"`
}

// RetryBudget bounds the retries of a service.
type RetryBudget struct {
	RetryRatio          float64          `yaml:"retryRatio,required"`
	MinRetriesPerSecond uint32           `yaml:"minRetriesPerSecond,required"`
	TTL                 yamldoc.Duration `yaml:"ttl,required"`
}

// WeightedDst is a share of the requests that goes elsewhere.
type WeightedDst struct {
	Authority string           `yaml:"authority,required"`
	Weight    yamldoc.Quantity `yaml:"weight"`
}
