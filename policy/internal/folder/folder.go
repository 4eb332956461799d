// Package folder finds and reads the documents in folders. It decides which files are documents, follows links, reads mounted volumes as
// one set, and enforces the limits. [policy.ReadDir] reads documents with it once, and package policy/file repeatedly.
//
// [policy.ReadDir]: https://pkg.go.dev/github.com/nosidecar/mesh/policy#ReadDir
package folder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The default limits.
const (
	DefaultMaxFiles = 10_000
	DefaultMaxBytes = 64 << 20
)

// File is a file with documents. Its Name is the path that was given, joined with its path in that folder. If it could not be converted, Err says
// why, and Data is its text.
type File struct {
	Name    string
	Data    []byte
	Err     error
	Changed time.Time // when it was written last; zero for a file of a mounted volume, which is there as a whole
}

// hcl is the extension of config entries of Consul, for which there is a Format.
const hcl = ".hcl"

// Format converts the content of a file to YAML or JSON. Its error begins with the line, as in "3: ".
type Format = func(data []byte) ([]byte, error)

// Place is a file or folder: its name for people to read, and its absolute path, which has no links once it is resolved.
type Place struct {
	Name, Path string
}

// Reader finds and reads the documents in its roots. It is safe for concurrent use.
type Reader struct {
	Roots    []Place
	MaxFiles int   // the maximum number of files and folders together, without the content of hidden folders
	MaxBytes int64 // the maximum size of all documents together

	// FilesRemedy and BytesRemedy end the errors about these limits, as in ", or raise MaxFiles".
	FilesRemedy, BytesRemedy string

	// Formats has the conversions of files with other extensions, such as ".hcl". A nil function means that none is needed.
	Formats map[string]Format

	// Once allows a root to be something that can be read only once, such as a pipe.
	Once bool
}

// NewReader returns a reader of paths with the default limits. Relative paths are resolved now.
func NewReader(paths ...string) (*Reader, error) {
	r := &Reader{MaxFiles: DefaultMaxFiles, MaxBytes: DefaultMaxBytes}
	for _, path := range paths {
		if path == "" {
			return nil, errors.New("an empty path")
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		r.Roots = append(r.Roots, Place{Name: path, Path: abs})
	}
	return r, nil
}

// attempts is the number of attempts to read the documents while folders and links are being replaced.
const attempts = 20

// errMoving means that folders or links were replaced during every attempt to read the documents.
var errMoving = errors.New("its folders and links are replaced faster than they can be read; let them stay for a moment")

// ReadDir reads the documents at a path once.
func ReadDir(path string, formats map[string]Format) ([]File, error) {
	r, err := NewReader(path)
	if err != nil {
		return nil, err
	}
	r.Once, r.Formats = true, formats
	files, _, err := r.ReadAll(func(*Layout) bool { return false })
	return files, err
}

// ReadAll reads a consistent set of the documents. ends has, for each root, how many of them there are up to its end. Before the documents are read,
// located is called with where they are, or would be. It reports whether changes before that may have been missed.
func (r *Reader) ReadAll(located func(*Layout) (fresh bool)) (files []File, ends []int, err error) {
	for try := 1; ; try++ {
		before, err := r.locate()
		fresh := located(before)
		if err == nil {
			files, err = r.read(before)
		}
		if err == nil {
			var after *Layout
			after, err = r.locate()
			switch {
			case err != nil:
			case after.same(before):
				return files, after.ends, nil
			case try == attempts:
				return nil, nil, fmt.Errorf("%s: %w", r.Roots[0].Name, errMoving)
			default:
				continue
			}
		}
		// A missing file may be about to be renamed into place. That may also have happened before its folder was followed.
		if try == attempts || !fresh && (try >= 5 || !missing(err)) {
			return nil, nil, err
		}
	}
}

// read reads the documents of a layout.
func (r *Reader) read(l *Layout) ([]File, error) {
	files := make([]File, 0, len(l.documents))
	left := r.MaxBytes
	for _, document := range l.documents {
		var wrong error
		data, changed, err := readFile(document.Path, left)
		switch {
		case err == errTooLarge:
			return nil, fmt.Errorf("%s: with it the documents are larger than %d bytes; is it one? Remove it%s",
				document.Name, r.MaxBytes, r.BytesRemedy)
		case err != nil:
			return nil, unreadable(document.Name, err)
		}
		if strings.Contains(filepath.ToSlash(document.Path), "/..") { // the target of DataLink
			changed = time.Time{}
		}
		left -= int64(len(data))
		if convert, _ := r.format(document.Name); convert != nil {
			if out, err := convert(data); err != nil {
				wrong = err
			} else {
				data = out
			}
		} else if strings.EqualFold(filepath.Ext(document.Name), hcl) {
			wrong = errors.New("1: HCL is read by package policy/consul (ReadDir, or Formats for a file.Watcher): use that, or remove the file")
		}
		files = append(files, File{Name: document.Name, Data: data, Err: wrong, Changed: changed})
	}
	return files, nil
}

// format returns the conversion of a file with this name. It reports whether there is an entry in Formats.
func (r *Reader) format(name string) (Format, bool) {
	ext := filepath.Ext(name)
	if convert, known := r.Formats[ext]; known {
		return convert, true
	}
	convert, known := r.Formats[strings.ToLower(ext)]
	return convert, known
}

var errTooLarge = errors.New("too large")

// readFile reads a file of at most limit bytes, and returns when it was written last.
func readFile(path string, limit int64) (data []byte, changed time.Time, err error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, changed, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, changed, err
	}
	if info.Size() > limit {
		return nil, changed, errTooLarge
	}
	data, err = io.ReadAll(io.LimitReader(file, limit+1)) // the file may have grown
	if err == nil && int64(len(data)) > limit {
		err = errTooLarge
	}
	return data, info.ModTime(), err
}

// unreadable adds to an error the name that people know the path by, and what to do.
func unreadable(name string, err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		err = at.Err
	}
	remedy := "see that it can be read"
	switch {
	case missing(err):
		remedy = "put it there, or correct the path"
		if at, err := os.Getwd(); err == nil && !filepath.IsAbs(name) {
			remedy += ", which is relative to " + at
		}
	case errors.Is(err, fs.ErrPermission):
		remedy = "let the user of this process read it"
	case errors.Is(err, syscall.ELOOP):
		remedy = "remove the link that leads back to itself"
	}
	return fmt.Errorf("%s: %w; %s", name, err, remedy)
}

// missing reports whether err means that a file or folder does not exist.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}
