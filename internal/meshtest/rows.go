package meshtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// RowsNameTests checks that the rows of the tables below a heading of a document each name, in their last cell, tests that are in files of
// the patterns. It returns the number of rows.
func RowsNameTests(t testing.TB, document, heading string, patterns ...string) (rows int) {
	t.Helper()
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), heading)
	section, _, _ = strings.Cut(section, "\n## ")
	var tests strings.Builder
	for _, pattern := range patterns {
		paths, err := filepath.Glob(pattern)
		if err != nil || len(paths) == 0 {
			t.Fatalf("%s: no files (%v)", pattern, err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			tests.Write(data)
		}
	}
	for line := range strings.Lines(section) {
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| Situation") {
			continue
		}
		rows++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for name := range strings.SplitSeq(cells[len(cells)-1], ",") {
			if name = strings.Trim(name, " `"); !strings.Contains(tests.String(), "func "+name+"(t *testing.T)") {
				t.Errorf("the row %q names the test %q, which is not there", cells[0], name)
			}
		}
	}
	return rows
}
