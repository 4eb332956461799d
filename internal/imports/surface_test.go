package imports

import (
	"go/ast"
	"go/doc"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// mostNames bounds what the root promises. A name more is a promise more.
const mostNames = 60

// TestSurface counts the exported names of the root as go doc shows them: constants, variables, functions, types, and methods of
// types. Fields, and methods of interfaces, belong to their types.
func TestSurface(t *testing.T) {
	names := exported(t, filepath.Join("..", ".."))
	if len(names) > mostNames {
		t.Errorf("the root exports %d names, want at most %d:\n%s", len(names), mostNames, strings.Join(names, "\n"))
	}
	if len(names) < mostNames/2 {
		t.Errorf("the root exports %d names, which cannot be: %q", len(names), names)
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
