package yamldoc

import "time"

// Duration is a duration that knows whether the document sets it. It is written as in Istio's documents: one or more decimal numbers with
// units ("100ms", "0.5s", "1h30m").
type Duration struct {
	time.Duration
	Set bool
}

// Or returns the duration, or other if the document does not set it.
func (d Duration) Or(other time.Duration) time.Duration {
	if d.Set {
		return d.Duration
	}
	return other
}
