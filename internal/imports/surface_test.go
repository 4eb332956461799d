package imports

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// mostOfRoot and mostOfAll bound what the root and all public packages together promise. A name more is a promise more.
const (
	mostOfRoot = 62  // raw connections are observed: Conn and its method
	mostOfAll  = 603 // tracing is 16 of them, accesslog 10, admin 7, metrics 5, what a status needs of retry 2, raw connections that are observed 2
)

// TestSurface counts the exported names of the root, and of all public packages, as go doc shows them: constants, variables,
// functions, types, and methods of types. Fields, and methods of interfaces, belong to their types.
func TestSurface(t *testing.T) {
	root := filepath.Join("..", "..")
	names := exported(t, root)
	if len(names) > mostOfRoot {
		t.Errorf("the root exports %d names, want at most %d:\n%s", len(names), mostOfRoot, strings.Join(names, "\n"))
	}
	if len(names) < mostOfRoot/2 {
		t.Errorf("the root exports %d names, which cannot be: %q", len(names), names)
	}

	all := 0
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{.Name}} {{.Dir}}", module+"/...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		path, name, dir := fields[0], fields[1], fields[2]
		if name == "main" || strings.Contains(path, "/internal") || strings.HasPrefix(path, module+"/examples") {
			continue
		}
		all += len(exported(t, dir))
	}
	if all > mostOfAll || all < mostOfAll/2 {
		t.Errorf("the public packages export %d names, want at most %d", all, mostOfAll)
	}
	t.Logf("%d names of the root, %d of all public packages", len(names), all)
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
