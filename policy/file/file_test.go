package file_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/file"
)

type files = map[string]string

// quick is a watcher that waits only as long as the tests need, and does not poll while they run.
func quick(paths ...string) *file.Watcher {
	return &file.Watcher{Paths: paths, Debounce: 20 * time.Millisecond, Poll: time.Hour}
}

func TestWatchChange(t *testing.T) {
	for _, test := range []struct {
		name   string
		setup  func(t *testing.T, dir string) // dir does not exist yet
		watch  string                         // below dir
		before files
		change func(t *testing.T, dir string)
		after  files
	}{
		{
			name:   "write in place",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "2") },
			after:  files{"a.yaml": "2"},
		},
		{
			name:   "new file renamed over the old",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) {
				write(t, dir+"/.a.yaml.tmp123", "2")
				rename(t, dir+"/.a.yaml.tmp123", dir+"/a.yaml")
			},
			after: files{"a.yaml": "2"},
		},
		{
			name:   "vim: old file renamed away, new one written",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) {
				write(t, dir+"/4913", "")
				remove(t, dir+"/4913")
				rename(t, dir+"/a.yaml", dir+"/a.yaml~")
				write(t, dir+"/a.yaml", "2")
				remove(t, dir+"/a.yaml~")
			},
			after: files{"a.yaml": "2"},
		},
		{
			name: "file removed",
			setup: func(t *testing.T, dir string) {
				write(t, dir+"/a.yaml", "1")
				write(t, dir+"/b.yml", "1")
			},
			before: files{"a.yaml": "1", "b.yml": "1"},
			change: func(t *testing.T, dir string) { remove(t, dir+"/a.yaml") },
			after:  files{"b.yml": "1"},
		},
		{
			name:   "last file removed",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { remove(t, dir+"/a.yaml") },
			after:  files{},
		},
		{
			name:   "first file in an empty folder",
			setup:  func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o755)) },
			before: files{},
			change: func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
			after:  files{"a.yaml": "1"},
		},
		{
			name:   "file renamed",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { rename(t, dir+"/a.yaml", dir+"/b.yaml") },
			after:  files{"b.yaml": "1"},
		},
		{
			name:   "new folders with a file",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { write(t, dir+"/x/y/b.yaml", "2") },
			after:  files{"a.yaml": "1", "x/y/b.yaml": "2"},
		},
		{
			name:   "folder with a file moved in",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1"); write(t, dir+".other/b.yaml", "2") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { rename(t, dir+".other", dir+"/x") },
			after:  files{"a.yaml": "1", "x/b.yaml": "2"},
		},
		{
			name:   "folder replaced in the folder",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/x/a.yaml", "1") },
			before: files{"x/a.yaml": "1"},
			change: func(t *testing.T, dir string) { remove(t, dir+"/x"); write(t, dir+"/x/b.yaml", "2") },
			after:  files{"x/b.yaml": "2"},
		},
		{
			name: "target of a chain of links written",
			setup: func(t *testing.T, dir string) {
				write(t, dir+".far/real", "1")
				link(t, "../"+filepath.Base(dir)+".far/real", dir+".near/hop")
				link(t, dir+".near/hop", dir+"/a.yaml")
			},
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { write(t, dir+".far/real", "2") },
			after:  files{"a.yaml": "2"},
		},
		{
			name: "link in the middle of a chain swapped",
			setup: func(t *testing.T, dir string) {
				write(t, dir+".far/real", "1")
				write(t, dir+".far/other", "2")
				link(t, "../"+filepath.Base(dir)+".far/real", dir+".near/hop")
				link(t, dir+".near/hop", dir+"/a.yaml")
			},
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { link(t, dir+".far/other", dir+".near/hop") },
			after:  files{"a.yaml": "2"},
		},
		{
			name:   "watched folder replaced",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1"); write(t, dir+".next/b.yaml", "2") },
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { rename(t, dir, dir+".old"); rename(t, dir+".next", dir) },
			after:  files{"b.yaml": "2"},
		},
		{
			name: "watched folder is a link that is swapped",
			setup: func(t *testing.T, dir string) {
				write(t, dir+".v1/a.yaml", "1")
				write(t, dir+".v2/a.yaml", "2")
				link(t, dir+".v1", dir)
			},
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { link(t, dir+".v2", dir) },
			after:  files{"a.yaml": "2"},
		},
		{
			name: "link above the watched folder swapped",
			setup: func(t *testing.T, dir string) {
				write(t, dir+".v1/conf/a.yaml", "1")
				write(t, dir+".v2/conf/a.yaml", "2")
				link(t, dir+".v1", dir)
			},
			watch:  "conf",
			before: files{"conf/a.yaml": "1"},
			change: func(t *testing.T, dir string) { link(t, dir+".v2", dir) },
			after:  files{"conf/a.yaml": "2"},
		},
		{
			name:   "single file of any name replaced",
			setup:  func(t *testing.T, dir string) { write(t, dir+"/policy", "1"); write(t, dir+"/a.yaml", "beside") },
			watch:  "policy",
			before: files{"policy": "1"},
			change: func(t *testing.T, dir string) { write(t, dir+"/new", "2"); rename(t, dir+"/new", dir+"/policy") },
			after:  files{"policy": "2"},
		},
		{
			name: "mounted volume",
			setup: func(t *testing.T, dir string) {
				mount(t, dir, "..1", files{"a.yaml": "1", "b.yaml": "1", "c.txt": "1"})
			},
			before: files{"a.yaml": "1", "b.yaml": "1"},
			change: func(t *testing.T, dir string) { mount(t, dir, "..2", files{"b.yaml": "2", "c.yaml": "2"}) },
			after:  files{"b.yaml": "2", "c.yaml": "2"},
		},
		{
			name:   "mounted volume with paths of its own",
			setup:  func(t *testing.T, dir string) { mount(t, dir, "..1", files{"x/a.yaml": "1", "b.yaml": "1"}) },
			before: files{"x/a.yaml": "1", "b.yaml": "1"},
			change: func(t *testing.T, dir string) { mount(t, dir, "..2", files{"x/a.yaml": "2", "b.yaml": "2"}) },
			after:  files{"x/a.yaml": "2", "b.yaml": "2"},
		},
		{
			name: "volumes mounted in the folder",
			setup: func(t *testing.T, dir string) {
				mount(t, dir+"/one", "..1", files{"a.yaml": "1"})
				mount(t, dir+"/two", "..1", files{"a.yaml": "1"})
			},
			before: files{"one/a.yaml": "1", "two/a.yaml": "1"},
			change: func(t *testing.T, dir string) { mount(t, dir+"/two", "..2", files{"a.yaml": "2"}) },
			after:  files{"one/a.yaml": "1", "two/a.yaml": "2"},
		},
		{
			name:   "single file of a mounted volume",
			setup:  func(t *testing.T, dir string) { mount(t, dir, "..1", files{"a.yaml": "1", "b.yaml": "1"}) },
			watch:  "a.yaml",
			before: files{"a.yaml": "1"},
			change: func(t *testing.T, dir string) { mount(t, dir, "..2", files{"a.yaml": "2", "b.yaml": "2"}) },
			after:  files{"a.yaml": "2"},
		},
		{
			name: "file beside the links of a mounted volume",
			setup: func(t *testing.T, dir string) {
				mount(t, dir, "..1", files{"a.yaml": "1", "b.yaml": "1"})
				remove(t, dir+"/b.yaml")
				write(t, dir+"/b.yaml", "own")
			},
			before: files{"a.yaml": "1", "b.yaml": "own"},
			change: func(t *testing.T, dir string) { write(t, dir+"/b.yaml", "changed") },
			after:  files{"a.yaml": "1", "b.yaml": "changed"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "mesh.d")
			test.setup(t, dir)
			w := start(t, dir, quick(filepath.Join(dir, test.watch)))
			w.until(test.before)
			test.change(t, dir)
			w.until(test.after)
		})
	}
}

// Each of these must yield nothing: the sentinel after it is all that comes.
func TestWatchIgnores(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(t *testing.T, dir string)
	}{
		{"same content written again", func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") }},
		{"same content renamed into place", func(t *testing.T, dir string) {
			write(t, dir+"/tmp", "1")
			rename(t, dir+"/tmp", dir+"/a.yaml")
		}},
		{"hidden file", func(t *testing.T, dir string) { write(t, dir+"/.b.yaml", "2") }},
		{"hidden folder", func(t *testing.T, dir string) { write(t, dir+"/.git/b.yaml", "2") }},
		{"other extension", func(t *testing.T, dir string) { write(t, dir+"/b.txt", "2") }},
		{"file beside the folder", func(t *testing.T, dir string) { write(t, dir+".yaml", "2") }},
		{"folder named like a file", func(t *testing.T, dir string) { check(t, os.Mkdir(dir+"/b.yaml", 0o755)) }},
		{"permissions", func(t *testing.T, dir string) { check(t, os.Chmod(dir+"/a.yaml", 0o600)) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "mesh.d")
			write(t, dir+"/a.yaml", "1")
			w := start(t, dir, quick(dir))
			w.until(files{"a.yaml": "1"})
			test.change(t, dir)
			write(t, dir+"/sentinel.yaml", "2")
			s := w.next()
			// A stall between creating the sentinel and writing it is no failure.
			if s.files[dir+"/sentinel.yaml"] == "" {
				s = w.next()
			}
			if want := (files{dir + "/a.yaml": "1", dir + "/sentinel.yaml": "2"}); !maps.Equal(s.files, want) {
				t.Errorf("yielded %v, want %v", s, want)
			}
		})
	}
}

// What is read must be what policy.ReadDir reads, in its order, under its names, and so must be what cannot be read.
func TestWatchReadsWhatReadDirReads(t *testing.T) {
	big := strings.Repeat("x", 33<<20)
	for _, test := range []struct {
		name  string
		setup func(t *testing.T)
		paths []string // nil means mesh.d
		want  string   // of the names, or in the error
	}{
		{"names", func(t *testing.T) {
			write(t, "mesh.d/b.yaml", "b")
			write(t, "mesh.d/b/x.yml", "b/x")
			write(t, "mesh.d/b-c/x.yaml", "b-c/x")
			write(t, "mesh.d/a.YAML", "upper case")
			write(t, "mesh.d/README.md", "text")
			write(t, "mesh.d/.hidden.yaml", "hidden")
			write(t, "mesh.d/.git/c.yaml", "hidden")
			write(t, "mesh.d/d.yaml/e.yaml", "folder named like a file")
		}, nil, "mesh.d/a.YAML mesh.d/b/x.yml mesh.d/b-c/x.yaml mesh.d/b.yaml mesh.d/d.yaml/e.yaml"},
		{"links", func(t *testing.T) {
			write(t, "elsewhere/file", "linked")
			write(t, "elsewhere/dir/x.yaml", "in a linked folder")
			link(t, "../elsewhere/file", "mesh.d/link.yaml")
			link(t, "../elsewhere/dir", "mesh.d/.linked")
			link(t, "missing", "mesh.d/dangling.txt")
		}, nil, "mesh.d/link.yaml"},
		{"link to a folder", func(t *testing.T) {
			write(t, "elsewhere/x.yaml", "in a linked folder")
			link(t, "../elsewhere", "mesh.d/linked")
		}, nil, "mesh.d/linked: a link to a folder"},
		{"link to a folder that is named like a document", func(t *testing.T) {
			write(t, "elsewhere/x.yaml", "in a linked folder")
			link(t, "../elsewhere", "mesh.d/linked.yaml")
		}, nil, "mesh.d/linked.yaml: a link to a folder"},
		{"link that leads back", func(t *testing.T) {
			write(t, "mesh.d/a.yaml", "a")
			link(t, "..", "mesh.d/circle")
		}, nil, "mesh.d/circle: a link to a folder"},
		{"paths", func(t *testing.T) {
			write(t, "mesh.d/b/x.yml", "b/x")
			write(t, "single", "any name")
			link(t, "mesh.d", "linked.d")
		}, []string{"./mesh.d", "single", "linked.d", "mesh.d/b/x.yml", "mesh.d/../single"},
			"mesh.d/b/x.yml single linked.d/b/x.yml mesh.d/b/x.yml mesh.d/../single"},
		{"volume", func(t *testing.T) {
			mount(t, "mesh.d", "..1", files{"z.yaml": "z", "y.yaml": "y", "sub/x.yaml": "x"})
		}, []string{"mesh.d/"}, "mesh.d/sub/x.yaml mesh.d/y.yaml mesh.d/z.yaml"},
		{"volume in a folder", func(t *testing.T) {
			mount(t, "mesh.d/volume", "..1", files{"z.yaml": "z"})
			write(t, "mesh.d/a.yaml", "a")
		}, nil, "mesh.d/a.yaml mesh.d/volume/z.yaml"},
		{"link of a key that left the volume", func(t *testing.T) {
			mount(t, "mesh.d", "..1", files{"z.yaml": "z"})
			link(t, "..data/gone.yaml", "mesh.d/gone.yaml")
		}, nil, "mesh.d/z.yaml"},
		{"key without its link yet", func(t *testing.T) {
			mount(t, "mesh.d", "..1", files{"z.yaml": "z"})
			write(t, "mesh.d/..1/new.yaml", "new")
		}, nil, "mesh.d/new.yaml mesh.d/z.yaml"},
		{"file of its own beside a volume", func(t *testing.T) {
			mount(t, "mesh.d", "..1", files{"z.yaml": "z"})
			remove(t, "mesh.d/z.yaml")
			write(t, "mesh.d/z.yaml", "own")
		}, nil, "mesh.d/z.yaml"},
		{"pipe named like a document", func(t *testing.T) {
			write(t, "mesh.d/a.yaml", "a")
			check(t, syscall.Mkfifo("mesh.d/b.yaml", 0o600))
		}, nil, "mesh.d/b.yaml: not a regular file"},
		{"link to nothing", func(t *testing.T) { link(t, "missing", "mesh.d/a.yaml") }, nil, "mesh.d/a.yaml: no such file"},
		{"link to itself", func(t *testing.T) { link(t, "a.yaml", "mesh.d/a.yaml") }, nil, "mesh.d/a.yaml: too many levels"},
		{"version of a volume missing", func(t *testing.T) { link(t, "..1", "mesh.d/..data") }, nil, "mesh.d/..data: no such file"},
		{"folder missing", func(t *testing.T) {}, nil, "mesh.d: no such file"},
		{"no path", func(t *testing.T) {}, []string{""}, "an empty path"},
		{"too many", func(t *testing.T) {
			check(t, os.MkdirAll("mesh.d", 0o755))
			for i := range 10_001 {
				write(t, fmt.Sprintf("mesh.d/%d.txt", i), "")
			}
		}, nil, "mesh.d: more than 10000 files and folders"},
		{"too large", func(t *testing.T) {
			write(t, "mesh.d/a.yaml", big)
			write(t, "mesh.d/b.yaml", big)
		}, nil, "mesh.d/b.yaml: with it the documents are larger than 67108864 bytes"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Chdir(t.TempDir())
			test.setup(t)
			paths := test.paths
			if paths == nil {
				paths = []string{"mesh.d"}
			}
			var want []policy.Source
			var wantErr error
			for _, path := range paths {
				sources, err := policy.ReadDir(path)
				want, wantErr = append(want, sources...), cmp.Or(wantErr, err)
			}
			for got, err := range quick(paths...).Watch(t.Context()) {
				if wantErr != nil || err != nil {
					if !strings.Contains(fmt.Sprint(wantErr), test.want) || !strings.Contains(fmt.Sprint(err), test.want) {
						t.Errorf("Watch yields %v\nReadDir returns %v\nwant both to say %q", err, wantErr, test.want)
					}
					break
				}
				if !slices.EqualFunc(got, want, func(a, b policy.Source) bool {
					return a.Name == b.Name && string(a.Data) == string(b.Data)
				}) {
					t.Errorf("Watch yields %v\nReadDir returns %v", got, want)
				}
				var names []string
				for _, source := range want {
					names = append(names, source.Name)
				}
				if strings.Join(names, " ") != test.want {
					t.Errorf("ReadDir found %q, want %q", names, test.want)
				}
				break
			}
			leftovers(t)
		})
	}
}

// TestWatchAlone: the documents stand alone if the watcher says so, and not otherwise.
func TestWatchAlone(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", "1")
	for _, alone := range []bool{false, true} {
		w := file.New(dir)
		w.Alone = alone
		for sources, err := range w.Watch(t.Context()) {
			check(t, err)
			if len(sources) != 1 || sources[0].Alone != alone {
				t.Errorf("with Alone %v, Watch yields %v", alone, sources)
			}
			break
		}
	}
}

// TestReadDirReadsAPipe: what a shell hands over is read; it cannot be watched.
func TestReadDirReadsAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	check(t, syscall.Mkfifo(path, 0o600))
	wrote := make(chan error, 1)
	go func() { wrote <- os.WriteFile(path, []byte("kind: x"), 0) }()
	sources, err := policy.ReadDir(path)
	check(t, err)
	check(t, <-wrote)
	if len(sources) != 1 || string(sources[0].Data) != "kind: x" || sources[0].Name != path {
		t.Errorf("ReadDir returns %v", sources)
	}
}

func TestWatchError(t *testing.T) {
	const mib = 1 << 20
	for _, test := range []struct {
		name    string
		watcher file.Watcher
		before  func(t *testing.T, dir string) // what makes the error
		want    []string                       // DIR is the folder
		is      error
		remedy  func(t *testing.T, dir string)
	}{
		{
			name:   "folder missing",
			before: func(t *testing.T, dir string) { rename(t, dir, dir+".off") },
			want:   []string{"file: DIR: ", "put it there"},
			is:     fs.ErrNotExist,
			remedy: func(t *testing.T, dir string) { rename(t, dir+".off", dir) },
		},
		{
			name:   "folder and those above missing",
			before: func(t *testing.T, dir string) { remove(t, filepath.Dir(filepath.Dir(dir))) },
			want:   []string{"file: DIR: ", "put it there"},
			is:     fs.ErrNotExist,
			remedy: func(t *testing.T, dir string) { write(t, dir+"/a.yaml", "1") },
		},
		{
			name:   "file in place of the folder above",
			before: func(t *testing.T, dir string) { remove(t, filepath.Dir(dir)); write(t, filepath.Dir(dir), "") },
			want:   []string{"file: DIR: ", "not a directory"},
			is:     syscall.ENOTDIR,
			remedy: func(t *testing.T, dir string) { remove(t, filepath.Dir(dir)); write(t, dir+"/a.yaml", "1") },
		},
		{
			name:   "link to nothing",
			before: func(t *testing.T, dir string) { link(t, "../missing/b", dir+"/b.yaml") },
			want:   []string{"file: DIR/b.yaml: ", "put it there"},
			is:     fs.ErrNotExist,
			remedy: func(t *testing.T, dir string) { remove(t, dir+"/b.yaml") },
		},
		{
			name:   "link to itself",
			before: func(t *testing.T, dir string) { link(t, "b.yaml", dir+"/b.yaml") },
			want:   []string{"file: DIR/b.yaml: ", "remove the link"},
			is:     syscall.ELOOP,
			remedy: func(t *testing.T, dir string) { remove(t, dir+"/b.yaml") },
		},
		{
			name:   "version of a volume missing",
			before: func(t *testing.T, dir string) { link(t, "..1", dir+"/..data") },
			want:   []string{"file: DIR/..data: ", "put it there"},
			is:     fs.ErrNotExist,
			remedy: func(t *testing.T, dir string) { check(t, os.Mkdir(dir+"/..1", 0o755)) },
		},
		{
			name:    "too many files",
			watcher: file.Watcher{MaxFiles: 3},
			before: func(t *testing.T, dir string) {
				write(t, dir+"/x/b.txt", "")
				write(t, dir+"/x/c.txt", "")
			},
			want:   []string{"file: DIR/x: more than 3 files", "raise MaxFiles"},
			remedy: func(t *testing.T, dir string) { remove(t, dir+"/x") },
		},
		{
			name: "file too large",
			before: func(t *testing.T, dir string) {
				write(t, dir+"/b.yaml", "")
				check(t, os.Truncate(dir+"/b.yaml", 65*mib))
			},
			want:   []string{"file: DIR/b.yaml: ", "67108864 bytes", "raise MaxBytes"},
			remedy: func(t *testing.T, dir string) { remove(t, dir+"/b.yaml") },
		},
		{
			name:    "files too large together",
			watcher: file.Watcher{MaxBytes: 3},
			before:  func(t *testing.T, dir string) { write(t, dir+"/b.yaml", "22"); write(t, dir+"/c.yaml", "3") },
			want:    []string{"file: DIR/c.yaml: with it", "3 bytes", "raise MaxBytes"},
			remedy:  func(t *testing.T, dir string) { remove(t, dir+"/b.yaml"); remove(t, dir+"/c.yaml") },
		},
	} {
		expect := func(t *testing.T, w *watch, dir string) {
			t.Helper()
			words := make([]string, len(test.want))
			for i, word := range test.want {
				words[i] = strings.Replace(word, "DIR", dir, 1)
			}
			if err := w.untilError(words...); test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v is not %v", err, test.is)
			}
		}
		place := func(t *testing.T) (string, *file.Watcher) {
			dir := filepath.Join(t.TempDir(), "etc", "app", "mesh.d")
			write(t, dir+"/a.yaml", "1")
			w := quick(dir)
			w.MaxFiles, w.MaxBytes = test.watcher.MaxFiles, test.watcher.MaxBytes
			return dir, w
		}
		t.Run(test.name+" at first", func(t *testing.T) {
			dir, watcher := place(t)
			test.before(t, dir)
			w := start(t, dir, watcher)
			expect(t, w, dir)
			test.remedy(t, dir)
			w.until(files{"a.yaml": "1"})
		})
		t.Run(test.name+" later", func(t *testing.T) {
			dir, watcher := place(t)
			w := start(t, dir, watcher)
			w.until(files{"a.yaml": "1"})
			test.before(t, dir)
			expect(t, w, dir)
			test.remedy(t, dir)
			w.until(files{"a.yaml": "1"}) // as before, and yet yielded: the error is over
		})
	}
}

func TestWatchNeitherFileNorFolder(t *testing.T) {
	for _, err := range quick(os.DevNull).Watch(t.Context()) {
		if err == nil || !strings.Contains(err.Error(), "file: "+os.DevNull+": neither") {
			t.Errorf("Watch yields %v", err)
		}
		break
	}
}

func TestWatchRefusesFields(t *testing.T) {
	for _, test := range []struct {
		name string
		w    file.Watcher
	}{
		{"no paths", file.Watcher{}},
		{"empty path", file.Watcher{Paths: []string{""}}},
		{"negative Debounce", file.Watcher{Paths: []string{"."}, Debounce: -1}},
		{"negative Poll", file.Watcher{Paths: []string{"."}, Poll: -1}},
		{"negative MaxFiles", file.Watcher{Paths: []string{"."}, MaxFiles: -1}},
		{"negative MaxBytes", file.Watcher{Paths: []string{"."}, MaxBytes: -1}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var errs []error
			for sources, err := range test.w.Watch(t.Context()) {
				if sources != nil {
					t.Error("sources")
				}
				errs = append(errs, err)
			}
			if len(errs) != 1 || errs[0] == nil {
				t.Errorf("Watch yields %v, want one error, and the end", errs)
			}
		})
	}
}

func TestWatchEnds(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", "1")
	t.Run("ctx before", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for range file.New(dir).Watch(ctx) {
			t.Error("yielded after the end")
		}
	})
	t.Run("ctx in the loop", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := 0
		for range file.New(dir).Watch(ctx) {
			n++
			cancel()
		}
		if n != 1 {
			t.Errorf("yielded %d times, want 1", n)
		}
	})
	t.Run("ctx from elsewhere", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range file.New(dir).Watch(ctx) {
			go cancel()
		}
	})
	t.Run("break", func(t *testing.T) {
		for range file.New(dir).Watch(t.Context()) {
			break
		}
	})
	t.Run("panic", func(t *testing.T) {
		defer func() {
			if recover() != "as it was" {
				t.Error("the panic did not pass through")
			}
		}()
		for range file.New(dir).Watch(t.Context()) {
			panic("as it was")
		}
	})
	t.Run("two at once", func(t *testing.T) {
		w := quick(dir)
		one, two := start(t, dir, w), start(t, dir, w)
		one.until(files{"a.yaml": "1"})
		two.until(files{"a.yaml": "1"})
		write(t, dir+"/a.yaml", "2")
		one.until(files{"a.yaml": "2"})
		two.until(files{"a.yaml": "2"})
	})
	leftovers(t)
}

// A file written in two pieces, without a pause as long as Debounce, is never seen half.
func TestWatchPartialWrite(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/a.yaml", "old")
	w := start(t, dir, &file.Watcher{Paths: []string{dir}, Debounce: time.Second, Poll: time.Hour})
	w.until(files{"a.yaml": "old"})
	f, err := os.Create(dir + "/a.yaml")
	check(t, err)
	for _, piece := range []string{"one, ", "two, ", "three"} {
		_, err = f.WriteString(piece)
		check(t, err)
	}
	check(t, f.Close())
	if s := w.next(); s.files[dir+"/a.yaml"] != "one, two, three" {
		t.Errorf("yielded %v", s)
	}
}

// Every set yielded while sets are swapped at random is one that existed. Each file of a set holds its generation.
func TestWatchTorture(t *testing.T) {
	for _, test := range []struct {
		name string
		swap func(t *testing.T, dir string, generation int, set files)
	}{
		{"mounted volume", func(t *testing.T, dir string, generation int, set files) {
			mount(t, dir, "..v"+strconv.Itoa(generation), set)
		}},
		{"linked folder", func(t *testing.T, dir string, generation int, set files) {
			next := dir + ".v" + strconv.Itoa(generation)
			for name, data := range set {
				write(t, filepath.Join(next, name), data)
			}
			old, _ := os.Readlink(dir)
			link(t, next, dir)
			if old != "" {
				remove(t, old)
			}
		}},
		{"renamed folder", func(t *testing.T, dir string, generation int, set files) {
			next, old := dir+".v"+strconv.Itoa(generation), dir+".old"
			for name, data := range set {
				write(t, filepath.Join(next, name), data)
			}
			if generation > 0 {
				rename(t, dir, old)
			}
			rename(t, next, dir)
			remove(t, old)
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			dir := filepath.Join(t.TempDir(), "mesh.d")
			var history []files
			swap := func() {
				generation := len(history)
				set := make(files)
				for i := range 1 + random.IntN(8) {
					set["f"+strconv.Itoa(i)+".yaml"] = strconv.Itoa(generation)
				}
				test.swap(t, dir, generation, set)
				history = append(history, set)
			}
			swap()
			w := start(t, dir, &file.Watcher{Paths: []string{dir}, Debounce: time.Millisecond, Poll: time.Hour})
			for len(history) < 200 {
				// What was yielded amid the swaps waits in w.sets, so that history needs no lock.
				for range 1 + random.IntN(12) {
					swap()
				}
				for {
					s := w.next()
					if s.err != nil {
						if !errors.Is(s.err, fs.ErrNotExist) && !strings.Contains(s.err.Error(), "replaced faster") {
							t.Fatal(s.err)
						}
						continue
					}
					generation := -1
					for _, data := range s.files {
						generation, _ = strconv.Atoi(data)
					}
					if generation < 0 || generation >= len(history) {
						t.Fatalf("yielded %v, which never was", s)
					}
					want := make(files)
					for name, data := range history[generation] {
						want[filepath.Join(dir, name)] = data
					}
					if !maps.Equal(s.files, want) {
						t.Fatalf("yielded %v, a mix: generation %d was %v", s, generation, want)
					}
					if generation == len(history)-1 {
						break
					}
				}
			}
		})
	}
	t.Cleanup(func() { leftovers(t) })
}
