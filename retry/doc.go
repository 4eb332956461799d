// Package retry retries calls that failed in a way that another try may mend.
//
// [Transport] does it for an http.Client. [Loop] is the same without a RoundTripper around it, for callers whose tries are of
// another kind; [Policy], [Budget] and [Limiter] are its parts. Used alone, the defaults are careful: idempotent requests
// only, full jitter, at most 20% more calls, no retries of retries.
//
// A per-try timeout is an error that timeout.Exceeded knows.
package retry
