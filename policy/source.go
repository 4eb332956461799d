package policy

import (
	"fmt"

	"github.com/nosidecar/mesh/policy/internal/folder"
)

// Source is a stream of YAML documents, or a JSON document. Findings refer to it by its name, such as its path.
type Source struct {
	Name string
	Data []byte

	// Alone says that each document is judged by itself. One with an error does not keep the others from taking effect: its own last
	// good version stays in force, as long as it is of the same object, which its metadata.uid tells, or its kind, namespace and name if
	// it has none. Without a last good version it is left out, and if it protects somebody, what it protects is closed: see
	// [Finding.InForce]. Such documents are ordered by their creationTimestamp, namespace and name, behind all others.
	//
	// By default the sources are judged as a whole: one error, and none takes effect.
	Alone bool
}

// ReadDir reads a file, or the files in a folder and its subfolders whose names end in .yaml or .yml, sorted by name. Hidden files and folders
// are skipped, and so are links to folders. A mounted ConfigMap or Secret, in the folder or deeper, is read through its ..data link as one set,
// so its files are always of the same version. The name of a source is path joined with the path of the file in the folder.
//
// Config entries of Consul in files whose names end in .json or .hcl are read by ReadDir of policy/consul.
//
// More than 10,000 files and folders, or more than 64 MiB of documents, are an error.
func ReadDir(path string) ([]Source, error) {
	reader, err := folder.NewReader(path)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	reader.Once = true
	files, err := reader.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	sources := make([]Source, len(files))
	for i, file := range files {
		sources[i] = Source{Name: file.Name, Data: file.Data}
	}
	return sources, nil
}
