package fraction_test

import (
	"math"
	"testing"

	"github.com/nosidecar/mesh/internal/fraction"
)

// TestWholePercents checks that every whole percentage is met by exactly as many of 100, of 1,000 and of 1,000,000.
func TestWholePercents(t *testing.T) {
	for percent := 1; percent <= 100; percent++ {
		f := float64(percent) / 100
		for _, whole := range []int{100, 1000, 1_000_000} {
			part := whole / 100 * percent
			if !fraction.AtLeast(part, whole, f) || fraction.AtLeast(part-1, whole, f) {
				t.Errorf("%d of %d: at least %v is %t, one less %t", part, whole, f,
					fraction.AtLeast(part, whole, f), fraction.AtLeast(part-1, whole, f))
			}
			if !fraction.AtMost(part, whole, f) || fraction.AtMost(part+1, whole, f) {
				t.Errorf("%d of %d: at most %v is %t, one more %t", part, whole, f,
					fraction.AtMost(part, whole, f), fraction.AtMost(part+1, whole, f))
			}
		}
	}
}

// TestThirds checks fractions that no decimal number is.
func TestThirds(t *testing.T) {
	for _, f := range []struct {
		part, whole int
	}{{1, 3}, {2, 3}, {5, 7}, {6, 7}, {11, 13}} {
		value := float64(f.part) / float64(f.whole)
		if !fraction.AtLeast(f.part, f.whole, value) || !fraction.AtMost(f.part, f.whole, value) {
			t.Errorf("%d of %d is not %v of it", f.part, f.whole, value)
		}
	}
}

// TestPerMillion checks that every millionth survives as a float64.
func TestPerMillion(t *testing.T) {
	for n := uint32(0); n <= 1_000_000; n += 7 {
		if got := fraction.PerMillion(float64(n) / 1e6); got != n {
			t.Fatalf("PerMillion(%v) = %d, want %d", float64(n)/1e6, got, n)
		}
	}
}

func TestValid(t *testing.T) {
	for f, want := range map[float64]bool{0: true, 1: true, 0.5: true, -0.1: false, 1.1: false, math.Inf(1): false, math.NaN(): false} {
		if fraction.Valid(f) != want {
			t.Errorf("Valid(%v) = %t", f, !want)
		}
	}
}
