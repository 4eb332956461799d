package policy

import (
	"fmt"

	"github.com/nosidecar/mesh/policy/internal/folder"
)

// Source is a stream of YAML documents, or a JSON document. Findings refer to it by its name, such as its path.
type Source struct {
	Name string
	Data []byte
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
		sources[i] = Source(file)
	}
	return sources, nil
}
