// Package linkerd reads Linkerd's documents. It declares their fields, validates them as Linkerd's validator (linkerd2 pkg/profiles) and
// its proxy do, and translates them into the settings of the layers of this library.
//
// The mesh tag of a field says what this library does with it; see [github.com/nosidecar/mesh/internal/yamldoc]. Fields without the
// tag are enforced.
//
// There are these differences from Linkerd:
//
//   - A route may have retries, which bound the number of retries and the time of each attempt. Retries without such a limit are
//     bounded by the budget, and end after 100 retries.
//   - Of the gRPC statuses that are failures, unknown and data-loss are not retried. The others are retried only if they are in the
//     headers of the response.
//   - A call without a response is retried if the status that the proxy would respond with (502, 503 or 504) is a failure.
//   - Each destination has a budget of its own: if requests are split, each backend has one of the same size.
//   - Who may call whom is said of SPIFFE IDs: the names of Linkerd's identities are translated to them.
//   - An authority without a port, which Linkerd ignores, is an error. So are a budget that the proxy drops, a pattern because of which
//     it drops the route, and conditions that grow too large or cannot be combined.
package linkerd

import "github.com/nosidecar/mesh/internal/yamldoc"

// Group is the API group of the documents.
const Group = "linkerd.io"

// ServiceProfile describes the routes of a service, with their timeouts and retries.
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

	// Retries is not part of Linkerd's API. It bounds the number of retries and the time of each attempt. Linkerd has only a budget.
	Retries *Retries `yaml:"retries"`
}

// Retries bounds the retries of a route.
type Retries struct {
	Limit   *uint32          `yaml:"limit"`
	Timeout yamldoc.Duration `yaml:"timeout"`
}

// RequestMatch is a condition on a request. All fields that are set must match.
type RequestMatch struct {
	PathRegex string         `yaml:"pathRegex"`
	Method    string         `yaml:"method"`
	All       []RequestMatch `yaml:"all"`
	Any       []RequestMatch `yaml:"any"`
	Not       *RequestMatch  `yaml:"not"`
}

// ResponseClass says whether responses are failures. The first class that matches counts. If none matches, server errors are failures.
type ResponseClass struct {
	Condition *ResponseMatch `yaml:"condition,required"`
	IsFailure bool           `yaml:"isFailure"`
}

// ResponseMatch is a condition on a response. All fields that are set must match.
type ResponseMatch struct {
	Status *StatusRange    `yaml:"status"`
	All    []ResponseMatch `yaml:"all"`
	Any    []ResponseMatch `yaml:"any"`
	Not    *ResponseMatch  `yaml:"not"`
}

// StatusRange is a range of status codes. If only one bound is set, the range is that single code.
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

// WeightedDst is another destination, with its share of the requests.
type WeightedDst struct {
	Authority string           `yaml:"authority,required"`
	Weight    yamldoc.Quantity `yaml:"weight"`
}
