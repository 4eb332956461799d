package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ran returns what a command prints, and its exit status.
func ran(args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return out.String(), errs.String(), code
}

func TestConfigEntriesOfConsul(t *testing.T) {
	const folder = "testdata/consul"
	if out, errs, code := ran("check", folder); code != 0 || out != "" || !strings.Contains(errs, "4 documents checked: no errors, no warnings") {
		t.Errorf("check: %d\n%s%s", code, out, errs)
	}
	for url, want := range map[string][]string{
		"http://web/api/users": {`"document": "service-router default/web"`, `"route": 0`, `"host": "api.default.svc.cluster.local"`, `"path": "/users"`, `"timeout": "3s"`, `"attempts": 2`},
		"http://web/":          {`"subset": "v1"`, `"weight": 9000`, `"subset": "v2"`, `"weight": 1000`, `"web.default.svc.cluster.local subset v1"`, `"timeout": "15s"`},
		"http://other/":        {`"host": "other.default.svc.cluster.local"`, `"timeout": "15s"`},
	} {
		out, errs, code := ran("route", "-f", folder, "-service", "front", url)
		for _, part := range want {
			if code != 0 || !strings.Contains(out, part) {
				t.Errorf("route %s: %d, without %s\n%s%s", url, code, part, out, errs)
			}
		}
	}
	bad := filepath.Join(t.TempDir(), "web.hcl")
	if err := os.WriteFile(bad, []byte("Kind = \"service-splitter\"\nName = \"web\"\nSplits {\n  Weight = 99\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A file of another program, in HCL's next version, hides no other mistake.
	if err := os.WriteFile(filepath.Join(filepath.Dir(bad), "terragrunt.hcl"), []byte("inputs = {\n  name = upper(local.name)\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, _, code := ran("check", filepath.Dir(bad)); code != 1 || !strings.Contains(out, "terragrunt.hcl:2: error: not valid HCL: ") ||
		!strings.Contains(out, "web.hcl:3: service-splitter") {
		t.Errorf("check of the folder: %d\n%s", code, out)
	}
	if out, _, code := ran("check", bad); code != 1 || !strings.Contains(out, "web.hcl:3: service-splitter default/web: Splits: error: the weights are 99 together") {
		t.Errorf("check: %d\n%s", code, out)
	}
}
