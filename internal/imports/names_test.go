package imports

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	codeInText = regexp.MustCompile("`([^`\n]+)`")
	linkInText = regexp.MustCompile(`\]\(([^()\s]+)\)`)
	goName     = regexp.MustCompile(`^[&*]?(?:\[\])?(?:[a-z0-9]+/)*([a-z][a-z0-9]*)\.([A-Z]\w*)(?:\.([A-Z]\w*))?\b`)
	aTest      = regexp.MustCompile(`^(Test|Fuzz|Benchmark)[A-Z]\w*`)
	aPath      = regexp.MustCompile(`^[a-z][a-z0-9_]*(/[\w.-]+)+$`)
	notInAnID  = regexp.MustCompile(`[^a-z0-9 _-]`)
	fencedText = regexp.MustCompile("(?ms)^```.*?^```$")
)

// TestDocsNameWhatExists: the links, the files, the tests, and the names of packages of this module that the documentation names exist.
func TestDocsNameWhatExists(t *testing.T) {
	const root = "../.."
	names, tests, packages := declared(t, root)
	docs, err := filepath.Glob(root + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, path := range append(docs, root+"/README.md", root+"/ARCHITECTURE.md", root+"/CONTRIBUTING.md", root+"/SECURITY.md", root+"/CHANGELOG.md") {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := fencedText.ReplaceAllString(string(data), "")
		for _, link := range linkInText.FindAllStringSubmatch(text, -1) {
			if seen++; !strings.Contains(link[1], "://") && !leadsSomewhere(path, link[1]) {
				t.Errorf("%s: there is no %s", filepath.Base(path), link[1])
			}
		}
		for _, code := range codeInText.FindAllStringSubmatch(text, -1) {
			what := code[1]
			wrong := false
			if of := goName.FindStringSubmatch(what); of != nil && packages[of[1]] {
				wrong = !names[of[1]+"."+of[2]] || of[3] != "" && !names[of[1]+"."+of[2]+"."+of[3]]
				seen++
			} else if test := aTest.FindString(what); test != "" {
				wrong = !tests[test]
				seen++
			} else if first, _, _ := strings.Cut(what, "/"); aPath.MatchString(what) && exists(filepath.Join(root, first)) {
				wrong = !exists(filepath.Join(root, what))
				seen++
			}
			if wrong {
				t.Errorf("%s: there is no %s", filepath.Base(path), what)
			}
		}
	}
	if seen < 500 {
		t.Errorf("%d names, want at least 500", seen)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// leadsSomewhere reports whether the file of a link exists and, if the link has a fragment, the section.
func leadsSomewhere(from, link string) bool {
	file, fragment, _ := strings.Cut(link, "#")
	to := from
	if file != "" {
		to = filepath.Join(filepath.Dir(from), filepath.FromSlash(file))
	}
	if fragment == "" {
		return exists(to)
	}
	text, err := os.ReadFile(to)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		title := strings.TrimLeft(line, "#")
		id := strings.ReplaceAll(notInAnID.ReplaceAllString(strings.ToLower(strings.TrimSpace(title)), ""), " ", "-")
		if title != line && id == fragment {
			return true
		}
	}
	return false
}

// declared returns what the packages below root declare: "PACKAGE.NAME" and "PACKAGE.TYPE.MEMBER". It also returns the names of tests, and those of
// packages.
func declared(t *testing.T, root string) (names, tests, packages map[string]bool) {
	names, tests, packages = make(map[string]bool), make(map[string]bool), make(map[string]bool)
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil // of a testdata folder
		}
		if strings.HasSuffix(path, "_test.go") {
			for _, decl := range file.Decls {
				if f, ok := decl.(*ast.FuncDecl); ok {
					tests[f.Name.Name] = true
				}
			}
			return nil
		}
		packages[file.Name.Name] = true
		for _, decl := range file.Decls {
			addDeclared(names, file.Name.Name+".", decl)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return names, tests, packages
}

func addDeclared(names map[string]bool, in string, decl ast.Decl) {
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		if decl.Recv == nil {
			names[in+decl.Name.Name] = true
			return
		}
		of := decl.Recv.List[0].Type
		if pointer, ok := of.(*ast.StarExpr); ok {
			of = pointer.X
		}
		if generic, ok := of.(*ast.IndexExpr); ok {
			of = generic.X
		}
		if name, ok := of.(*ast.Ident); ok {
			names[in+name.Name+"."+decl.Name.Name] = true
		}
	case *ast.GenDecl:
		for _, spec := range decl.Specs {
			switch spec := spec.(type) {
			case *ast.ValueSpec:
				for _, name := range spec.Names {
					names[in+name.Name] = true
				}
			case *ast.TypeSpec:
				names[in+spec.Name.Name] = true
				addMembers(names, in+spec.Name.Name+".", spec.Type)
			}
		}
	}
}

// addMembers adds the fields of a struct, or the methods of an interface.
func addMembers(names map[string]bool, in string, of ast.Expr) {
	var list *ast.FieldList
	switch of := of.(type) {
	case *ast.StructType:
		list = of.Fields
	case *ast.InterfaceType:
		list = of.Methods
	default:
		return
	}
	for _, field := range list.List {
		for _, name := range field.Names {
			names[in+name.Name] = true
		}
		if len(field.Names) > 0 {
			continue
		}
		switch embedded := field.Type.(type) {
		case *ast.Ident:
			names[in+embedded.Name] = true
		case *ast.SelectorExpr:
			names[in+embedded.Sel.Name] = true
		}
	}
}
