package policy_test

import (
	"strings"
	"testing"

	"github.com/nosidecar/mesh/policy"
)

// TestCompile_BoundsFindings: what is beyond the bound is told by its number, and fails as well.
func TestCompile_BoundsFindings(t *testing.T) {
	const documents = 3000
	bad := policy.Source{Name: "bad.yaml", Data: []byte(strings.Repeat("---\nkid: x\n", documents))}
	good := policy.Source{Name: "good.yaml", Data: []byte("apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n")}
	report := policy.Check([]policy.Source{bad, good}, policy.Workload{})
	if report.Documents != documents+1 {
		t.Errorf("%d documents, want %d", report.Documents, documents+1)
	}
	if len(report.Findings) != 1001 {
		t.Fatalf("%d findings, want 1001", len(report.Findings))
	}
	last := report.Findings[1000]
	if last.File != "bad.yaml" || last.Severity != policy.Error || last.Message != "and 2000 more findings in this file" {
		t.Errorf("the last finding is %q", last)
	}
}

// TestCompile_ListThatContainsItself: it is a mistake, not the end of the process.
func TestCompile_ListThatContainsItself(t *testing.T) {
	list := policy.Source{Name: "list.yaml", Data: []byte("apiVersion: v1\nkind: List\nitems: &a\n- {apiVersion: v1, kind: List, items: *a}\n")}
	plan, findings := policy.Compile([]policy.Source{list}, policy.Workload{})
	if plan != nil || findings.Err() == nil || !strings.Contains(findings.Error(), "nested more than 64 levels deep") {
		t.Errorf("compiled to %v with findings %v", plan, findings)
	}
}

// TestCompile_SourceWithoutDocuments: a file that was truncated beside others is warned of.
func TestCompile_SourceWithoutDocuments(t *testing.T) {
	good := policy.Source{Name: "good.yaml", Data: []byte("apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n")}
	for _, text := range []string{"", "# kind: Service\n", "---\n"} {
		report := policy.Check([]policy.Source{good, {Name: "blank.yaml", Data: []byte(text)}}, policy.Workload{})
		if got := report.Findings.Error(); got != "blank.yaml:1: warning: there is no document in it: remove it if that is meant" {
			t.Errorf("%q: findings %q", text, got)
		}
	}
}
