// Package retry retries calls that failed in a way that another try may fix.
//
// [Transport] does it for an http.Client. [Loop] does the same without a RoundTripper, for callers that make tries of
// another kind; [Policy], [Budget] and [Limiter] are its parts. Used alone, the defaults are careful: idempotent requests
// only, full jitter, at most 20% more calls, no retries of retries.
//
// timeout.Exceeded recognizes the error of a per-try timeout.
package retry
