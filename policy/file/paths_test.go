package file_test

import (
	"os"
	"testing"

	"github.com/nosidecar/mesh/internal/empties"
	"github.com/nosidecar/mesh/policy/file"
)

const (
	one = "kind: One\n"
	two = "kind: Two\n"
)

// startFor is start for a mesh that refuses sources without documents.
func startFor(t *testing.T, dir string, w *file.Watcher) *watch {
	t.Helper()
	return startIn(t, empties.Refuse(t.Context()), dir, w)
}

// TestWatchPathThatTurnsEmpty: the documents of one path do not hide that another one has none any more.
func TestWatchPathThatTurnsEmpty(t *testing.T) {
	for _, test := range []struct {
		name string
		turn func(t *testing.T, dir string)
		back func(t *testing.T, dir string)
	}{
		{"files removed", func(t *testing.T, dir string) { remove(t, dir+"/b/b.yaml") }, func(t *testing.T, dir string) { write(t, dir+"/b/b.yaml", two) }},
		{"commented out", func(t *testing.T, dir string) { write(t, dir+"/b/b.yaml", "# kind: Two\n") }, func(t *testing.T, dir string) { write(t, dir+"/b/b.yaml", two) }},
		{"another folder", func(t *testing.T, dir string) { rename(t, dir+"/b", dir+"/old"); check(t, os.Mkdir(dir+"/b", 0o755)) },
			func(t *testing.T, dir string) { remove(t, dir+"/b"); rename(t, dir+"/old", dir+"/b") }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir+"/a/a.yaml", one)
			write(t, dir+"/b/b.yaml", two)
			w := startFor(t, dir, quick(dir+"/a", dir+"/b"))
			w.until(files{"a/a.yaml": one, "b/b.yaml": two})
			test.turn(t, dir)
			w.untilError("there is no document in "+dir+"/b", "WithEmptyPolicy")
			test.back(t, dir)
			w.until(files{"a/a.yaml": one, "b/b.yaml": two})
		})
	}
}

// TestWatchPathThatIsEmpty at the beginning.
func TestWatchPathThatIsEmpty(t *testing.T) {
	for _, alone := range []bool{false, true} {
		dir := t.TempDir()
		write(t, dir+"/a/a.yaml", one)
		check(t, os.Mkdir(dir+"/b", 0o755))
		watcher := quick(dir+"/a", dir+"/b")
		watcher.Alone = alone
		w := startFor(t, dir, watcher)
		w.untilError("there is no document in " + dir + "/b")
		write(t, dir+"/b/b.yaml", two)
		w.until(files{"a/a.yaml": one, "b/b.yaml": two})

		w = start(t, dir, quick(dir+"/a", dir+"/c")) // for whoever does not refuse it
		check(t, os.Mkdir(dir+"/c", 0o755))
		w.until(files{"a/a.yaml": one})
	}
}

// TestWatchPathThatTurnsEmptyAlone: where documents stand alone, those of the other paths go on.
func TestWatchPathThatTurnsEmptyAlone(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a/a.yaml", one)
	write(t, dir+"/b/b.yaml", two)
	watcher := quick(dir+"/a", dir+"/b")
	watcher.Alone = true
	w := startFor(t, dir, watcher)
	w.until(files{"a/a.yaml": one, "b/b.yaml": two})
	remove(t, dir+"/b/b.yaml")
	w.untilError("there is no document in " + dir + "/b")
	write(t, dir+"/a/a.yaml", one+"more: true\n")
	w.until(files{"a/a.yaml": one + "more: true\n", "b/b.yaml": two})
	w.untilError("there is no document in " + dir + "/b")
	write(t, dir+"/b/b.yaml", one)
	w.until(files{"a/a.yaml": one + "more: true\n", "b/b.yaml": one})
}
