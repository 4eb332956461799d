package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/tlsid"
)

// TestCerts reads what certs wrote as a process would.
func TestCerts(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "certs")
	code, stdout, stderr := command("certs", "-o", folder, "-d", "example.org", "shop/web", "shop/orders")
	if code != 0 || stderr != "" || strings.Count(stdout, "\n") != 2 {
		t.Fatalf("mesh certs = %d, printed %q and as errors %q", code, stdout, stderr)
	}
	var roots []string
	for _, name := range []string{"web", "orders"} {
		dir := filepath.Join(folder, "shop", name)
		for identity, err := range (tlsid.Files{Dir: dir}).Watch(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if got, want := identity.ID().String(), "spiffe://example.org/ns/shop/sa/"+name; got != want {
				t.Errorf("%s holds %s, want %s", dir, got, want)
			}
			break
		}
		key, err := os.Stat(filepath.Join(dir, "tls.key"))
		if err != nil {
			t.Fatal(err)
		}
		if mode := key.Mode().Perm(); mode != 0o600 {
			t.Errorf("the key of %s has mode %o, want 600", name, mode)
		}
		root, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
		if err != nil {
			t.Fatal(err)
		}
		roots = append(roots, string(root))
	}
	if roots[0] != roots[1] {
		t.Error("the workloads of one call have different authorities")
	}
}

func TestCertsRefuses(t *testing.T) {
	for _, test := range []struct {
		name, want string
		args       []string
	}{
		{"no workload", "name the workloads", nil},
		{"no namespace", "NAMESPACE/ACCOUNT", []string{"web"}},
		{"a path outside", "namespace", []string{"../.."}},
		{"a path outside, after a good one", "namespace", []string{"shop/web", "shop/../../web"}},
		{"too long a life", "24h", []string{"-t", "48h", "shop/web"}},
		{"no trust domain", "trust domain", []string{"-d", "Example/", "shop/web"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "certs")
			code, stdout, stderr := command(append([]string{"certs", "-o", folder}, test.args...)...)
			if code != 2 || stdout != "" || !strings.Contains(stderr, test.want) {
				t.Errorf("mesh certs %q = %d, printed %q and as errors %q; want 2 and %q", test.args, code, stdout, stderr, test.want)
			}
			if _, err := os.Stat(folder); err == nil {
				t.Error("something was written")
			}
		})
	}
}

func TestVersion(t *testing.T) {
	code, stdout, stderr := command("version")
	if code != 0 || !strings.HasPrefix(stdout, "mesh ") || !strings.Contains(stdout, " go1.") || stderr != "" {
		t.Errorf("mesh version = %d, printed %q and as errors %q", code, stdout, stderr)
	}
}
