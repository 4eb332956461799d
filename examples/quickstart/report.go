package main

import (
	"fmt"
	"math"
	"strings"
	"text/tabwriter"
)

// report is the result of a scene. Its zero value is empty.
type report struct {
	rows  [][]string
	unmet []string
}

// row adds a row to the table. The first row is the heading.
func (r *report) row(cells ...any) {
	texts := make([]string, len(cells))
	for i, cell := range cells {
		texts[i] = fmt.Sprint(cell)
	}
	r.rows = append(r.rows, texts)
}

// expect records what the documents specify, unless it was met.
func (r *report) expect(met bool, format string, args ...any) {
	if !met {
		r.unmet = append(r.unmet, fmt.Sprintf(format, args...))
	}
}

// asked reports whether everything was as the documents specify.
func (r *report) asked() bool { return len(r.unmet) == 0 }

// share adds a row about a random choice: of n calls, percent should be chosen, and got were.
func (r *report) share(what string, n int, percent float64, got int) {
	low, high := plausible(n, percent/100)
	r.row(what, n, fmt.Sprintf("%g%%", percent), fmt.Sprintf("%.1f%%", 100*float64(got)/float64(n)))
	r.expect(low <= got && got <= high, "%s: %g%% of %d calls, so %d to %d of them; it was %d", what, percent, n, low, high, got)
}

// plausible returns how often, from low to high, an event of probability p happens in n trials. The probability that it
// happens less or more often is one in 50 million, so with the few shares that are measured here, fewer than one run in a
// million fails without a reason.
func plausible(n int, p float64) (low, high int) {
	if p <= 0 || p >= 1 {
		always := int(math.Round(p * float64(n)))
		return always, always
	}
	const tail = 1e-8 // on either side
	// The binomial distribution, added up from below.
	logFactorial := func(k int) float64 {
		v, _ := math.Lgamma(float64(k + 1))
		return v
	}
	sum := 0.0
	low = -1
	for k := 0; k <= n; k++ {
		sum += math.Exp(logFactorial(n) - logFactorial(k) - logFactorial(n-k) +
			float64(k)*math.Log(p) + float64(n-k)*math.Log(1-p))
		if low < 0 && sum > tail {
			low = k
		}
		if sum >= 1-tail {
			return low, k
		}
	}
	return low, n
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
	for _, unmet := range s.unmet {
		fmt.Fprintf(&b, "   DOES NOT MATCH: want %s.\n", unmet)
	}
	return b.String()
}

// printFindings prints the findings in the documents. None of them is an error, or the scenes would not have begun.
func printFindings(scenes []*scene) {
	fmt.Println("Warnings from loading the documents:")
	said := make(map[string]bool)
	for _, s := range scenes {
		for _, finding := range s.findings {
			if line := finding.String(); !said[line] {
				said[line] = true
				fmt.Println("  ", line)
			}
		}
	}
}
