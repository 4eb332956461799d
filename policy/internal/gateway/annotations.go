package gateway

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// The annotations of Linkerd about how a Service is called. Those of a route apply to all of its rules, those of a Service to what no route says.
const (
	retryHTTP       = "retry.linkerd.io/http"
	retryGRPC       = "retry.linkerd.io/grpc"
	retryLimit      = "retry.linkerd.io/limit"
	retryTimeout    = "retry.linkerd.io/timeout"
	timeoutRequest  = "timeout.linkerd.io/request"
	timeoutResponse = "timeout.linkerd.io/response"
	timeoutIdle     = "timeout.linkerd.io/idle"
	accrual         = "balancer.linkerd.io/failure-accrual"
	maxFailures     = accrual + "-consecutive-max-failures"
	minPenalty      = accrual + "-consecutive-min-penalty"
	maxPenalty      = accrual + "-consecutive-max-penalty"
	jitterRatio     = accrual + "-consecutive-jitter-ratio"
)

// Settings are what annotations say about the calls to a Service, or about those that a route applies to.
type Settings struct {
	Timeout    *time.Duration // nil if they do not say
	HTTP, GRPC *retry.Config  // what is retried by the statuses of either
	Accrual    *Accrual       // of a Service only
}

// Both returns the retries of a Service without routes, which may be called in either way. It is nil if there are none.
func (s *Settings) Both() *retry.Config {
	if s.HTTP == nil || s.GRPC == nil {
		return cmp.Or(s.HTTP, s.GRPC)
	}
	both := *s.HTTP
	both.On.Conditions |= s.GRPC.On.Conditions
	return &both
}

// apply applies the settings of a route, and otherwise those of the Service that it is attached to, to what a rule was translated to. rule is nil for
// that of a GRPCRoute, which has no timeouts and retries of its own.
func (s *Settings) apply(r *route.Route, rule *HTTPRouteRule, service *Settings) {
	if r.Redirect != nil || r.Direct != nil {
		return
	}
	timeout, retries := s.Timeout, cmp.Or(s.HTTP, s.GRPC)
	if service == nil {
		service = new(Settings)
	}
	if timeout == nil && (rule == nil || rule.Timeouts == nil || rule.Timeouts.Request == nil) {
		timeout = service.Timeout
	}
	if timeout != nil {
		r.Timeout = *timeout
	}
	switch {
	case retries != nil:
	case rule == nil:
		retries = service.GRPC
	case rule.Retry == nil:
		retries = service.HTTP
	}
	if retries == nil {
		return
	}
	each := r.Retry.PerTryTimeout // of the backend
	if r.Retry = *retries; r.Retry.PerTryTimeout == 0 || each > 0 && each < r.Retry.PerTryTimeout {
		r.Retry.PerTryTimeout = each
	}
}

// Annotated returns what the annotations of a Service, an HTTPRoute or a GRPCRoute say. It calls wrong for those that are invalid or not enforced.
func Annotated(object *yamldoc.Object, wrong func(key, format string, args ...any)) (s Settings) {
	annotations, ofService := object.Metadata.Annotations, object.Kind == "Service"
	keys := make([]string, 0, len(annotations))
	for key := range annotations {
		if IsSetting(key) && (ofService || !strings.HasPrefix(key, "balancer.")) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	retries, has := retry.Config{Retries: 1, Backoff: -1, MaxRetryAfter: -1, AnyMethod: true, NestedRetries: true}, false
	for _, key := range keys {
		value := annotations[key]
		switch key {
		case retryHTTP, retryGRPC:
			if other := strings.TrimSuffix(object.Kind, "Route"); !ofService && !strings.EqualFold(key, "retry.linkerd.io/"+other) {
				wrong(key, "has no effect on this kind of route: write retry.linkerd.io/%s", strings.ToLower(other))
				continue
			}
			on, bad := conditions(value, key == retryGRPC)
			if bad != nil {
				wrong(key, "%q is no condition of Linkerd", *bad)
			}
			if has = true; key == retryHTTP {
				s.HTTP = &retry.Config{On: on}
			} else {
				s.GRPC = &retry.Config{On: on}
			}
		case retryLimit:
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				wrong(key, "%q is not a number of retries", value)
			}
			retries.Retries = max(1, int(n)) // 0 means the default
		case retryTimeout:
			retries.PerTryTimeout = linkerdDuration(key, value, wrong)
		case timeoutRequest:
			d := linkerdDuration(key, value, wrong)
			s.Timeout = &d
		case accrual, maxFailures, minPenalty, maxPenalty, jitterRatio:
		default:
			wrong(key, "is not enforced: remove it%s", instead(key, ofService))
		}
	}
	if _, limited := annotations[retryLimit]; !has && (limited || annotations[retryTimeout] != "") {
		wrong(retryHTTP, "missing: say what is retried, such as 5xx for HTTP or unavailable for gRPC")
	}
	for _, c := range []*retry.Config{s.HTTP, s.GRPC} {
		if c != nil {
			on := c.On
			if *c = retries; c.PerTryTimeout > 0 {
				on.Conditions |= retry.Reset // which includes that a try took too long
			}
			c.On = on
		}
	}
	if ofService {
		s.Accrual = accrued(annotations, wrong)
	}
	return s
}

// IsSetting reports whether an annotation belongs to those by which Linkerd sets how a Service is called.
func IsSetting(key string) bool {
	of, _, _ := strings.Cut(key, "/")
	return of == "retry.linkerd.io" || of == "timeout.linkerd.io" || of == "balancer.linkerd.io"
}

// instead says what is enforced in place of an annotation.
func instead(key string, ofService bool) string {
	switch {
	case key != timeoutResponse && key != timeoutIdle:
		return yamldoc.Hint(key, []string{retryHTTP, retryGRPC, retryLimit, retryTimeout, timeoutRequest, accrual, maxFailures, minPenalty, maxPenalty, jitterRatio})
	case ofService:
		return fmt.Sprintf("; %s is, and bounds the whole call", timeoutRequest)
	}
	return fmt.Sprintf("; %s and timeouts.request of a rule are", timeoutRequest)
}

// conditions translates a list of conditions. It returns the first one that is none, or nil.
func conditions(list string, grpc bool) (on retry.On, bad *string) {
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
			return on, &item
		}
		for code := from; code <= to; code++ {
			codes = append(codes, code)
			if code >= 502 && code <= 504 { // with which Linkerd's proxy answers if there is no response
				on.Conditions |= retry.Reset
			}
		}
	}
	on.Status = retry.Codes(codes...)
	return on, nil
}

// statusCode returns a status code, or 0 if s is none.
func statusCode(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil || n < 100 || n > 599 {
		return 0
	}
	return n
}

// linkerdDuration reads a duration as Linkerd does.
func linkerdDuration(key, s string, wrong func(key, format string, args ...any)) time.Duration {
	s = strings.TrimSpace(s)
	digits := strings.TrimRight(s, "mshd")
	unit, ok := map[string]time.Duration{
		"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour,
	}[s[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 64)
	switch {
	case err == nil && n == 0 && (ok || s == digits):
		return 0
	case errors.Is(err, strconv.ErrRange) || err == nil && ok && n > uint64(longest/unit):
		wrong(key, "%q is too long: the longest duration is %dd", s, longest/(24*time.Hour))
	case err != nil || !ok:
		wrong(key, "%q is not a duration: write a whole number with a unit: ms, s, m, h or d", s)
	default:
		return time.Duration(n) * unit
	}
	return 0
}

// longest is the longest duration: ten years.
const longest = 10 * 365 * 24 * time.Hour
