package retry

import (
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/statusset"
)

// Condition is a set of the conditions under which a call is retried, with the meaning Envoy gives them. A failure is an
// error of the transport; a response comes from the server.
type Condition uint32

const (
	// ServerError ("5xx") is any response of 500 and above, and any failure: reset, per-try timeout, connect failure,
	// refused stream.
	ServerError Condition = 1 << iota
	// GatewayError ("gateway-error") is a 502, 503 or 504, and any failure.
	GatewayError
	// Reset ("reset") is any failure.
	Reset
	// ResetBeforeRequest ("reset-before-request") is a failure before any of the request was written, connect failures
	// included.
	ResetBeforeRequest
	// ConnectFailure ("connect-failure") is a failure of name lookup, dial, proxy or TLS handshake.
	ConnectFailure
	// RefusedStream ("refused-stream") is an HTTP/2 request that the server said it did not process.
	RefusedStream
	// Retriable4xx ("retriable-4xx") is a 409.
	Retriable4xx
	// RetriableStatusCodes ("retriable-status-codes") stands for the codes in On.Status and adds nothing to them.
	RetriableStatusCodes
	// RetriableHeaders ("retriable-headers") is a response with one of Config.RetriableHeaders.
	RetriableHeaders
	// RateLimited ("envoy-ratelimited") is a response with the header x-envoy-ratelimited. Without this condition such a
	// response is never retried.
	RateLimited
	// Cancelled ("cancelled") is a gRPC response with status 1 in its headers. A status in the trailers, after messages, is too
	// late to retry. The same holds for the four conditions below.
	Cancelled
	// DeadlineExceeded ("deadline-exceeded") is gRPC status 4.
	DeadlineExceeded
	// ResourceExhausted ("resource-exhausted") is gRPC status 8.
	ResourceExhausted
	// Internal ("internal") is gRPC status 13.
	Internal
	// Unavailable ("unavailable") is gRPC status 14.
	Unavailable

	allConditions = Unavailable<<1 - 1
)

// anyFailure holds the conditions that every failure meets.
const anyFailure = ServerError | GatewayError | Reset

// conditionNames are the names in the order of their bits.
var conditionNames = [...]string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx",
	"retriable-status-codes", "retriable-headers", "envoy-ratelimited",
	"cancelled", "deadline-exceeded", "resource-exhausted", "internal", "unavailable",
}

// StatusSet is a set of HTTP status codes from 100 to 599. The zero value is empty. It is comparable.
type StatusSet struct {
	set statusset.Set
}

// Codes returns the set of the given codes. With a code outside 100 to 599, which no response has, [Config.Validate] rejects it.
func Codes(codes ...int) StatusSet { return StatusSet{statusset.Of(codes...)} }

func (s *StatusSet) has(code int) bool {
	return s.set.Has(code)
}

// On says what is retried: any of its conditions and status codes. It is comparable. The zero value means the default
// of [Config.On].
type On struct {
	// Conditions are the conditions, joined by |.
	Conditions Condition
	// Status holds further status codes. They match responses of the server only, never a failure.
	Status StatusSet
}

// ParseOn parses the comma-separated list in retryOn of a VirtualService or retry_on of Envoy: names of conditions and status
// codes, such as "gateway-error,connect-failure,429". Spaces around an item are ignored. The empty list is the
// zero On. Conditions that are not supported are an error.
func ParseOn(list string) (On, error) {
	var on On
	if strings.TrimSpace(list) == "" {
		return on, nil
	}
next:
	for item := range strings.SplitSeq(list, ",") {
		item = strings.TrimSpace(item)
		for i, name := range conditionNames {
			if item == name {
				on.Conditions |= 1 << i
				continue next
			}
		}
		switch {
		case item == "":
			return On{}, fmt.Errorf("retry: empty condition in %q", list)
		case item == "http3-post-connect-failure":
			return On{}, fmt.Errorf("retry: condition %q cannot be honoured: there is no HTTP/3 here", item)
		case item[0] < '0' || item[0] > '9':
			return On{}, fmt.Errorf("retry: unknown condition %q: want a status code, or one of %s", item, strings.Join(conditionNames[:], ", "))
		}
		code, err := strconv.Atoi(item)
		if err != nil || len(item) != 3 || http.StatusText(code) == "" {
			return On{}, fmt.Errorf("retry: unknown status code %q: want one that HTTP defines, such as 503, or 5xx", item)
		}
		on.Status.set.Add(code)
	}
	if on.Status != (StatusSet{}) {
		on.Conditions &^= RetriableStatusCodes // the codes say it
	}
	return on, nil
}

// String returns the canonical list: conditions in the order of their declaration, then codes in ascending order. ParseOn
// reads it back.
func (o On) String() string {
	var b []byte
	for i, name := range conditionNames {
		if o.Conditions&(1<<i) != 0 {
			b = append(append(b, name...), ',')
		}
	}
	for code := statusset.Min; code <= statusset.Max; code++ {
		if o.Status.has(code) {
			b = append(strconv.AppendInt(b, int64(code), 10), ',')
		}
	}
	if len(b) == 0 {
		return ""
	}
	return string(b[:len(b)-1])
}

// failure reports whether a failure of this kind is to be retried.
func (o On) failure(kind failure.Kind) bool {
	return kind.Retriable(uint32(o.Conditions))
}

// response reports whether resp is to be retried. headers are the canonical names for RetriableHeaders.
func (o *On) response(resp *http.Response, headers []string) bool {
	byStatus := o.http(resp.StatusCode)
	if !byStatus && o.Conditions&(RateLimited|RetriableHeaders|grpcStatuses) == 0 {
		return false // whatever the header says
	}
	if resp.Header["X-Envoy-Overloaded"] != nil {
		return false
	}
	if resp.Header["X-Envoy-Ratelimited"] != nil {
		return o.Conditions&RateLimited != 0
	}
	if byStatus {
		return true
	}
	if o.Conditions&RetriableHeaders != 0 {
		for _, name := range headers {
			if resp.Header[name] != nil {
				return true
			}
		}
	}
	return o.Conditions&grpcStatuses != 0 && o.grpc(resp)
}

// least returns the least status that may be retried, 0 if that depends on the header.
func (o *On) least() int {
	if o.Conditions&(RateLimited|RetriableHeaders|grpcStatuses) != 0 {
		return 0
	}
	least := math.MaxInt
	if o.Status != (StatusSet{}) {
		least = o.Status.set.Least()
	}
	for _, of := range [...]struct {
		condition Condition
		status    int
	}{{Retriable4xx, http.StatusConflict}, {ServerError, 500}, {GatewayError, 502}} {
		if o.Conditions&of.condition != 0 {
			least = min(least, of.status)
		}
	}
	return least
}

// HTTP reports whether an HTTP response is to be retried because of its status.
func (o On) HTTP(code int) bool { return o.http(code) }

func (o *On) http(code int) bool {
	return o.Conditions&ServerError != 0 && code >= 500 ||
		o.Conditions&GatewayError != 0 && code >= 502 && code <= 504 ||
		o.Conditions&Retriable4xx != 0 && code == http.StatusConflict ||
		o.Status.has(code)
}

const grpcStatuses = Cancelled | DeadlineExceeded | ResourceExhausted | Internal | Unavailable

// grpc reports whether the headers of resp carry a gRPC status that is to be retried.
func (o *On) grpc(resp *http.Response) bool {
	if !field.IsGRPC(resp.Header) {
		return false
	}
	code, err := strconv.ParseUint(resp.Header.Get("Grpc-Status"), 10, 32)
	return err == nil && o.GRPC(uint32(code))
}

// GRPC reports whether a gRPC call is to be retried because of its status code. No message may have come before the status.
func (o On) GRPC(code uint32) bool {
	switch code {
	case 1:
		return o.Conditions&Cancelled != 0
	case 4:
		return o.Conditions&DeadlineExceeded != 0
	case 8:
		return o.Conditions&ResourceExhausted != 0
	case 13:
		return o.Conditions&Internal != 0
	case 14:
		return o.Conditions&Unavailable != 0
	}
	return false
}
