package file_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/file"
)

// set is what was yielded: content by name, and err if that was an error.
type set struct {
	files map[string]string
	err   error
}

func (s set) String() string {
	if s.err != nil {
		return s.err.Error()
	}
	return fmt.Sprint(s.files)
}

// watch runs w until the test ends.
type watch struct {
	t    *testing.T
	dir  string
	sets <-chan set
	last string
}

func start(t *testing.T, dir string, w *file.Watcher) *watch {
	t.Helper()
	return startIn(t, t.Context(), dir, w)
}

// startIn is start for the context of a mesh.
func startIn(t *testing.T, ctx context.Context, dir string, w *file.Watcher) *watch {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	sets := make(chan set)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for sources, err := range w.Watch(ctx) {
			select {
			case sets <- collect(sources, err):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return &watch{t: t, dir: dir, sets: sets}
}

func collect(sources []policy.Source, err error) set {
	if err != nil {
		if sources != nil {
			err = errors.New("sources together with an error")
		}
		return set{err: err}
	}
	files := make(map[string]string)
	for _, source := range sources {
		files[source.Name] = string(source.Data)
	}
	if len(files) != len(sources) {
		return set{err: errors.New("two sources of one name")}
	}
	return set{files: files}
}

// next returns what is yielded next, which must not be what was yielded last.
func (w *watch) next() set {
	w.t.Helper()
	s := await.Receive(w.t, "something is yielded after "+w.last, w.sets)
	if s.String() == w.last {
		w.t.Fatalf("yielded twice: %v", s)
	}
	w.last = s.String()
	return s
}

// until waits for a set with these files, of names below the watched folder.
func (w *watch) until(want map[string]string) {
	w.t.Helper()
	full := make(map[string]string)
	for name, data := range want {
		full[filepath.Join(w.dir, name)] = data
	}
	for s := w.next(); s.err != nil || !maps.Equal(s.files, full); s = w.next() {
	}
}

// untilError waits for an error with these words.
func (w *watch) untilError(words ...string) error {
	w.t.Helper()
search:
	for {
		s := w.next()
		if s.err == nil {
			continue
		}
		for _, word := range words {
			if !strings.Contains(s.err.Error(), word) {
				continue search
			}
		}
		return s.err
	}
}

// leftovers waits until no goroutine of the watcher or of fsnotify is left.
func leftovers(t *testing.T) {
	t.Helper()
	await.True(t, "the watcher ends", func() bool { return leak.Running("fsnotify.", "file.(*") == "" })
}

func write(t *testing.T, path, data string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, []byte(data), 0o644))
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	check(t, os.Rename(from, to))
}

// link makes path a link to target, in one step if it is one already.
func link(t *testing.T, target, path string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.Symlink(target, path+".new"))
	rename(t, path+".new", path)
}

func remove(t *testing.T, path string) {
	t.Helper()
	check(t, os.RemoveAll(path))
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mount does what the kubelet does to publish a version of a volume: a new folder, ..data swapped to it, links for what
// is new, the stale links and the old folder removed.
func mount(t *testing.T, dir, version string, files map[string]string) {
	t.Helper()
	check(t, os.MkdirAll(filepath.Join(dir, version), 0o755))
	for name, data := range files {
		write(t, filepath.Join(dir, version, name), data)
	}
	data := filepath.Join(dir, "..data")
	old, _ := os.Readlink(data)
	check(t, os.Symlink(version, data+"_tmp"))
	rename(t, data+"_tmp", data)

	visible := make(map[string]bool)
	for name := range files {
		top, _, _ := strings.Cut(name, "/")
		visible[top] = true
		if _, err := os.Lstat(filepath.Join(dir, top)); err != nil {
			check(t, os.Symlink(filepath.Join("..data", top), filepath.Join(dir, top)))
		}
	}
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !visible[e.Name()] {
			check(t, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	if old != "" {
		remove(t, filepath.Join(dir, old))
	}
}
