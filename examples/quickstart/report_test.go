package main

import "testing"

func TestPlausible(t *testing.T) {
	for _, test := range []struct {
		name      string
		n         int
		p         float64
		low, high int
	}{
		{"a tenth", 2000, 0.1, 120, 280},
		{"nine tenths", 2000, 0.9, 1720, 1880},
		{"a twentieth", 2000, 0.05, 42, 158},
		{"half", 400, 0.5, 140, 260},
		{"always", 300, 1, 300, 300},
		{"never", 300, 0, 0, 0},
	} {
		if low, high := plausible(test.n, test.p); low != test.low || high != test.high {
			t.Errorf("%s: plausible(%d, %g) = %d, %d, want %d, %d", test.name, test.n, test.p, low, high, test.low, test.high)
		}
	}
}

func TestShare(t *testing.T) {
	var r report
	r.share("met", 100, 100, 100)
	if !r.matched() {
		t.Errorf("100 of 100 are not 100%%: %q", r.mismatch)
	}
	r.share("not met", 100, 100, 99)
	if r.matched() {
		t.Error("99 of 100 pass for 100%")
	}
}
