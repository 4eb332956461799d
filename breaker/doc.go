// Package breaker stops calls that are likely to fail.
//
// It has two independent parts. A [Circuit] guards a destination as a whole: after too many failures it refuses calls at
// once, and after a while lets a few probes decide whether to close again. An [Outlier] watches the endpoints of one
// destination and ejects those that fail while their peers do not, with the semantics of Envoy's outlier detection.
// [OutlierConfig.MaxEjectedFraction] bounds how many: [Outlier.OnWithheld] tells of those that fail and stay.
//
// [Transport] puts circuits in front of an http.RoundTripper, one per destination. An Outlier ejects nothing by itself: a
// balancer asks it which endpoints to leave out, and reports the outcomes of calls to it.
//
// Nothing here starts a goroutine or a timer: the clock is read when a call begins or ends.
package breaker
