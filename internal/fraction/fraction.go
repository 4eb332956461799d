// Package fraction compares counts with fractions. All layers have fractions as a float64 from 0 to 1 in their settings.
package fraction

import (
	"fmt"
	"math"
)

// slack compensates for fractions without an exact float64: 7 of 100 is 0.07, but 0.07*100 is more than 7.
const slack = 1e-12

// Valid reports whether f is from 0 to 1. NaN is not.
func Valid(f float64) bool {
	return f >= 0 && f <= 1
}

// AtLeast reports whether part is at least the fraction f of whole.
func AtLeast(part, whole int, f float64) bool {
	return float64(part) >= f*float64(whole)*(1-slack)
}

// AtMost reports whether part is at most the fraction f of whole.
func AtMost(part, whole int, f float64) bool {
	return float64(part) <= f*float64(whole)*(1+slack)
}

// PerMillion returns f in millionths, rounded. That is the resolution of Envoy's settings.
func PerMillion(f float64) uint32 {
	return uint32(math.Round(f * 1e6))
}

// CheckSample returns an error if f is not a valid fraction for sampling calls: it must be from 0 to 1, and must not be rounded to 0
// millionths unless it is 0.
func CheckSample(f float64) error {
	switch {
	case !Valid(f):
		return fmt.Errorf("%v, want 0 to 1", f)
	case f > 0 && PerMillion(f) == 0:
		return fmt.Errorf("%v, want 0 or at least a millionth", f)
	}
	return nil
}

// Percent returns f in percent, as in documents.
func Percent(f float64) float64 {
	return float64(PerMillion(f)) / 10_000
}
