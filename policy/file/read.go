package file

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/nosidecar/mesh/policy"
)

// dataLink is the link that Kubernetes swaps when it updates a mounted volume. The files beside it are links through it.
const dataLink = "..data"

// state is the outcome of one look: documents, or why there are none.
type state struct {
	sources []policy.Source
	err     error
	mark    string // equal for equal outcomes, never empty
}

func good(sources []policy.Source) state {
	hash := sha256.New()
	var size []byte
	for _, source := range sources {
		// The lengths keep one name or file from passing for a piece of another.
		size = binary.BigEndian.AppendUint64(size[:0], uint64(len(source.Name)))
		size = binary.BigEndian.AppendUint64(size, uint64(len(source.Data)))
		hash.Write(size)
		io.WriteString(hash, source.Name)
		hash.Write(source.Data)
	}
	return state{sources: sources, mark: string(hash.Sum(nil))}
}

func bad(err error) state {
	return state{err: err, mark: err.Error()}
}

// reader finds and reads the documents below some roots.
type reader struct {
	roots    []place
	maxFiles int
	maxBytes int64
}

// place is a file or folder: its name for people and its absolute path, with no link in it once it is resolved.
type place struct {
	name, path string
}

// layout is where the documents are, and where a change of that would show.
type layout struct {
	documents []place
	folders   []folder
	interests map[string]*interest // by resolved path of a folder

	left, limit int // entries that may still be listed, and all that may be
}

// folder is one that was listed. info tells it from another at the same path.
type folder struct {
	path string
	info fs.FileInfo
}

// interest is what matters of a folder: its documents, or only some names in it, those of links and of missing things.
type interest struct {
	documents bool
	names     map[string]bool
}

// same reports whether the documents are still where other says.
func (l *layout) same(other *layout) bool {
	return slices.Equal(l.documents, other.documents) &&
		slices.EqualFunc(l.folders, other.folders, func(a, b folder) bool {
			return a.path == b.path && os.SameFile(a.info, b.info)
		})
}

// locate finds the documents. With an error, the layout is what could be found, for what would remedy the error.
func (r *reader) locate() (*layout, error) {
	l := &layout{interests: make(map[string]*interest), left: r.maxFiles, limit: r.maxFiles}
	for _, root := range r.roots {
		path, err := l.resolve(root.path)
		if err != nil {
			return l, unreadable(root.name, err)
		}
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return l, unreadable(root.name, err)
		case info.IsDir():
			if err := l.walk(root.name, path); err != nil {
				return l, err
			}
		case info.Mode().IsRegular():
			l.documents = append(l.documents, place{name: root.name, path: path})
		default:
			return l, fmt.Errorf("file: %s: neither a folder nor a regular file; name one that is", root.name)
		}
	}
	return l, nil
}

// walk adds the documents of the folder at path, in the order of [policy.ReadDir].
func (l *layout) walk(name, path string) error {
	entries, err := l.list(name, path)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e entry) bool { return e.name == dataLink && e.link() }) {
		if entries, err = l.mounted(name, path, entries); err != nil {
			return err
		}
	}
	for _, e := range entries {
		name := filepath.Join(name, e.name)
		switch {
		case hidden(e.name):
		case e.mode.IsDir():
			if err := l.walk(name, e.path); err != nil {
				return err
			}
		case document(e.name):
			if e.link() {
				if e.path, err = l.resolve(e.path); err != nil {
					return unreadable(name, err)
				}
			}
			info, err := os.Stat(e.path)
			if err != nil {
				return unreadable(name, err)
			}
			if info.Mode().IsRegular() {
				l.documents = append(l.documents, place{name: name, path: e.path})
			}
		}
	}
	return nil
}

// mounted replaces the entries of the volume mounted at path that are links through ..data by what ..data holds. The
// links come and go one by one around a swap, so they do not tell what is in the set.
func (l *layout) mounted(name, path string, entries []entry) ([]entry, error) {
	var kept []entry
	for _, e := range entries {
		if e.link() {
			target, err := os.Readlink(e.path)
			if err != nil {
				return nil, unreadable(filepath.Join(name, e.name), err)
			}
			if strings.HasPrefix(filepath.ToSlash(filepath.Clean(target)), dataLink+"/") {
				continue
			}
		}
		kept = append(kept, e)
	}
	version, err := l.resolve(filepath.Join(path, dataLink))
	if err != nil {
		return nil, unreadable(filepath.Join(name, dataLink), err)
	}
	held, err := l.list(filepath.Join(name, dataLink), version)
	if err != nil {
		return nil, err
	}
	kept = append(kept, held...)
	slices.SortStableFunc(kept, byName)
	// Something of its own in the folder hides what ..data holds under the same name.
	return slices.CompactFunc(kept, func(a, b entry) bool { return a.name == b.name }), nil
}

// entry is what a folder holds.
type entry struct {
	name, path string
	mode       fs.FileMode // the type
}

func (e entry) link() bool { return e.mode&fs.ModeSymlink != 0 }

func byName(a, b entry) int { return cmp.Compare(a.name, b.name) }

// list returns the entries of a folder, by name, and remembers the folder.
func (l *layout) list(name, path string) ([]entry, error) {
	l.interest(path).documents = true
	dir, err := os.Open(path)
	if err != nil {
		return nil, unreadable(name, err)
	}
	defer dir.Close()
	info, err := dir.Stat()
	if err != nil {
		return nil, unreadable(name, err)
	}
	l.folders = append(l.folders, folder{path: path, info: info})
	found, err := dir.ReadDir(l.left + 1)
	if err != nil && err != io.EOF {
		return nil, unreadable(name, err)
	}
	if l.left -= len(found); l.left < 0 {
		return nil, fmt.Errorf("file: %s: more than %d files and folders; watch a folder that holds only policy "+
			"documents, or raise MaxFiles", name, l.limit)
	}
	entries := make([]entry, len(found))
	for i, f := range found {
		entries[i] = entry{name: f.Name(), path: filepath.Join(path, f.Name()), mode: f.Type()}
	}
	slices.SortFunc(entries, byName)
	return entries, nil
}

func hidden(name string) bool { return strings.HasPrefix(name, ".") }

func document(name string) bool {
	ext := filepath.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

// maxLinks is how many links may follow one another, as on Linux.
const maxLinks = 40

// resolve returns the absolute path without the links in it, like filepath.EvalSymlinks, and notes where each link, the
// thing itself, or the part of the path that is missing, was looked up: there a change shows.
func (l *layout) resolve(path string) (string, error) {
	root := filepath.VolumeName(path) + string(filepath.Separator)
	at, rest, links := root, parts(path[len(root):]), 0
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		info, err := os.Lstat(next)
		if err != nil || len(rest) == 0 || info.Mode()&fs.ModeSymlink != 0 {
			l.interest(at).names[name] = true
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			at = next
			continue
		}
		if links++; links > maxLinks {
			return "", syscall.ELOOP
		}
		target, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			root = filepath.VolumeName(target) + string(filepath.Separator)
			at, target = root, target[len(root):]
		}
		rest = append(parts(target), rest...)
	}
	return at, nil
}

func parts(path string) []string {
	return strings.Split(filepath.ToSlash(path), "/")
}

func (l *layout) interest(path string) *interest {
	in := l.interests[path]
	if in == nil {
		in = &interest{names: make(map[string]bool)}
		l.interests[path] = in
	}
	return in
}

// read reads the documents.
func (r *reader) read(l *layout) ([]policy.Source, error) {
	sources := make([]policy.Source, 0, len(l.documents))
	left := r.maxBytes
	for _, document := range l.documents {
		data, err := readFile(document.path, left)
		switch {
		case err == errTooLarge:
			return nil, fmt.Errorf("file: %s: with it the documents are larger than %d bytes; is it one? "+
				"Remove it, or raise MaxBytes", document.name, r.maxBytes)
		case err != nil:
			return nil, unreadable(document.name, err)
		}
		left -= int64(len(data))
		sources = append(sources, policy.Source{Name: document.name, Data: data})
	}
	return sources, nil
}

var errTooLarge = errors.New("too large")

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, errTooLarge
	}
	data, err := io.ReadAll(io.LimitReader(file, limit+1)) // it may grow meanwhile
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, errTooLarge
	}
	return data, nil
}

// unreadable names the path as people know it, and what to do.
func unreadable(name string, err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		err = at.Err
	}
	remedy := "it is read again once that changes"
	switch {
	case missing(err):
		remedy = "it is read once it is there"
	case errors.Is(err, fs.ErrPermission):
		remedy = "let the user of this process read it"
	case errors.Is(err, syscall.ELOOP):
		remedy = "remove the link that leads back to itself"
	}
	return fmt.Errorf("file: %s: %w; %s", name, err, remedy)
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
