// Package retry retries calls that failed in a way that another try may fix.
//
// [Transport] does it for an http.Client. [Loop] does the same without a RoundTripper, for callers that make tries of
// another kind; [Policy], [Budget] and [Limiter] are its parts. Used alone, the defaults are careful: idempotent requests
// only, full jitter, at most 20% more calls, no retries of retries.
//
// To retry what no [Condition] describes, have Base return an error for it. What every try needs anew, such as a signature, belongs
// into Base, too. A timeout.Transport around this one, or the context's deadline, bounds all tries together; timeout.Exceeded
// recognizes the error of a per-try timeout. When the tries are used up, the last response is returned as it is. There is no
// hedging: a PerTryTimeout ends a slow try without doubling the load.
//
// # With the other layers
//
// The usual order is that of a mesh, in which a circuit sees each try:
//
//	client := &http.Client{Transport: &timeout.Transport{Base: &retry.Transport{Base: &breaker.Transport{Base: &balancer.Transport{...}}}}}
//
// A retry avoids the endpoints to which a balancer.Transport has sent the tries before it. A try that the circuit refuses is not
// retried: if the circuit opens during a call, the error is an [*Error] that wraps breaker.ErrOpen. With the breaker around the
// retries, a circuit sees each call once, by its last try.
package retry
