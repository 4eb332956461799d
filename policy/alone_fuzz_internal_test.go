package policy

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// annotations are those of a random object.
var annotations = regexp.MustCompile(`, annotations: \{[^}]*\}`)

// TestAlone_IsCompileOfWhatIsInForce compares random sets of documents that stand alone with what is obviously right: the plan is the one that the
// documents in force make if they are compiled as a whole, whatever their order, and no document is refused where all are good together.
func TestAlone_IsCompileOfWhatIsInForce(t *testing.T) {
	refused, whole := 0, 0
	for seed := range uint64(10 * *recompileRounds) {
		seed += *recompileSeed
		rng := rand.New(rand.NewPCG(seed, 3))
		w := []Workload{{}, {Namespace: "shop", Labels: map[string]string{"app": "web"}}, {Labels: map[string]string{"app": "web"}, Service: "x"}}[rng.IntN(3)]
		var last *Plan
		created := make(map[string]string)
		for step := range 3 {
			sources := someAlone(rng, step, created)
			c := compile(last, sources, w)
			if c.failed() {
				t.Fatalf("with the seed %d there is no plan: %v", seed, c.findings())
			}
			plan, findings := Recompile(last, sources, w)

			slices.SortFunc(sources, func(Source, Source) int { return rng.IntN(3) - 1 })
			other, otherFindings := Recompile(last, sources, w)
			if got, want := summary(otherFindings), summary(findings); got != want {
				t.Errorf("in another order the findings are\n%s\nwant\n%s", got, want)
			}
			other.inForce = plan.inForce // by source
			samePlan(t, other, plan)

			var inForce []Source
			closes := slices.ContainsFunc(c.entries, func(e decoded[entry]) bool { // it has no effect on a host that it would have in a file
				return e.is.from != atHome && slices.ContainsFunc(e.is.hosts, func(host string) bool { return c.plan.isOthers(e.namespace, host) })
			})
			for _, p := range c.alone {
				d := p.current()
				switch {
				case p.verdict == closed:
					closes = true
				case d != nil && p.verdict == lastGood:
					inForce = append(inForce, Source{Name: p.last.file, Data: p.last.Raw()})
				case d != nil:
					inForce = append(inForce, Source{Name: p.file, Data: p.Raw()})
				case p.bare() != nil:
					inForce = append(inForce, Source{Name: p.file, Data: annotations.ReplaceAll(p.Raw(), nil)})
				}
				if p.verdict != asWritten {
					refused++
				}
			}
			want, wrong := Compile(inForce, w)
			if want == nil {
				t.Errorf("what is in force cannot be enforced: %v", wrong)
			} else if !closes {
				want.inForce = plan.inForce // by source
				samePlan(t, plan, want)
			}
			if Check(sources, w).Findings.Err() == nil {
				if whole++; findings.Err() != nil {
					t.Errorf("refused are documents that are good together: %v", findings)
				}
			}
			if t.Failed() {
				t.Fatalf("with the seed %d, step %d, of\n%s", seed, step, texts(sources))
			}
			last = plan
		}
	}
	if refused < *recompileRounds || whole < *recompileRounds {
		t.Errorf("%d documents were refused, and %d sets were good: the test says little", refused, whole)
	}
}

// someAlone returns random documents, each a source that stands alone, of different ages. What was created, and when, is added to created: it does
// not change with the versions of an object.
func someAlone(rng *rand.Rand, step int, created map[string]string) []Source {
	var sources []Source
	names := make(map[string]bool)
	for i := range 1 + rng.IntN(9) {
		d := randomStored(rng, rng.IntN(6) == 0)
		d.created, d.before = 0, 0
		file := strings.ReplaceAll(d.kind+"."+d.namespace+"."+d.name, " ", ".")
		if names[file] {
			continue
		}
		names[file] = true
		if created[file] == "" {
			created[file] = fmt.Sprintf("2026-01-%02dT00:00:%02dZ", 1+step, i)
		}
		text := strings.Replace(d.fields(""), "metadata: {", fmt.Sprintf("metadata: {creationTimestamp: %q, ", created[file]), 1)
		sources = append(sources, Source{Name: file, Alone: true, Data: []byte(text)})
	}
	return sources
}

// summary returns findings without what depends on the time.
func summary(findings Findings) string {
	lines := make([]string, len(findings))
	for i, f := range findings {
		lines[i] = f.String()
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
