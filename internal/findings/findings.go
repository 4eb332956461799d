// Package findings shortens lists of findings for people. The folders of a cluster have many documents that are not about the mesh, and one line
// for each of them would hide the others.
package findings

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/policy"
)

// most is the number of documents of one kind that are named when they are skipped.
const most = 3

// Brief returns the findings, in their order. Of more than three documents of one kind that are skipped it keeps the first, which counts the others.
func Brief(all policy.Findings) policy.Findings {
	type kind struct{ name, message string }
	count := make(map[kind]int)
	for _, f := range all {
		if skipped(f) {
			count[kind{f.Kind, f.Message}]++
		}
	}
	if !slices.ContainsFunc(all, func(f policy.Finding) bool { return count[kind{f.Kind, f.Message}] > most }) {
		return all
	}
	var brief policy.Findings
	for _, f := range all {
		of := kind{f.Kind, f.Message}
		switch n := count[of]; {
		case !skipped(f) || n > 0 && n <= most:
		case n == 0: // it is counted already
			continue
		default:
			f.Message = fmt.Sprintf("%s, and so are %d others", f.Message, n-1)
			count[of] = 0
		}
		brief = append(brief, f)
	}
	return brief
}

// ByWeight returns what Brief does, with errors first and documents that are skipped last, so that a reader who gets only the first ones gets what
// matters.
func ByWeight(all policy.Findings) policy.Findings {
	weight := func(f policy.Finding) int {
		switch {
		case f.Severity == policy.Error:
			return 0
		case skipped(f):
			return 2
		}
		return 1
	}
	sorted := slices.Clone(Brief(all))
	slices.SortStableFunc(sorted, func(a, b policy.Finding) int { return cmp.Compare(weight(a), weight(b)) })
	return sorted
}

// skipped reports whether a finding says that a document of a kind without a meaning in-process is skipped.
func skipped(f policy.Finding) bool {
	return strings.EqualFold(f.Field, "kind") && f.Severity == policy.Warning
}
