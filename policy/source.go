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
	var paths []string
	err = filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case at == path:
			return nil
		case strings.HasPrefix(entry.Name(), "."):
			if entry.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if ext := filepath.Ext(at); ext != ".yaml" && ext != ".yml" {
			return nil
		}
		// A mounted ConfigMap consists of links, so what counts is what an entry leads to.
		info, err := os.Stat(at)
		if err != nil {
			return err
		}
		if info.Mode().IsRegular() {
			paths = append(paths, at)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	return readFiles(paths)
}

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
