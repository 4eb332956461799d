package yamldoc_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

// breaks are the line breaks of YAML 1.1, which the parser knows; those of YAML 1.2 are the first three.
var breaks = map[string]string{
	"LF": "\n", "CR": "\r", "CRLF": "\r\n", "NEL": "\u0085", "LS": "\u2028", "PS": "\u2029",
}

// contents counts the documents that the YAML parser finds in data, without empty ones. ok says that it takes all of it.
func contents(data string) (found int, ok bool) {
	dec := yaml.NewDecoder(strings.NewReader(data))
	for {
		var node yaml.Node
		switch err := dec.Decode(&node); {
		case err != nil:
			return found, err.Error() == "EOF"
		case len(node.Content) > 0 && node.Content[0].ShortTag() != "!!null":
			found++
		}
	}
}

// lost says what is wrong with what Parse makes of data: a document that it neither returns nor complains of.
func lost(data string) string {
	docs := yamldoc.Parse([]byte(data))[0]
	for _, doc := range docs {
		if doc.Failed() {
			return "" // it complains
		}
	}
	found, ok := contents(data)
	switch {
	case len(docs) < found:
		return fmt.Sprintf("%d documents and no problem, the YAML parser finds %d", len(docs), found)
	case !ok && found > 0 && len(docs) == 0:
		return "neither a document nor a problem, and the YAML parser finds a mistake"
	}
	return ""
}

// TestParse_LosesNothing: whatever stands before a document, with whatever line break, the document is read or complained of.
func TestParse_LosesNothing(t *testing.T) {
	for name, br := range breaks {
		for _, before := range []string{
			"# a comment", "  # an indented comment", "\t# a comment", "#", "---", "--- # a comment", "---\t", "...", "... # a comment",
			"%YAML 1.1", "%YAML 1.2 # a comment", "%YAML 1.1 " + br + "---", "%TAG ! tag:example.com,2000:", "%OTHER a", "",
			"# a" + br + "# b" + br, "---" + br + "# a" + br + "...", "--- ~" + br + "...", "\uFEFF", "\uFEFF# a comment", "# \u00e4", "\u00a0", "\u2003",
		} {
			for _, ahead := range []string{"", "\n", "---\nkind: x\n", "kind: x\n...\n", "kind: x\n", "# first\n---\n"} {
				for _, after := range []string{"", "\n", "\n---\n", "\n---\nkind: z\n", "\n...\n"} {
					data := ahead + before + br + "kind: y" + after
					if fault := lost(data); fault != "" {
						t.Errorf("%s: %q: %s", name, data, fault)
					}
				}
			}
		}
	}
}

func TestParse_TextBesideMarkers(t *testing.T) {
	const text = "text after \"...\": begin the document on a line of its own, after \"---\"\n"
	tests := []struct {
		name, yaml, want string
		documents        int
	}{
		{"after the end marker", "kind: x\n... kind: y\n", "2: : error: " + text, 2},
		{"after an end marker at the beginning", "... {kind: y}\n", "1: : error: " + text, 1},
		{"after the end marker, tab", "kind: x\n...\tkind: y\n---\nkind: z\n", "2: : error: " + text, 3},
		{"comment after the end marker", "kind: x\n... # the end\nkid: y\n",
			"3: kid: error: unknown field \"kid\", did you mean \"kind\"?\n", 2},
		{"comment, CR, document", "# comment\rkid: y\n", "2: kid: error: unknown field \"kid\", did you mean \"kind\"?\n", 1},
		{"directive, CR, document", "%YAML 1.1\rkind: y\n", "2: : error: not valid YAML: mapping values are not allowed in this context\n", 1},
		{"indented marker", " ---\n", "1: : error: must be an object with apiVersion and kind, not the string \"---\"\n", 1},
		{"spaces that are not YAML's", "\u00a0\n", "1: : error: must be an object with apiVersion and kind, not the string \"\\u00a0\"\n", 1},
		{"control character in a comment", "# a\x00b\nkind: x\n", "1: : error: not valid YAML: control characters are not allowed: save the file as UTF-8 text\n", 1},
		{"only a byte order mark", "\uFEFF", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objects, problems := read(tt.yaml)
			if problems != tt.want || len(objects) != tt.documents {
				t.Errorf("%d documents, problems:\n%s\nwant %d and:\n%s", len(objects), problems, tt.documents, tt.want)
			}
		})
	}
}

func TestEmpty(t *testing.T) {
	for data, want := range map[string]bool{
		"": true, "\n": true, "# kind: x\n": true, "---\n...\n": true, "%YAML 1.2\n---\n": true, "~": true, "--- null\n---\n": true,
		"apiVersion: v1\nkind: List\nitems: []\n":   true,
		"apiVersion: v1\nkind: List\nitems: [{}]\n": false,
		"apiVersion: v1\nkind: List\n":              false,
		"# a comment\rkind: x":                      false,
		"kind: [":                                   false,
		"- a":                                       false,
		"text":                                      false,
		"---\n---\nkind: x":                         false,
		"... kind: x":                               false,
		"\xFE\xFF":                                  false,
		"apiVersion: v1\nkind: List\nitems: []\n---\nkind: Service": false,
	} {
		if got := yamldoc.Empty([]byte("# a\n"), []byte(data)); got != want {
			t.Errorf("Empty(%q) = %v, want %v", data, got, want)
		}
	}
	if !yamldoc.Empty() {
		t.Error("there is a document in no stream")
	}
}

// FuzzParse_LosesNothing holds Parse against the YAML parser.
func FuzzParse_LosesNothing(f *testing.F) {
	for _, br := range breaks {
		f.Add("# a" + br + "kind: x" + br + "---" + br + "kind: y")
		f.Add("%YAML 1.1" + br + "---" + br + "kind: x" + br + "... kind: y" + br)
		f.Add("..." + br + "\uFEFF# a" + br + "kind: |" + br + " ---" + br + "---")
	}
	f.Fuzz(func(t *testing.T, data string) {
		if fault := lost(data); fault != "" {
			t.Errorf("%q: %s", data, fault)
		}
		if docs := yamldoc.Parse([]byte(data))[0]; yamldoc.Empty([]byte(data)) && len(docs) > 0 && !strings.HasSuffix(docs[0].Text("kind"), "List") {
			t.Errorf("%q is empty, and has %d documents", data, len(docs))
		}
	})
}

// TestParse_CostsWhatItsSizeSuggests bounds the work that a stream can ask for, by what it allocates: parsing allocates at
// every step.
func TestParse_CostsWhatItsSizeSuggests(t *testing.T) {
	const size = 4 << 20
	fill := func(unit string) string { return strings.Repeat(unit, size/len(unit)) }
	tests := []struct {
		name, yaml string
		most       int    // MiB
		want       string // of a problem
	}{
		{"tiny documents", fill("---\na: b\n"), 64, "more than 20000 documents: split it into several files"},
		{"tiny broken documents", fill("---\n[a:\n"), 64, "more than 20000 documents"},
		{"as many broken documents as may be", strings.Repeat("---\n[a:\n", 20_000), 512, "19900 more documents are not valid YAML"},
		{"broken documents of a usual size", fill("---\n" + strings.Repeat("a: [b]\n", 2330) + "[a:\n"), 1024, "not valid YAML"},
		{"empty documents", fill("---\n"), 64, ""},
		{"comments", fill("# a comment\n---\n"), 64, ""},
		{"ends", fill("...\n"), 64, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var docs []*yamldoc.Document
			used := leak.Allocated(func() { docs = yamldoc.Parse([]byte(tt.yaml))[0] })
			if used > tt.most<<20 {
				t.Errorf("%d bytes cost %d MiB of allocations, want at most %d", len(tt.yaml), used>>20, tt.most)
			}
			problems := 0
			told := tt.want == ""
			for _, doc := range docs {
				problems += len(doc.Problems)
				for _, p := range doc.Problems {
					told = told || strings.Contains(p.Message, tt.want)
				}
			}
			if !told || problems > 1000 {
				t.Errorf("%d problems, one that says %q: %v", problems, tt.want, told)
			}
		})
	}
}

// outlined parses a stream and returns its documents, which must all have a Sum, and their outline.
func outlined(t *testing.T, data string) ([]*yamldoc.Document, *yamldoc.Outline) {
	t.Helper()
	docs := yamldoc.ParseNew(new(yamldoc.Room), []yamldoc.Stream{{Data: []byte(data)}}, func(yamldoc.Sum) *yamldoc.Digest { return nil })
	outline := new(yamldoc.Outline)
	for _, d := range docs {
		if _, ok := d.Sum(); !ok {
			t.Fatalf("the document of line %d has no Sum", d.Line)
		}
		d.Warnf("spec.a", "told of the first")
		outline.Add(d, d.Digest())
	}
	return docs, outline
}

// TestParseNew_Outline: a stream with an outline has the documents that parsing it has.
func TestParseNew_Outline(t *testing.T) {
	for _, data := range []string{
		"", "# nothing\n---\n", "kind: a", "kind: a\nspec: {a: 1}\n---\n# more\n\nkind: b\nspec:\n  a: 2\n",
		"\uFEFFkind: a\n---\nspec: {a: 1}", "kind: a\n...\n# end\n---\nkind: b\n...\n", "\r\nkind: a\r\n---\r\nkind: b\r\n", "---\n[a]\n--- {kind: b}\n",
	} {
		want, outline := outlined(t, data)
		streams := []yamldoc.Stream{{Data: []byte("kind: first")}, {Data: []byte(data), Known: outline}, {Data: []byte("kind: last")}}
		got := yamldoc.ParseNew(new(yamldoc.Room), streams, func(yamldoc.Sum) *yamldoc.Digest { return nil })
		if len(got) != len(want)+2 || got[0].Text("kind") != "first" || got[len(got)-1].Text("kind") != "last" {
			t.Errorf("%q: %d documents, want %d in their order", data, len(got), len(want)+2)
			continue
		}
		for i, d := range got[1 : len(got)-1] {
			sum, _ := d.Sum()
			wantSum, _ := want[i].Sum()
			if d.Stream() != 1 || d.Line != want[i].Line || sum != wantSum || string(d.Raw()) != string(want[i].Raw()) ||
				!slices.Equal(d.Problems, want[i].Problems) || d.Failed() != want[i].Failed() ||
				d.Text("kind") != want[i].Text("kind") || d.LineOf("spec.a") != want[i].LineOf("spec.a") {
				t.Errorf("%q: document %d is %+v, want %+v", data, i, d, want[i])
			}
		}
	}
}

// TestParseNew_BoundsOutlinedDocuments: documents that need not be read count, too.
func TestParseNew_BoundsOutlinedDocuments(t *testing.T) {
	data := strings.Repeat("---\na: b\n", 20_000)
	_, outline := outlined(t, data)
	streams := make([]yamldoc.Stream, 11)
	for i := range streams {
		streams[i] = yamldoc.Stream{Data: []byte(data), Known: outline}
	}
	docs := yamldoc.ParseNew(new(yamldoc.Room), streams, func(yamldoc.Sum) *yamldoc.Digest { return nil })
	last := docs[len(docs)-1]
	if len(docs) != 200_001 || last.Stream() != 10 || !last.Failed() || !strings.Contains(last.Problems[0].Message, "more than 200000 documents") {
		t.Errorf("%d documents, the last one has the problems %v", len(docs), last.Problems)
	}
}

// TestParse_ManyStreams: the documents of all streams are bounded in number, but one that has a stream of its own is never refused for the number
// of others.
func TestParse_ManyStreams(t *testing.T) {
	const text, most = "a: b\n", 20_000
	digest := yamldoc.Parse([]byte(text))[0][0].Digest()
	known := func(yamldoc.Sum) *yamldoc.Digest { return digest } // it costs less than parsing
	many := yamldoc.Stream{Data: []byte(strings.Repeat("---\n"+text, most))}
	streams := append(slices.Repeat([]yamldoc.Stream{many}, 11), yamldoc.Stream{Data: []byte(text)}, yamldoc.Stream{Data: []byte(text)})
	docs := yamldoc.ParseNew(new(yamldoc.Room), streams, known)
	if want := 10*most + 1 + 2; len(docs) != want {
		t.Fatalf("%d documents, want %d", len(docs), want)
	}
	for i, doc := range docs {
		if doc.Failed() != (i == 10*most) {
			t.Fatalf("document %d: refused %t", i, doc.Failed())
		}
	}
}

// TestParse_BoundsProblemsOfAStream: what is beyond the bound is counted.
func TestParse_BoundsProblemsOfAStream(t *testing.T) {
	docs := yamldoc.Parse([]byte(strings.Repeat("---\nkid: x\nsort: y\n", 1000)))[0]
	var dec yamldoc.Decoder
	kept, omitted := 0, 0
	for _, doc := range docs {
		if dec.Decode(doc, new(object)); !doc.Failed() {
			t.Fatalf("the document of line %d did not fail", doc.Line)
		}
		kept += len(doc.Problems)
		omitted += doc.Omitted()
	}
	if kept != 1000 || omitted != 1000 {
		t.Errorf("%d problems kept and %d omitted, want 1000 each", kept, omitted)
	}
}

// TestDocument_ItemsAreBounded: Lists within Lists, by aliases too, come to an end.
func TestDocument_ItemsAreBounded(t *testing.T) {
	wide := "kind: List\na0: &a0 {items: [{}, {}, {}, {}, {}, {}, {}, {}, {}, {}]}\n"
	for i := range 8 {
		wide += fmt.Sprintf("a%d: &a%d {items: [%s]}\n", i+1, i+1, strings.Repeat(fmt.Sprintf("*a%d, ", i), 10))
	}
	for name, data := range map[string]string{
		"a List that contains itself": "kind: List\nitems: &a\n- {kind: List, items: *a}\n",
		"Lists that multiply":         wide + "items: [*a8]\n",
		"a long List":                 "items: [" + strings.Repeat("{},", 30_000) + "]\n",
	} {
		t.Run(name, func(t *testing.T) {
			n, failed := 0, false
			var visit func(doc *yamldoc.Document)
			visit = func(doc *yamldoc.Document) {
				if n++; n > 100_000 {
					t.Fatal("no end of items")
				}
				items := doc.Items("items")
				for _, item := range items {
					visit(item)
				}
				for _, p := range doc.Problems {
					failed = failed || strings.Contains(p.Message, "more than") || strings.Contains(p.Message, "levels")
				}
			}
			visit(yamldoc.Parse([]byte(data))[0][0])
			if !failed {
				t.Errorf("%d documents, and no problem", n)
			}
		})
	}
}

// TestParse_LineBreaksOfTheRest: a document is found in the same line whatever the breaks.
func TestParse_LineBreaksOfTheRest(t *testing.T) {
	for name, br := range breaks {
		data := strings.ReplaceAll("# a\n# b\n\nkid: x\n", "\n", br)
		doc := yamldoc.Parse([]byte(data))[0]
		if len(doc) != 1 || doc[0].Line != 4 {
			t.Errorf("%s: %d documents, want one in line 4: %+v", name, len(doc), doc)
		}
	}
	if !bytes.Contains([]byte(breaks["NEL"]), []byte{0xC2, 0x85}) {
		t.Fatal("NEL is written otherwise")
	}
}
