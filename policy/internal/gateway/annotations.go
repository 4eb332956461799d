package gateway

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// The annotations of Linkerd that are enforced. They apply to all rules of a route.
const (
	retryHTTP      = "retry.linkerd.io/http"
	retryGRPC      = "retry.linkerd.io/grpc"
	retryLimit     = "retry.linkerd.io/limit"
	retryTimeout   = "retry.linkerd.io/timeout"
	timeoutRequest = "timeout.linkerd.io/request"
)

// settings are what annotations say about all rules.
type settings struct {
	timeout *time.Duration // nil if they do not say
	retry   *retry.Config
}

// apply applies the settings to the route of a rule.
func (s *settings) apply(r *route.Route) {
	if r.Redirect != nil || r.Direct != nil {
		return
	}
	if s.timeout != nil {
		r.Timeout = *s.timeout
	}
	if s.retry == nil {
		return
	}
	each := r.Retry.PerTryTimeout // of the backend
	if r.Retry = *s.retry; r.Retry.PerTryTimeout == 0 || each > 0 && each < r.Retry.PerTryTimeout {
		r.Retry.PerTryTimeout = each
	}
}

// isSetting reports whether the annotation with a key is one of those of Linkerd that say how requests are sent.
func isSetting(key string) bool {
	of, _, _ := strings.Cut(key, "/")
	return of == "retry.linkerd.io" || of == "timeout.linkerd.io"
}

// annotated returns what the annotations of a document say. It calls wrong for those that are invalid or not enforced.
func annotated(object *yamldoc.Object, wrong func(key, format string, args ...any)) (s settings) {
	annotations := object.Metadata.Annotations
	keys := make([]string, 0, len(annotations))
	for key := range annotations {
		if isSetting(key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	what, other := retryHTTP, retryGRPC
	if object.Kind == "GRPCRoute" {
		what, other = other, what
	}
	var limit, each string
	on, retries := retry.On{}, false
	for _, key := range keys {
		value := annotations[key]
		switch key {
		case what:
			var bad string
			if on, bad = conditions(value, key == retryGRPC); bad != "" {
				wrong(key, "%q is no condition of Linkerd", bad)
			}
			retries = true
		case other:
			wrong(key, "has no effect on this kind of route: write %s", what)
		case retryLimit:
			limit = value
		case retryTimeout:
			each = value
		case timeoutRequest:
			d, ok := linkerdDuration(value)
			if !ok {
				wrong(key, "%q is not a duration: write a whole number with a unit: ms, s, m, h or d", value)
			}
			s.timeout = &d
		default:
			wrong(key, "is not enforced: remove it; %s and timeouts.request of a rule are", timeoutRequest)
		}
	}
	if !retries && (limit != "" || each != "") {
		wrong(what, "missing: say what is retried, such as 5xx for HTTP or unavailable for gRPC")
	}
	if !retries {
		return s
	}
	c := retry.Config{Retries: 1, On: on, Backoff: -1, MaxRetryAfter: -1, AnyMethod: true, NestedRetries: true}
	if limit != "" {
		n, err := strconv.ParseUint(limit, 10, 16)
		if err != nil {
			wrong(retryLimit, "%q is not a number of retries", limit)
		}
		c.Retries = max(1, int(n)) // 0 means the default
	}
	if each != "" {
		var ok bool
		if c.PerTryTimeout, ok = linkerdDuration(each); !ok {
			wrong(retryTimeout, "%q is not a duration: write a whole number with a unit: ms, s, m, h or d", each)
		}
		c.On.Conditions |= retry.Reset // which includes that a try took too long
	}
	s.retry = &c
	return s
}

// conditions translates a list of conditions. It returns the first one that is none, or "".
func conditions(list string, grpc bool) (on retry.On, bad string) {
	named := map[string]retry.Condition{"5xx": retry.ServerError, "gateway-error": retry.GatewayError}
	if grpc {
		named = map[string]retry.Condition{
			"cancelled": retry.Cancelled, "deadline-exceeded": retry.DeadlineExceeded, "internal": retry.Internal,
			"resource-exhausted": retry.ResourceExhausted, "unavailable": retry.Unavailable,
		}
	}
	var codes []int
	for item := range strings.SplitSeq(list, ",") {
		if condition, ok := named[strings.ToLower(item)]; ok {
			on.Conditions |= condition
			continue
		}
		first, last, ranged := strings.Cut(item, "-")
		if !ranged {
			last = first
		}
		from, to := statusCode(first), statusCode(last)
		if grpc || from == 0 || to < from {
			return on, item
		}
		for code := from; code <= to; code++ {
			codes = append(codes, code)
			if code >= 502 && code <= 504 { // with which Linkerd's proxy answers if there is no response
				on.Conditions |= retry.Reset
			}
		}
	}
	on.Status = retry.Codes(codes...)
	return on, ""
}

// statusCode returns a status code, or 0 if s is none.
func statusCode(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 100 || n > 599 {
		return 0
	}
	return n
}

func linkerdDuration(s string) (time.Duration, bool) {
	s = strings.TrimSpace(s)
	if s == "0" {
		return 0, true
	}
	digits := strings.TrimRight(s, "mshd")
	unit, ok := map[string]time.Duration{
		"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}[s[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 32)
	return time.Duration(n) * unit, ok && err == nil
}
