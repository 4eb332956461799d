package file_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nosidecar/mesh/policy/file"
)

func ExampleWatcher() {
	dir, err := os.MkdirTemp("", "mesh.d")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)

	for sources, err := range file.New(dir).Watch(context.Background()) {
		if err != nil {
			fmt.Println(err) // the last good documents stay in force
			continue
		}
		fmt.Println(len(sources), "documents")
		for _, source := range sources {
			fmt.Printf("%s: %s\n", filepath.Base(source.Name), source.Data)
			return
		}

		// What a deployment would do: write the file elsewhere, then rename it into place.
		temporary := filepath.Join(dir, ".retries.yaml")
		if err := os.WriteFile(temporary, []byte("kind: VirtualService"), 0o644); err != nil {
			fmt.Println(err)
			return
		}
		if err := os.Rename(temporary, filepath.Join(dir, "retries.yaml")); err != nil {
			fmt.Println(err)
			return
		}
	}
	// Output:
	// 0 documents
	// 1 documents
	// retries.yaml: kind: VirtualService
}
