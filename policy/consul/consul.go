// Package consul reads Consul's config entries from files, in JSON or HCL, and from a running Consul.
//
//	mesh.New(ctx,
//		mesh.WithPolicyFeed(&consul.Feed{}),
//		mesh.WithWorkload(policy.Workload{Service: "web", Filters: consul.Filters{}}),
//		...)
//
// What the entries mean is documented in docs/documents.md. Package policy compiles them, and reads them as JSON itself. This package has
// what needs Consul's client, HCL or the language of filters.
package consul

import (
	"fmt"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/internal/folder"
)

// ReadDir is policy.ReadDir that also reads files whose names end in .hcl, with one config entry each: HCL is turned into JSON, line by
// line, so that findings name the lines of the file. A mistake in HCL is no error of ReadDir, but of the source (see policy.Source.Err).
func ReadDir(path string) ([]policy.Source, error) {
	files, err := folder.ReadDir(path, Formats())
	if err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	sources := make([]policy.Source, len(files))
	for i, file := range files {
		sources[i] = policy.Source{Name: file.Name, Data: file.Data, Err: file.Err}
	}
	return sources, nil
}

// Formats are the files that ReadDir reads beside .yaml, .yml and .json, for [github.com/nosidecar/mesh/policy/file.Watcher].
func Formats() map[string]func(data []byte) ([]byte, error) {
	return map[string]func([]byte) ([]byte, error){".hcl": toJSON}
}
