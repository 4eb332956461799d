package gateway

import (
	"slices"
	"strconv"
	"time"
)

// Accrual says when an endpoint is taken out because calls to it fail, as Linkerd's consecutive failure accrual. It is comparable.
type Accrual struct {
	Failures int           // in a row
	Min, Max time.Duration // the first penalty, and the longest one
	Jitter   float64       // the greatest random part that is added to a penalty, as a multiple of it
}

// accrued returns what the annotations of a Service say of failing endpoints, or nil.
func accrued(annotations map[string]string, wrong func(key, format string, args ...any)) *Accrual {
	policy, has := annotations[accrual]
	settings := []string{maxFailures, minPenalty, maxPenalty, jitterRatio}
	switch i := slices.IndexFunc(settings, func(key string) bool { _, set := annotations[key]; return set }); {
	case !has && i < 0:
		return nil
	case !has:
		wrong(accrual, "missing: without it, %s has no effect: write consecutive", settings[i])
		return nil
	case policy != "consecutive":
		wrong(accrual, "%q is not enforced: write consecutive", policy)
		return nil
	}
	a := &Accrual{Failures: 7, Min: time.Second, Max: time.Minute, Jitter: 0.5}
	if value, set := annotations[maxFailures]; set {
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil || n == 0 {
			wrong(maxFailures, "%q is not a number of failures: it must be a whole number from 1 to 2147483647", value)
		}
		a.Failures = int(n)
	}
	for key, d := range map[string]*time.Duration{minPenalty: &a.Min, maxPenalty: &a.Max} {
		if value, set := annotations[key]; set {
			failed := false
			*d = linkerdDuration(key, value, func(key, format string, args ...any) {
				failed = true
				wrong(key, format, args...)
			})
			if *d == 0 && !failed {
				wrong(key, "%q is no penalty: it must be longer than 0", value)
			}
		}
	}
	if a.Min > a.Max && a.Max > 0 {
		at := minPenalty
		if _, set := annotations[at]; !set {
			at = maxPenalty
		}
		wrong(at, "the first penalty of %v is longer than the longest one, %v", a.Min, a.Max)
	}
	if value, set := annotations[jitterRatio]; set {
		ratio, err := strconv.ParseFloat(value, 64)
		if err != nil || !(ratio >= 0 && ratio <= 100) {
			wrong(jitterRatio, "%q is not a ratio: it must be a number from 0 to 100", value)
		}
		a.Jitter = ratio
	}
	return a
}
