package policy

import (
	"fmt"

	"github.com/nosidecar/mesh/policy/internal/folder"
)

// Source is a stream of YAML documents, or a JSON document. Findings refer to it by its name, such as its path.
type Source struct {
	Name string
	Data []byte

	// Alone says that each document stands alone: an error in it does not keep the others from taking effect. Its last good version
	// stays in force, as long as that is a version of the same object. Objects are identified by metadata.uid or, without one, by
	// kind, namespace and name. Without a last good version, the document is left out. If it may protect something, that is closed
	// then; see [Finding.InForce]. Documents that stand alone come after all others, sorted by creationTimestamp, namespace and name.
	//
	// By default, no document takes effect if any of them has an error.
	Alone bool

	// Err says that Data is not in YAML or JSON, since it could not be converted, and why. It counts as an error in its document. If its text begins
	// with a number and a colon, that is the line.
	Err error
}

// ReadDir reads a file, or the files in a folder and its subfolders whose names end in .yaml, .yml or .json, in any case, sorted by name. Hidden
// files and folders are skipped. A link to a folder is an error, since it is not followed. A mounted ConfigMap or Secret, in the folder or deeper, is read
// through its ..data link as one set, so its files are always of the same version. The name of a source is path joined with the path of the
// file in the folder.
//
// JSON that has neither kind nor apiVersion is skipped with a warning when documents are compiled. A file in HCL is a source with an Err: ReadDir
// of policy/consul reads Consul's config entries in it.
//
// More than 10,000 files and folders, or more than 64 MiB of documents, are an error.
func ReadDir(path string) ([]Source, error) {
	files, err := folder.ReadDir(path, nil)
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	sources := make([]Source, len(files))
	for i, file := range files {
		sources[i] = Source{Name: file.Name, Data: file.Data, Err: file.Err}
	}
	return sources, nil
}
