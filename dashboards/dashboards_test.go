package dashboards_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/dashboards"
)

var update = flag.Bool("update", false, "write mesh.json")

// mesh.json is what is imported, so it must be what is made.
func TestCommittedDashboard(t *testing.T) {
	made, err := dashboards.JSON()
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("mesh.json", made, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	committed, err := os.ReadFile("mesh.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made, committed) {
		t.Error("mesh.json is not what the package makes: go test . -update")
	}
	var read struct {
		UID    string
		Panels []struct {
			Type, Title string
			GridPos     struct{ H, W, X, Y int }
			Targets     []struct{ Expr, RefID string }
			Panels      []json.RawMessage
		}
	}
	if err := json.Unmarshal(committed, &read); err != nil {
		t.Fatal(err)
	}
	titles := map[string]bool{}
	for _, p := range read.Panels {
		if titles[p.Title] {
			t.Errorf("two panels are called %q", p.Title)
		}
		titles[p.Title] = true
		if p.Type != "row" && len(p.Targets) == 0 || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W == 0 {
			t.Errorf("%s %q: %d queries, at %+v", p.Type, p.Title, len(p.Targets), p.GridPos)
		}
		for _, target := range p.Targets {
			if n := strings.Count(target.Expr, "("); n != strings.Count(target.Expr, ")") || target.Expr == "" {
				t.Errorf("%q asks for %s", p.Title, target.Expr)
			}
		}
	}
	if read.UID == "" || len(titles) < 30 {
		t.Errorf("%d panels, uid %q", len(titles), read.UID)
	}
}

// The rules are valid, and fire when they should and only then, as alerts_test.yaml has it.
func TestAlertRules(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Fatalf("%v: it is in the Debian package prometheus, which make test installs", err)
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		if out, err := exec.Command("promtool", args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
