package imports

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// These bound what the packages promise. A name more is a promise more.
var bounds = []struct {
	of       string
	most     int
	packages []string // with those below them
}{
	{"the root", 60, nil},
	{"the packages of telemetry", 53, []string{"/tracing", "/accesslog", "/admin", "/metrics", "/policy/telemetry"}},
	{"the packages of JSON Web Tokens", 36, []string{"/policy/jwt"}},
	{"the packages of Consul", 28, []string{"/discovery/consul", "/tlsid/consul", "/policy/consul", "/policy/consulkv"}},
	{"the packages of Kubernetes", 12, []string{"/discovery/kubernetes", "/policy/kubernetes", "/kubernetes"}},
	{"all others, the root included", 560, nil},
}

// TestSurface counts the exported names of the root, and of all public packages, as go doc shows them: constants, variables,
// functions, types, and methods of types. Fields, and methods of interfaces, belong to their types.
func TestSurface(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{.Name}} {{.Dir}}", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	counts := make([]int, len(bounds))
	rest := len(bounds) - 1
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		path, name, dir := strings.TrimPrefix(fields[0], module), fields[1], fields[2]
		if name == "main" || strings.Contains(path, "/internal") || strings.HasPrefix(path, "/examples") {
			continue
		}
		names := exported(t, dir)
		t.Logf("%d names of %s%s", len(names), module, path)
		group := rest
		for i, b := range bounds {
			if slices.ContainsFunc(b.packages, func(of string) bool { return path == of || strings.HasPrefix(path, of+"/") }) {
				group = i
			}
		}
		counts[group] += len(names)
		if path == "" {
			counts[0] = len(names)
		}
	}
	for i, b := range bounds {
		t.Logf("%d names of %s", counts[i], b.of)
		if counts[i] > b.most {
			t.Errorf("%d names of %s, want at most %d", counts[i], b.of, b.most)
		}
		if counts[i] < b.most/2 {
			t.Errorf("%d names of %s, which cannot be", counts[i], b.of)
		}
	}
}

// exported returns the exported names of the package in a folder.
func exported(t *testing.T, dir string) (names []string) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		file, err := parser.ParseFile(set, path, text, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	pkg, err := doc.NewFromFiles(set, files, module)
	if err != nil {
		t.Fatal(err)
	}
	values := func(of string, list []*doc.Value) {
		for _, value := range list {
			for _, name := range value.Names {
				if ast.IsExported(name) {
					names = append(names, of+name)
				}
			}
		}
	}
	funcs := func(of string, list []*doc.Func) {
		for _, f := range list {
			names = append(names, of+f.Name)
		}
	}
	values("", pkg.Consts)
	values("", pkg.Vars)
	funcs("", pkg.Funcs)
	for _, kind := range pkg.Types {
		names = append(names, kind.Name)
		values("", kind.Consts)
		values("", kind.Vars)
		funcs("", kind.Funcs)
		funcs(kind.Name+".", kind.Methods)
	}
	return names
}
