package imports

import (
	"go/version"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// oldest is the oldest Go release without known advisories about packages that the mesh serves and calls with: crypto/tls, crypto/x509 and
// net/http.
const oldest = "go1.26.8"

// TestToolchain checks that no module can be built with a Go release that has known advisories.
func TestToolchain(t *testing.T) {
	root := filepath.Join("..", "..")
	out, err := exec.Command("git", "-C", root, "ls-files", "go.mod", "*/go.mod").Output()
	if err != nil {
		t.Skipf("this is no checkout: %v", err)
	}
	modules := strings.Fields(string(out))
	if len(modules) == 0 {
		t.Fatal("there is no go.mod")
	}
	for _, module := range modules {
		text, err := os.ReadFile(filepath.Join(root, module))
		if err != nil {
			t.Fatal(err)
		}
		release := ""
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) == 2 && fields[0] == "go" {
				release = "go" + fields[1]
			}
		}
		if version.Compare(release, oldest) < 0 {
			t.Errorf("%s: go %q, want %s or later", module, release, oldest)
		}
	}
}
