package policy

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Source is a stream of YAML documents with the name that findings give it, such as its path.
type Source struct {
	Name string
	Data []byte
}

// ReadDir reads a file or, of a folder and the folders in it, the files whose names end in .yaml or .yml, sorted by name.
// Hidden files and folders are left out: Kubernetes keeps the versions of a mounted volume in them.
func ReadDir(path string) ([]Source, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if !info.IsDir() {
		return readFiles([]string{path})
	}
	paths, err := list(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return readFiles(paths)
}

// list returns the paths of the documents in a folder, which may be a link to one.
func list(folder string) ([]string, error) {
	var paths []string
	root := folder + string(filepath.Separator) // or else a link would be taken for what it is
	err := filepath.WalkDir(root, func(at string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case at == root:
			return nil
		case strings.HasPrefix(entry.Name(), "."):
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		case entry.IsDir():
			return nil
		}
		// A mounted volume of Kubernetes consists of links, so what counts is what an entry leads to. Other links to
		// folders are left alone: they may lead in a circle.
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		if info.IsDir() {
			if target, err := os.Readlink(at); err != nil || !strings.HasPrefix(target, volumeLink) {
				return err
			}
			inner, err := list(at)
			paths = append(paths, inner...)
			return err
		}
		if ext := filepath.Ext(at); info.Mode().IsRegular() && (ext == ".yaml" || ext == ".yml") {
			paths = append(paths, at)
		}
		return nil
	})
	return paths, err
}

// volumeLink begins the links of a mounted ConfigMap or Secret.
const volumeLink = "..data" + string(filepath.Separator)

func readFiles(paths []string) ([]Source, error) {
	sources := make([]Source, 0, len(paths))
	for _, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("policy: %w", err)
		}
		sources = append(sources, Source{Name: path, Data: data})
	}
	return sources, nil
}
