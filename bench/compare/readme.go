package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/bench"
)

// summary has the ratios that the README quotes, by what they are about.
type summary map[string]figures

// figures are the medians of the ratios to the bare side within a round.
type figures struct {
	rate, client, both float64
}

var quoted = make(summary)

// put keeps the figures of a side. Nil means that something was not measured.
func (s summary) put(about string, inFlight int, side string, rate, bareRate, client, bareClient, both, bareBoth []float64) {
	s[key(about, inFlight, side)] = figures{middle(rate, bareRate), middle(client, bareClient), middle(both, bareBoth)}
}

func key(about string, inFlight int, side string) string {
	return fmt.Sprintf("%s, %d, %s", about, inFlight, side)
}

// middle returns the median of the ratios within rounds, or 0 without any.
func middle(a, b []float64) float64 {
	if len(a) == 0 {
		return 0
	}
	return median(ratios(a, b))
}

// print prints the tables of the README, as far as they were measured.
func (s summary) print() {
	fmt.Print("\nFor the README. Over loopback, 8 calls in flight, as ratios to a bare http.Client:\n\n" +
		"| | calls/s | CPU of the client | failsafe-go |\n|---|--:|--:|--:|\n")
	for _, timeouts := range []string{"", ", timeouts"} {
		for _, p := range bench.Protocols {
			own, theirs := s[key(string(p), 8, "whole mesh"+timeouts)], s[key(string(p), 8, "failsafe-go"+timeouts)]
			if own.rate > 0 {
				fmt.Printf("| %s%s | %.2f | %.2f | %.2f, %.2f |\n", p, timeouts, own.rate, own.client, theirs.rate, theirs.client)
			}
		}
	}
	fmt.Print("\nThe other figures, as ratios to the bare side; CPU of the client where only that was measured, and else of both ends:\n\n" +
		"| | calls/s | CPU |\n|---|--:|--:|\n")
	names := make([]string, 0, len(s))
	for name := range s {
		above := s[name].client > 0 && strings.Contains(name, ", 8, ")
		if strings.Contains(name, bench.OneConnection) || strings.Contains(name, bench.StreamWorkers) || !above && !strings.Contains(name, "bare") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		f := s[name]
		cpu := f.both
		if f.client > 0 {
			cpu = f.client
		}
		fmt.Printf("| %s | %.2f | %.2f |\n", name, f.rate, cpu)
	}
}
