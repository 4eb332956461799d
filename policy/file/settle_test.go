package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nosidecar/mesh/policy/internal/folder"
)

// TestHalfWritten: what may be the beginning of a file is not taken for all of it while it is being written, however slowly.
func TestHalfWritten(t *testing.T) {
	const one, two = "kind: One\n", "kind: Two\n"
	for _, test := range []struct {
		name   string
		before string   // "" means that there is no file
		pieces []string // what it has 50 ms before the poll, and then every 500 ms; "" means that there is no file
		want   string   // when it is yielded
	}{
		{"longer", one, []string{one + "---\n" + two}, "30.1s"},
		{"shorter", one + "---\n" + two, []string{one}, "31.1s"},
		{"shorter, and then longer", one + "---\n" + two, []string{one, one + "---\n", one + "---\n" + one + two}, "32.1s"},
		{"without a line break", one, []string{one + "---", one + "---\n" + two}, "32.1s"},
		{"as it was", "kind: One", []string{"kind: Two"}, "30.1s"},
		{"new", "", []string{one}, "30.1s"},
		{"new, without a line break", "", []string{"kind: O", one}, "32.1s"},
		{"gone", one, []string{""}, "31.1s"},
		{"gone, and then there", one, []string{"", two}, "32.1s"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			put := func(name, data string) {
				path := filepath.Join(dir, name)
				if data == "" {
					os.Remove(path)
				} else if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			put("a.yaml", test.before)
			put("b.yaml", one)
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				var got []string
				ctx, cancel := context.WithCancel(t.Context())
				w := &Watcher{Paths: []string{dir}, Poll: 30 * second, notify: func() (*fsnotify.Watcher, error) { return nil, errors.ErrUnsupported }}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for sources, err := range w.Watch(ctx) {
						if err == nil {
							text := ""
							for _, source := range sources[:len(sources)-1] {
								text += string(source.Data)
							}
							got = append(got, fmt.Sprintf("%v %s", time.Since(begin), text))
						}
					}
				}()
				time.Sleep(29*second + 950*millisecond)
				last := ""
				for _, last = range test.pieces {
					put("a.yaml", last)
					time.Sleep(500 * millisecond)
				}
				time.Sleep(60 * second)
				cancel()
				<-ended
				want := []string{"0s " + test.before, test.want + " " + last}
				if fmt.Sprint(got) != fmt.Sprint(want) {
					t.Errorf("yielded %q, want %q", got, want)
				}
			})
		})
	}
}

// TestHalfWrittenAtStart: a file without a line break at its end that was written a moment ago may be incomplete, unless it is of a mounted volume.
func TestHalfWrittenAtStart(t *testing.T) {
	for _, test := range []struct {
		name, file, text string
		age              time.Duration
		want             string
	}{
		{"beginning", "a.yaml", "kind: O", 0, "2s kind: One\n"},
		{"whole", "a.yaml", "kind: O\n", 0, "0s kind: O\n"},
		{"old", "a.yaml", "kind: O", second, "0s kind: O"},
		{"clock of another machine", "a.yaml", "kind: O", -second, "0s kind: O"},
		{"mounted", "..v1/a.yaml", "kind: O", 0, "0s kind: O"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, test.file)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(test.text), 0o644)); err != nil {
				t.Fatal(err)
			}
			if filepath.Dir(path) != dir {
				if err := errors.Join(os.Symlink(filepath.Base(filepath.Dir(path)), filepath.Join(dir, "..data")), os.Symlink("..data/a.yaml", filepath.Join(dir, "a.yaml"))); err != nil {
					t.Fatal(err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				if err := os.Chtimes(path, begin.Add(-test.age), begin.Add(-test.age)); err != nil {
					t.Fatal(err)
				}
				go func() {
					time.Sleep(500 * millisecond)
					if err := os.WriteFile(path, []byte("kind: One\n"), 0o644); err != nil {
						t.Error(err)
					}
				}()
				w := &Watcher{Paths: []string{dir}, notify: func() (*fsnotify.Watcher, error) { return nil, errors.ErrUnsupported }}
				for sources, err := range w.Watch(t.Context()) {
					if err != nil || len(sources) != 1 {
						t.Fatal(sources, err)
					}
					if got := fmt.Sprintf("%v %s", time.Since(begin), sources[0].Data); got != test.want {
						t.Errorf("the first set is %q, want %q", got, test.want)
					}
					break
				}
				time.Sleep(second) // until the file was written
			})
		})
	}
}

// TestHalfWrittenSettles: how long what may be half-written is waited for.
func TestHalfWrittenSettles(t *testing.T) {
	const dir = "/mesh.d"
	for _, test := range []struct {
		name   string
		events int // every 900 ms
		want   time.Duration
	}{
		{"nothing happens", 0, second},
		{"three more writes", 3, 3*900*millisecond + second},
		{"writing that never stops", 100, 10 * second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				events := make(chan fsnotify.Event)
				s := session{debounce: 100 * millisecond, notifier: notifier{
					events: events, interests: map[string]*folder.Interest{dir: {Documents: true}},
					open: func() (*fsnotify.Watcher, error) { return nil, errors.ErrUnsupported },
				}}
				ctx, cancel := context.WithCancel(t.Context())
				written := make(chan struct{})
				go func() {
					defer close(written)
					for range test.events {
						time.Sleep(900 * millisecond)
						select {
						case events <- fsnotify.Event{Name: dir + "/a.yaml", Op: fsnotify.Write}:
						case <-ctx.Done():
							return
						}
					}
				}()
				now, begin := s.look(), time.Now()
				s.whole(ctx, now)
				if took := time.Since(begin); took != test.want {
					t.Errorf("waited for %v, want %v", took, test.want)
				}
				cancel()
				if s.whole(ctx, now); time.Since(begin) != test.want {
					t.Error("it waits after the end of ctx")
				}
				<-written
			})
		})
	}
}
