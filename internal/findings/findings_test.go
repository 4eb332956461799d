package findings_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/findings"
	"github.com/nosidecar/mesh/policy"
)

// folder is what a check finds in some documents: the kinds of those that are skipped, and a mistake where there is a colon.
func folder(kinds string) policy.Findings {
	var text strings.Builder
	for i, kind := range strings.Fields(kinds) {
		switch kind {
		case "error:":
			fmt.Fprintf(&text, "apiVersion: networking.istio.io/v1\nkind: Sidecar\nmetadata: {name: a%d}\nspec: {}\n---\n", i)
		case "warning:":
			fmt.Fprintf(&text, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a%d}\n"+
				"spec: {host: a%d, trafficPolicy: {outlierDetection: {consecutiveErrors: 5}}}\n---\n", i, i)
		default:
			fmt.Fprintf(&text, "apiVersion: apps/v1\nkind: %s\nmetadata: {name: a%d}\n---\n", kind, i)
		}
	}
	return policy.Check([]policy.Source{{Name: "a.yaml", Data: []byte(text.String())}}, policy.Workload{}).Findings
}

// TestBrief: many documents of a kind that is skipped are one line, and nothing else is changed.
func TestBrief(t *testing.T) {
	for _, tt := range []struct {
		kinds         string
		brief, sorted string // the names of the documents; +N if the line counts N others
	}{
		{"", "", ""},
		{"Deployment Deployment Deployment StatefulSet", "a0 a1 a2 a3", "a0 a1 a2 a3"},
		{"Deployment warning: Deployment StatefulSet Deployment error: Deployment StatefulSet", "a0+3 a1 a3 a5 a7", "a5 a1 a0+3 a3 a7"},
		{"warning: warning: warning: warning:", "a0 a1 a2 a3", "a0 a1 a2 a3"},
		{"error: Deployment Deployment Deployment Deployment Deployment", "a0 a1+4", "a0 a1+4"},
	} {
		all := folder(tt.kinds)
		before := all.Error()
		if got := names(findings.Brief(all)); got != tt.brief {
			t.Errorf("Brief(%s) = %s, want %s", tt.kinds, got, tt.brief)
		}
		if got := names(findings.ByWeight(all)); got != tt.sorted {
			t.Errorf("ByWeight(%s) = %s, want %s", tt.kinds, got, tt.sorted)
		}
		if all.Error() != before {
			t.Errorf("%s: the findings were changed", tt.kinds)
		}
	}
}

func names(list policy.Findings) string {
	var out []string
	for _, f := range list {
		name := f.Name
		var others int
		if _, counted, ok := strings.Cut(f.Message, ", and so are "); ok {
			fmt.Sscanf(counted, "%d others", &others)
			name += fmt.Sprintf("+%d", others)
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}
