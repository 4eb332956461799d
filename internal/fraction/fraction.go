// Package fraction compares counts with a fraction of a whole, which the settings of every layer give as a float64 from 0 to 1.
package fraction

import (
	"fmt"
	"math"
)

// slack makes up for fractions that have no exact float64: 7 of 100 is 0.07, though 0.07*100 is more than 7.
const slack = 1e-12

// Valid reports whether f lies between 0 and 1. It does not if f is NaN.
func Valid(f float64) bool {
	return f >= 0 && f <= 1
}

// AtLeast reports whether part is the fraction f of whole, or more.
func AtLeast(part, whole int, f float64) bool {
	return float64(part) >= f*float64(whole)*(1-slack)
}

// AtMost reports whether part is the fraction f of whole, or less.
func AtMost(part, whole int, f float64) bool {
	return float64(part) <= f*float64(whole)*(1+slack)
}

// PerMillion returns f in millionths, to the nearest. It is the resolution of Envoy's settings.
func PerMillion(f float64) uint32 {
	return uint32(math.Round(f * 1e6))
}

// CheckSample returns an error if f is not a fraction of calls to draw at random: one between 0 and 1 that does not come to
// nothing in millionths.
func CheckSample(f float64) error {
	switch {
	case !Valid(f):
		return fmt.Errorf("%v, want 0 to 1", f)
	case f > 0 && PerMillion(f) == 0:
		return fmt.Errorf("%v, want 0 or at least a millionth", f)
	}
	return nil
}

// Percent returns f in percent, as documents write it.
func Percent(f float64) float64 {
	return float64(PerMillion(f)) / 10_000
}
