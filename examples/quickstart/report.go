package main

import (
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
)

// report is the result of a scene. Its zero value is empty.
type report struct {
	rows     [][]string // of the table; the first is the heading
	mismatch []string   // what the documents specify and was not measured
}

// row adds a row to the table.
func (r *report) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		texts[i] = fmt.Sprint(cell)
	}
	r.rows = append(r.rows, texts)
}

// expect records what the documents specify, unless it is what was measured.
func (r *report) expect(measured bool, format string, args ...any) {
	if !measured {
		r.mismatch = append(r.mismatch, fmt.Sprintf(format, args...))
	}
}

// matched reports whether everything was as the documents specify.
func (r *report) matched() bool { return len(r.mismatch) == 0 }

// share adds a row about a random choice: of n calls, percent should be chosen, and got were.
func (r *report) share(what string, n int, percent float64, got int) {
	low, high := plausible(n, percent/100)
	r.row(what, n, fmt.Sprintf("%g%%", percent), fmt.Sprintf("%.1f%%", 100*float64(got)/float64(n)))
	r.expect(low <= got && got <= high, "%s: %g%% of %d calls, so %d to %d of them; it was %d", what, percent, n, low, high, got)
}

// plausible returns how often, from low to high, an event of probability p happens in n trials: the mean, with six standard deviations on
// either side. Fewer than one run in a million fails without a reason.
func plausible(n int, p float64) (low, high int) {
	mean, deviation := float64(n)*p, math.Sqrt(float64(n)*p*(1-p))
	return int(math.Round(mean - 6*deviation)), int(math.Round(mean + 6*deviation))
}

// String returns the scene as text: what it is about, the documents, the table, and what did not match.
func (s *scene) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s)\n   %s\n\n", s.title, strings.Join(s.documents, ", "), s.story)
	table := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for i, row := range s.rows {
		fmt.Fprintf(table, "   %s\n", strings.Join(row, "\t"))
		if i == 0 {
			rules := make([]string, len(row))
			for j, cell := range row {
				rules[j] = strings.Repeat("-", len(cell))
			}
			fmt.Fprintf(table, "   %s\n", strings.Join(rules, "\t"))
		}
	}
	table.Flush()
	for _, want := range s.mismatch {
		fmt.Fprintf(&b, "   DOES NOT MATCH: want %s.\n", want)
	}
	return b.String()
}

// printFindings prints the findings in the documents. None of them is an error, or the scenes would not have begun.
func printFindings(scenes []*scene) {
	fmt.Println("Warnings from loading the documents:")
	printed := make(map[string]bool)
	for _, s := range scenes {
		for _, finding := range s.findings {
			if line := finding.String(); !printed[line] {
				printed[line] = true
				fmt.Println("  ", line)
			}
		}
	}
}
