package policy

import (
	"fmt"

	"github.com/nosidecar/mesh/policy/internal/folder"
)

// Source is a stream of YAML documents, or one of JSON, with the name that findings give it, such as its path.
type Source struct {
	Name string
	Data []byte
}

// ReadDir reads a file or, of a folder and the folders in it, the files whose names end in .yaml or .yml, sorted by name.
// Hidden files and folders are left out, and so are links to folders. A mounted ConfigMap or Secret, in the folder or
// deeper, is read through its ..data link as one set: never some files of one version and some of another. Sources are
// named by path, joined with the path in that folder.
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
		sources[i] = Source(file)
	}
	return sources, nil
}
