package imports

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestArchitectureNamesFolders: the table "Where things are" has each folder with Go files, and no folder that does not exist. What is below
// examples and bench goes with these.
func TestArchitectureNamesFolders(t *testing.T) {
	const root = "../.."
	text, err := os.ReadFile(root + "/ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n## Where things are\n")
	table, _, _ = strings.Cut(table, "\n### ")
	rows := 0
	for line := range strings.Lines(table) {
		cells := strings.Split(line, "|")
		if len(cells) < 3 {
			continue
		}
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(cells[1], -1) {
			if rows++; name[1] == "mesh" { // the name of the root's package
				continue
			}
			if info, err := os.Stat(filepath.Join(root, name[1])); err != nil || !info.IsDir() {
				t.Errorf("there is no folder %s", name[1])
			}
		}
	}
	if rows < 80 {
		t.Errorf("the table names %d folders, want at least 80", rows)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		folder := filepath.ToSlash(strings.TrimPrefix(path, root+string(filepath.Separator)))
		switch name := d.Name(); {
		case d.IsDir() && path != root && (name == "testdata" || strings.HasPrefix(name, ".") || folder == "examples" || folder == "bench"):
			return filepath.SkipDir
		case !d.IsDir() || path == root:
			return nil
		}
		if files, _ := filepath.Glob(filepath.Join(path, "*.go")); len(files) > 0 && !strings.Contains(table, "`"+folder+"`") {
			t.Errorf("ARCHITECTURE.md does not say what %s holds", folder)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
