package linkerd

import (
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// Check reports the mistakes in the document other than those in its shape. It must have been decoded without errors.
func (sp *ServiceProfile) Check(doc *yamldoc.Document) {
	sp.Metadata.Check(doc)
	spec := &sp.Spec
	if spec.Routes == nil && strings.HasSuffix(sp.APIVersion, "/v1alpha1") {
		doc.Errorf("spec.routes", "missing: it is required in v1alpha1")
	}
	all := -1
	for i := range spec.Routes {
		at := yamldoc.Index("spec.routes", i)
		r := &spec.Routes[i]
		good := r.check(doc, at)
		if all >= 0 {
			doc.Warnf(at, "never reached: spec.routes[%d] takes every request", all)
		} else if terms, err := r.Condition.terms(false); good && err == nil && takesAll(terms) {
			all = i
		}
	}
	if b := spec.RetryBudget; b != nil {
		b.check(doc)
	}
	var sum int64
	for i := range spec.DstOverrides {
		sum += spec.DstOverrides[i].check(doc, yamldoc.Index("spec.dstOverrides", i))
	}
	if len(spec.DstOverrides) > 0 && sum == 0 {
		doc.Warnf("spec.dstOverrides", "has no effect: every weight is 0, so the requests go to the service itself")
	}
}

// check reports whether the condition can be translated.
func (r *Route) check(doc *yamldoc.Document, at string) bool {
	if r.Name == "" {
		doc.Errorf(at+".name", "must not be empty")
	}
	good := r.Condition.check(doc, at+".condition")
	if good {
		if _, err := r.Condition.matches(); err != nil {
			doc.Errorf(at+".condition", "cannot be enforced: %v", err)
			good = false
		}
	}
	for i := range r.ResponseClasses {
		r.ResponseClasses[i].Condition.check(doc, yamldoc.Index(at+".responseClasses", i)+".condition")
	}
	if r.Timeout.Duration < 0 {
		doc.Warnf(at+".timeout", "has no effect: %v is negative, and Linkerd ignores it", r.Timeout.Duration)
	}

	retryable := r.IsRetryable != nil && *r.IsRetryable
	switch x := r.Retries; {
	case x == nil:
	case x.Limit == nil && !retryable:
		doc.Errorf(at+".retries.limit", "missing: say how often a call is retried, or set isRetryable")
	case x.Limit != nil && *x.Limit == 0 && retryable:
		doc.Errorf(at+".retries.limit", "0 means never, but isRetryable is true: remove one of them")
	case x.Limit != nil && *x.Limit > 0 && r.IsRetryable != nil && !retryable:
		doc.Errorf(at+".retries.limit", "isRetryable is false: remove one of them")
	case x.Limit != nil && *x.Limit > math.MaxInt32:
		doc.Errorf(at+".retries.limit", "%d is out of range", *x.Limit)
	}
	if x := r.Retries; x != nil && x.Timeout.Set && x.Timeout.Duration <= 0 {
		doc.Errorf(at+".retries.timeout", "%v is not positive: leave the field out to have no limit", x.Timeout.Duration)
	}
	if r.limit() > 0 && !r.canFail() {
		doc.Warnf(at+".responseClasses", "no response is a failure, so that nothing is retried")
	}
	return good
}

// check reports whether the condition can be translated.
func (m *RequestMatch) check(doc *yamldoc.Document, at string) bool {
	good := true
	if m.PathRegex == "" && m.Method == "" && m.All == nil && m.Any == nil && m.Not == nil {
		doc.Errorf(at, "must say something: pathRegex, method, all, any or not")
		return false
	}
	if m.PathRegex != "" {
		expr, err := fullPath(m.PathRegex)
		switch {
		case err != nil:
			doc.Errorf(at+".pathRegex", "%v; the syntax is RE2, https://github.com/google/re2/wiki/Syntax", err)
			good = false
		case expr.loose:
			doc.Warnf(at+".pathRegex", `Linkerd anchors only the first alternative to the start and the last one to the end: `+
				`put the alternatives in parentheses to match whole paths`)
		}
	}
	if m.Any != nil && len(m.Any) == 0 {
		doc.Warnf(at+".any", "is empty: it matches nothing")
	}
	for i := range m.All {
		good = m.All[i].check(doc, yamldoc.Index(at+".all", i)) && good
	}
	for i := range m.Any {
		good = m.Any[i].check(doc, yamldoc.Index(at+".any", i)) && good
	}
	if m.Not != nil {
		good = m.Not.check(doc, at+".not") && good
	}
	return good
}

func (m *ResponseMatch) check(doc *yamldoc.Document, at string) {
	if m.Status == nil && m.All == nil && m.Any == nil && m.Not == nil {
		doc.Errorf(at, "must say something: status, all, any or not")
		return
	}
	if s := m.Status; s != nil {
		wrong := func(n uint32) bool { return n != 0 && (n < minStatus || n > maxStatus) }
		switch {
		case wrong(s.Min):
			doc.Errorf(at+".status.min", "%d is not a status code: it must be from %d to %d", s.Min, minStatus, maxStatus)
		case wrong(s.Max):
			doc.Errorf(at+".status.max", "%d is not a status code: it must be from %d to %d", s.Max, minStatus, maxStatus)
		case s.Min != 0 && s.Max != 0 && s.Max < s.Min:
			doc.Errorf(at+".status", "max %d is less than min %d", s.Max, s.Min)
		case s.Min == 0 && s.Max == 0:
			doc.Warnf(at+".status", "has no effect: neither min nor max is set")
		}
	}
	if m.All != nil && len(m.All) == 0 {
		doc.Warnf(at+".all", "has no effect: it is empty, and Linkerd ignores it")
	}
	if m.Any != nil && len(m.Any) == 0 {
		doc.Warnf(at+".any", "has no effect: it is empty, and Linkerd ignores it")
	}
	for i := range m.All {
		m.All[i].check(doc, yamldoc.Index(at+".all", i))
	}
	for i := range m.Any {
		m.Any[i].check(doc, yamldoc.Index(at+".any", i))
	}
	if m.Not != nil {
		m.Not.check(doc, at+".not")
	}
}

func (b *RetryBudget) check(doc *yamldoc.Document) {
	const at = "spec.retryBudget"
	if b.RetryRatio < 0 || b.RetryRatio > 1000 {
		doc.Errorf(at+".retryRatio", "%v is out of range: it must be from 0 to 1000", b.RetryRatio)
	}
	if b.MinRetriesPerSecond > math.MaxInt32 {
		doc.Errorf(at+".minRetriesPerSecond", "%d is out of range: it must be at most %d", b.MinRetriesPerSecond, math.MaxInt32)
	}
	if b.TTL.Duration < time.Second || b.TTL.Duration > time.Minute {
		doc.Errorf(at+".ttl", "%v is out of range: it must be from 1s to 60s", b.TTL.Duration)
	}
}

// check returns the weight.
func (d *WeightedDst) check(doc *yamldoc.Document, at string) int64 {
	host, port, err := net.SplitHostPort(d.Authority)
	n, atoi := strconv.Atoi(port)
	switch {
	case err != nil || atoi != nil || n < 1 || n > math.MaxUint16:
		doc.Errorf(at+".authority", "%q is not NAME:PORT: Linkerd ignores it", d.Authority)
	case !yamldoc.IsName(strings.TrimSuffix(strings.ToLower(host), ".")):
		doc.Errorf(at+".authority", "%q is not a host name", host)
	}
	switch {
	case !d.Weight.Set:
		doc.Warnf(at+".weight", "missing: the destination gets nothing")
	case d.Weight.Milli < 0:
		doc.Errorf(at+".weight", "must not be negative")
	case d.Weight.Milli > maxWeight:
		doc.Errorf(at+".weight", "must be at most %d", maxWeight/1000)
	}
	return d.Weight.Milli
}

// maxWeight is the maximum weight in thousandths. The proxy stores ten-thousandths in 32 bits.
const maxWeight = math.MaxUint32 / 10
