package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCheckUnreadable: the message names the path, what is wrong with it and what to do, and nothing that has nothing to do with it.
func TestCheckUnreadable(t *testing.T) {
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop.yaml")
	if err := os.Symlink("loop.yaml", loop); err != nil {
		t.Fatal(err)
	}
	const levels = "too many levels of symbolic links; remove the link that leads back to itself"
	for path, want := range map[string]string{
		filepath.Join(dir, "none"):       "no such file or directory; put it there, or correct the path",
		loop:                             levels,
		dir:                              levels, // the file in it
		filepath.Join(loop, "none.yaml"): levels,
	} {
		code, stdout, stderr := command("check", path)
		if path == dir {
			path = loop
		}
		if want = "mesh check: policy: " + path + ": " + want + "\n"; code != exitFailed || stdout != "" || stderr != want {
			t.Errorf("exit status %d, %q, errors\n%swant\n%s", code, stdout, stderr, want)
		}
	}
}

// TestCheckSeed pins what is found in the seed's files, but not the words.
func TestCheckSeed(t *testing.T) {
	const (
		errors  = "spec.trafficPolicy.outlierDetection.consecutiveErrors"
		delayed = "spec.http[0].fault.delay.percentage.value"
		aborted = "spec.http[0].fault.abort.percentage.value"
		subset  = "spec.http[%d].route[%d].destination.subset"
	)
	for _, test := range []struct {
		file      string
		documents int
		warnings  []string // their fields
	}{
		{"01-istio-routing-destination-retry-timeout", 4, []string{errors}},
		{"02-linkerd-serviceprofile-trafficsplit", 2, nil},
		{"03-canary", 1, []string{fmt.Sprintf(subset, 0, 0), fmt.Sprintf(subset, 0, 1)}},
		{"04-ab-testing", 1, []string{fmt.Sprintf(subset, 0, 0), fmt.Sprintf(subset, 1, 0), fmt.Sprintf(subset, 2, 0)}},
		{"05-mirroring", 1, []string{fmt.Sprintf(subset, 0, 0), "spec.http[0].mirror.subset"}},
		{"06-peer-authentication", 1, nil},
		{"07-authorization-policies", 2, nil},
		{"08-circuit-breaking", 1, []string{errors}},
		{"09-retries", 1, nil},
		{"10-complete-setup", 9, []string{"kind", "kind", "kind", delayed, aborted, errors}},
	} {
		t.Run(test.file, func(t *testing.T) {
			path := filepath.Join(seed, test.file+".yaml")
			code, stdout, stderr := command("check", "-o", "json", path)
			var got report
			if err := json.Unmarshal([]byte(stdout), &got); err != nil {
				t.Fatal(err)
			}
			var warnings []string
			for _, f := range got.Findings {
				if f.File != path || f.Line == 0 || f.Kind == "" || f.Namespace == "" || f.Name == "" || f.Message == "" {
					t.Errorf("incomplete finding %+v", f)
				}
				if f.Severity != "warning" {
					t.Errorf("%s", f)
				}
				warnings = append(warnings, f.Field)
			}
			if code != 0 || stderr != "" || got.Documents != test.documents {
				t.Errorf("exit status %d, %d documents, errors %q; want 0 and %d", code, got.Documents, stderr, test.documents)
			}
			if !slices.Equal(warnings, test.warnings) {
				t.Errorf("warnings for %q, want %q", warnings, test.warnings)
			}
			textCode, text, _ := command("check", path)
			if lines := strings.Count(text, "\n"); textCode != 0 || lines != len(got.Findings) {
				t.Errorf("as text: exit status %d and %d lines for %d findings", textCode, lines, len(got.Findings))
			}
		})
	}
}

// TestCheckManySkipped: documents of one kind that are skipped have one line if they are many, and an entry each in JSON.
func TestCheckManySkipped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	for n, lines := range map[int]int{3: 3, 4: 1, 40: 1} {
		text := "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: 80}]}}\n"
		for i := range n {
			text += fmt.Sprintf("---\n{apiVersion: apps/v1, kind: Deployment, metadata: {name: a%d}}\n", i)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		code, stdout, stderr := command("check", path)
		others := fmt.Sprintf("it is skipped, and so are %d others\n", n-1)
		if code != 0 || strings.Count(stdout, "\n") != lines || (lines == 1) != strings.HasSuffix(stdout, others) {
			t.Errorf("%d Deployments: exit status %d and\n%s", n, code, stdout)
		}
		if want := fmt.Sprintf("%d documents checked: no errors, %d warnings\n", n+1, n); stderr != want {
			t.Errorf("%d Deployments: %q, want %q", n, stderr, want)
		}
		var got report
		if _, stdout, _ = command("check", "-o", "json", path); json.Unmarshal([]byte(stdout), &got) != nil || len(got.Findings) != n {
			t.Errorf("%d Deployments: %d findings in JSON", n, len(got.Findings))
		}
	}
}

// TestCheckFolder: a folder is read as the library reads it.
func TestCheckFolder(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"b.yaml":        "kind: [",
		"a/c.yml":       "a: b",
		"README.md":     "not: [a document",
		".hidden/d.yml": "not: [a document",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	code, stdout, _ := command("check", "-o", "json", dir)
	var got report
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, f := range got.Findings {
		files = append(files, f.File)
	}
	want := []string{filepath.Join(dir, "a/c.yml"), filepath.Join(dir, "b.yaml")}
	if code != 1 || got.Documents != 2 || !slices.Equal(slices.Compact(files), want) {
		t.Errorf("exit status %d, %d documents, findings in %q; want 1, 2 and %q", code, got.Documents, files, want)
	}
}

// TestCheckNothing: no findings are an empty list, not null.
func TestCheckNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(path, []byte("apiVersion: v1\nkind: Service\nmetadata: {name: shop}\nspec: {ports: [{port: 80}]}\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := command("check", "-o", "json", path)
	if want := "{\n  \"documents\": 1,\n  \"findings\": []\n}\n"; code != 0 || stdout != want || stderr != "" {
		t.Errorf("check of a good document = %d, printed %q and as errors %q", code, stdout, stderr)
	}
}

// TestNoDocuments: where there is nothing to load, there is a mistake, and no answer.
func TestNoDocuments(t *testing.T) {
	for name, files := range map[string]map[string]string{
		"empty folder":      {},
		"other files":       {"README.txt": "kind: Service", "a.yaml.off": "kind: Service"},
		"hidden files":      {".a.yaml": "kind: Service"},
		"truncated file":    {"a.yaml": ""},
		"commented out":     {"a.yaml": "# apiVersion: v1\n# kind: Service\n"},
		"separators":        {"a.yaml": "---\n---\n...\n", "b.yml": "# b"},
		"List without item": {"a.yaml": "apiVersion: v1\nkind: List\nitems: []\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			for _, paths := range [][]string{{dir}, {"testdata/shop.yaml", dir}} {
				code, stdout, _ := command(append([]string{"check"}, paths...)...)
				if want := dir + ":1: error: " + nothing; code != 1 || !strings.Contains(stdout, want) {
					t.Errorf("check %q = %d, printed %q", paths, code, stdout)
				}
			}
			for _, of := range []string{"route", "authz"} {
				code, stdout, stderr := command(of, "-f", "testdata/shop.yaml", "-f", dir, "http://shop/")
				if code != 2 || stdout != "" || !strings.Contains(stderr, dir+": "+nothing) {
					t.Errorf("%s = %d, printed %q and as errors %q", of, code, stdout, stderr)
				}
			}
		})
	}
}

// TestCheckSkipped: a path of which nothing can be in force in any process may be a mistake, also beside others. It may be a file of gateways, too.
func TestCheckSkipped(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"gateway.yaml": "apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: edge}\nspec:\n  selector: {app: edge}\n" +
			"  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]\n",
		"routes.yaml": "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: edge}\n" +
			"spec: {hosts: [shop.example], gateways: [edge], http: [{route: [{destination: {host: shop}}]}]}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	gateways := filepath.Join(dir, "gateway.yaml")
	for _, paths := range [][]string{{dir}, {"testdata/shop.yaml", dir}, {gateways}} {
		code, stdout, _ := command(append([]string{"check"}, paths...)...)
		want := paths[len(paths)-1] + ":1: warning: no document in it has a meaning in-process"
		if code != 0 || strings.Count(stdout, want) != 1 || strings.Contains(stdout, ": error: ") {
			t.Errorf("check %q = %d, printed %q", paths, code, stdout)
		}
	}
}

// TestCheckPaths: a file that two paths hold, and a flag after a path, are mistakes of the command line and not of documents.
func TestCheckPaths(t *testing.T) {
	const twice = "testdata/shop.yaml is in two of the paths: name it once"
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"testdata/shop.yaml", "./testdata/shop.yaml"}, twice},
		{[]string{"testdata/shop.yaml", "-o", "json"}, `flags come before other arguments, but "-o" is after "testdata/shop.yaml"`},
		{[]string{"--", "testdata/shop.yaml", "-o"}, "policy: -o: no such file"},
	} {
		code, stdout, stderr := command(append([]string{"check"}, test.args...)...)
		if code != exitFailed || stdout != "" || !strings.Contains(stderr, "mesh check: "+test.want) {
			t.Errorf("check %q = %d, printed %q and as errors %q, want %q", test.args, code, stdout, stderr, test.want)
		}
	}
}

// TestCheckControlsNoTerminal checks documents whose names hold escape sequences: what is printed holds none of them.
func TestCheckControlsNoTerminal(t *testing.T) {
	const document = `apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: "a\e[2J\x07\u009b2J\u202e"}
spec:
  hosts: ["x\e]0;title\x07"]
  typo: 1
`
	path := filepath.Join(t.TempDir(), "a.yaml")
	if err := os.WriteFile(path, []byte(document), 0o600); err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := command("check", path)
	if code != exitErrors || !strings.Contains(stdout, "unknown field") {
		t.Errorf("exit status %d, %q, errors %q; want %d and an unknown field", code, stdout, stderr, exitErrors)
	}
	_, _, refused := command("route", "-f", path, "http://x/")
	if !strings.Contains(refused, "unknown field") {
		t.Errorf("route: errors %q, want an unknown field", refused)
	}
	if all := stdout + stderr + refused; strings.ContainsAny(all, "\x1b\x07\u009b\u202e") {
		t.Errorf("printed control characters: %q", all)
	}
}
