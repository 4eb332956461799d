package folder

import (
	"cmp"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// DataLink is the link that Kubernetes replaces when it updates a mounted volume. The files next to it are links through it.
const DataLink = "..data"

// Layout says where the documents are, and which folders to watch for changes.
type Layout struct {
	documents []Place
	folders   []folder

	// ends has, for each root, how many documents there are up to its end. It is complete if locate returns no error.
	ends []int

	// Interests has what matters of each folder, by its resolved path.
	Interests map[string]*Interest

	reader *Reader
	left   int // how many more files and folders may be listed
}

// folder is a folder that was listed. Its info distinguishes it from a later one at the same path.
type folder struct {
	path string
	info fs.FileInfo
}

// Interest says what matters of a folder: its documents, or only some names in it, which are those of links and missing files.
type Interest struct {
	Documents bool
	Names     map[string]bool
}

// same reports whether two layouts have the same documents in the same folders.
func (l *Layout) same(other *Layout) bool {
	return slices.Equal(l.documents, other.documents) &&
		slices.EqualFunc(l.folders, other.folders, func(a, b folder) bool {
			return a.path == b.path && os.SameFile(a.info, b.info)
		})
}

// locate finds the documents. If it returns an error, the Layout has what was found, so that its Interests show when to try again.
func (r *Reader) locate() (*Layout, error) {
	l := &Layout{Interests: make(map[string]*Interest), left: r.MaxFiles, reader: r}
	for i, root := range r.Roots {
		if i > 0 {
			l.ends = append(l.ends, len(l.documents))
		}
		if info, err := os.Stat(root.Path); r.Once && err == nil && !info.IsDir() && !info.Mode().IsRegular() {
			l.documents = append(l.documents, root) // not resolved: a link such as /dev/fd/3 leads to a pipe, which has no path
			continue
		}
		path, err := l.resolve(root.Path)
		if err != nil {
			return l, unreadable(root.Name, err)
		}
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return l, unreadable(root.Name, err)
		case info.IsDir():
			if err := l.walk(root.Name, path); err != nil {
				return l, err
			}
		case info.Mode().IsRegular():
			l.documents = append(l.documents, Place{Name: root.Name, Path: path})
		default:
			return l, fmt.Errorf("%s: neither a folder nor a regular file; name one that is", root.Name)
		}
	}
	l.ends = append(l.ends, len(l.documents))
	return l, nil
}

// walk adds the documents in the folder at path, sorted by name.
func (l *Layout) walk(name, path string) error {
	entries, err := l.list(name, path)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(entries, func(e entry) bool { return e.name == DataLink && e.link() }) {
		if entries, err = l.mounted(name, path, entries); err != nil {
			return err
		}
	}
	for _, e := range entries {
		name := filepath.Join(name, e.name)
		switch {
		case Hidden(e.name):
		case e.mode.IsDir():
			if err := l.walk(name, e.path); err != nil {
				return err
			}
		case l.reader.Document(e.name):
			if e.link() {
				if e.path, err = l.resolve(e.path); err != nil {
					return unreadable(name, err)
				}
			}
			info, err := os.Stat(e.path)
			if err != nil {
				return unreadable(name, err)
			}
			switch {
			case info.IsDir():
				return linked(name)
			case !info.Mode().IsRegular():
				return fmt.Errorf("%s: not a regular file; remove it", name)
			}
			l.documents = append(l.documents, Place{Name: name, Path: e.path})
		case e.link():
			if info, err := os.Stat(e.path); err == nil && info.IsDir() {
				return linked(name)
			}
		}
	}
	return nil
}

// linked returns the error about a link to a folder. It may lead back, and what is behind it must not be left out in silence.
func linked(name string) error {
	return fmt.Errorf("%s: a link to a folder, which is not followed; name that folder as a path, too, or remove the link", name)
}

// mounted returns the entries of a mounted volume, with the content of ..data in place of the links through it. Kubernetes creates and
// removes these links one by one around an update, so they do not show what is in the set.
func (l *Layout) mounted(name, path string, entries []entry) ([]entry, error) {
	var kept []entry
	for _, e := range entries {
		if e.link() {
			target, err := os.Readlink(e.path)
			if err != nil {
				return nil, unreadable(filepath.Join(name, e.name), err)
			}
			if strings.HasPrefix(filepath.ToSlash(filepath.Clean(target)), DataLink+"/") {
				continue
			}
		}
		kept = append(kept, e)
	}
	version, err := l.resolve(filepath.Join(path, DataLink))
	if err != nil {
		return nil, unreadable(filepath.Join(name, DataLink), err)
	}
	held, err := l.list(filepath.Join(name, DataLink), version)
	if err != nil {
		return nil, err
	}
	kept = append(kept, held...)
	slices.SortStableFunc(kept, byName)
	// An entry of the folder itself hides one of the same name in ..data.
	return slices.CompactFunc(kept, func(a, b entry) bool { return a.name == b.name }), nil
}

// entry is a file, folder or link in a folder.
type entry struct {
	name, path string
	mode       fs.FileMode // only the type
}

func (e entry) link() bool { return e.mode&fs.ModeSymlink != 0 }

func byName(a, b entry) int { return cmp.Compare(a.name, b.name) }

// list returns the entries of a folder, sorted by name, and records the folder.
func (l *Layout) list(name, path string) ([]entry, error) {
	l.interest(path).Documents = true
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
		return nil, fmt.Errorf("%s: more than %d files and folders; name a folder that holds only policy documents%s",
			name, l.reader.MaxFiles, l.reader.FilesRemedy)
	}
	entries := make([]entry, len(found))
	for i, f := range found {
		entries[i] = entry{name: f.Name(), path: filepath.Join(path, f.Name()), mode: f.Type()}
	}
	slices.SortFunc(entries, byName)
	return entries, nil
}

// Hidden reports whether a file or folder with this name is skipped, with its content.
func Hidden(name string) bool { return strings.HasPrefix(name, ".") }

// Document reports whether a file with this name, in small or capital letters, has documents. One in HCL does, even if it cannot be
// read: it is not left out in silence.
func (r *Reader) Document(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json", hcl:
		return true
	default:
		_, converted := r.format(name)
		return converted
	}
}

// maxLinks is the maximum number of links that are followed for one path, as in Linux.
const maxLinks = 40

// resolve returns an absolute path with its links resolved, like filepath.EvalSymlinks. It adds an interest in each name at which a change
// would show: each link, the last element, and an element that is missing.
func (l *Layout) resolve(path string) (string, error) {
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
			l.interest(at).Names[name] = true
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

func (l *Layout) interest(path string) *Interest {
	in := l.Interests[path]
	if in == nil {
		in = &Interest{Names: make(map[string]bool)}
		l.Interests[path] = in
	}
	return in
}
