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
const (
	mostOfRoot      = 62  // raw connections are observed: Conn and its method
	mostOfTelemetry = 53  // tracing 16, accesslog 10, admin 6, metrics 5, policy/telemetry 16
	mostOfRest      = 560 // of all others, the root included
)

// telemetry are the packages that only observe. Their names are counted apart.
var telemetry = []string{"/tracing", "/accesslog", "/admin", "/metrics", "/policy/telemetry"}

// TestSurface counts the exported names of the root, and of all public packages, as go doc shows them: constants, variables,
// functions, types, and methods of types. Fields, and methods of interfaces, belong to their types.
func TestSurface(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{.Name}} {{.Dir}}", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	root, observing, rest := 0, 0, 0
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		path, name, dir := strings.TrimPrefix(fields[0], module), fields[1], fields[2]
		if name == "main" || strings.Contains(path, "/internal") || strings.HasPrefix(path, "/examples") {
			continue
		}
		names := exported(t, dir)
		t.Logf("%d names of %s%s", len(names), module, path)
		switch {
		case slices.ContainsFunc(telemetry, func(of string) bool { return path == of || strings.HasPrefix(path, of+"/") }):
			observing += len(names)
		case path == "":
			root = len(names)
			fallthrough
		default:
			rest += len(names)
		}
	}
	for _, count := range []struct {
		of        string
		got, most int
	}{{"the root", root, mostOfRoot}, {"the packages of telemetry", observing, mostOfTelemetry}, {"all others", rest, mostOfRest}} {
		t.Logf("%d names of %s", count.got, count.of)
		if count.got > count.most {
			t.Errorf("%d names of %s, want at most %d", count.got, count.of, count.most)
		}
		if count.got < count.most/2 {
			t.Errorf("%d names of %s, which cannot be", count.got, count.of)
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
