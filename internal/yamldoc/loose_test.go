package yamldoc_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

type looseDocument struct {
	Kind    string            `yaml:"Kind,required"`
	Flag    bool              `yaml:"Flag"`
	Count   *uint32           `yaml:"Count"`
	Weight  float64           `yaml:"Weight"`
	Timeout yamldoc.Duration  `yaml:"RequestTimeout"`
	Names   []string          `yaml:"Names"`
	Set     map[string]string `yaml:"Set"`
	Inner   *looseInner       `yaml:"InnerPart"`
	List    []looseInner      `yaml:"List"`
	Old     yamldoc.Any       `yaml:"Old" mesh:"refused: it is old"`
	Idle    yamldoc.Any       `yaml:"Idle" mesh:"meaningless: it does nothing"`
}

type looseInner struct {
	PathExact string `yaml:"PathExact"`
	Status    uint32 `yaml:"HTTPStatus"`
}

func decodeLoosely(t *testing.T, text string) (looseDocument, *yamldoc.Document, bool) {
	t.Helper()
	docs := yamldoc.Parse([]byte(text))[0]
	if len(docs) != 1 {
		t.Fatalf("%d documents in %s", len(docs), text)
	}
	var into looseDocument
	ok := new(yamldoc.Decoder).DecodeLoosely(docs[0], &into)
	return into, docs[0], ok
}

func TestDecodeLoosely_AsConsulTakesIt(t *testing.T) {
	got, doc, ok := decodeLoosely(t, `{"kind": "x", "FLAG": "true", "count": "7", "weight": "0.5", "request_timeout": 1500000000, "names": "a",
"set": [{"x-a": true, "x-b": 1.50}, {"x-c": "on"}], "inner_part": [{"path_exact": 5}], "list": {"httpStatus": 503.0}, "Old": {"a": [0, "", false, null]}, "Idle": null}`)
	if !ok || len(doc.Problems) > 0 {
		t.Fatalf("problems: %v", doc.Problems)
	}
	if !got.Flag || got.Count == nil || *got.Count != 7 || got.Weight != 0.5 || got.Timeout.Duration != 1500*time.Millisecond || len(got.Names) != 1 || got.Names[0] != "a" {
		t.Errorf("decoded %+v", got)
	}
	if got.Set["x-a"] != "1" || got.Set["x-b"] != "1.5" || got.Set["x-c"] != "on" || len(got.Set) != 3 {
		t.Errorf("Set is %v", got.Set)
	}
	if got.Inner == nil || got.Inner.PathExact != "5" || len(got.List) != 1 || got.List[0].Status != 503 {
		t.Errorf("decoded %+v", got)
	}
}

func TestDecodeLoosely_Mistakes(t *testing.T) {
	for _, test := range []struct{ name, text, path, message string }{
		{"unknown key", "{\"Kind\": \"x\",\n\"Cuont\": 1}", "Cuont", `unknown field "Cuont", did you mean "Count"?`},
		{"twice in two spellings", "{\"Kind\": \"x\",\n\"inner_part\": {}, \"InnerPart\": {}}", "InnerPart", "set twice"},
		{"twice in one spelling", "{\"Kind\": \"x\",\n\"Count\": 1, \"Count\": 2}", "Count", "set twice"},
		{"twice in blocks", "{\"Kind\": \"x\",\n\"Set\": [{\"a\": \"1\"}, {\"a\": \"2\"}]}", "a", "set twice"},
		{"no number", "{\"Kind\": \"x\",\n\"Count\": \"many\"}", "Count", "must be a whole number"},
		{"half a number", "{\"Kind\": \"x\",\n\"Count\": 1.5}", "Count", "must be a whole number"},
		{"negative", "{\"Kind\": \"x\",\n\"Count\": \"-1\"}", "Count", "must not be negative"},
		{"no boolean", "{\"Kind\": \"x\",\n\"Flag\": \"maybe\"}", "Flag", "must be true or false"},
		{"duration without unit", "{\"Kind\": \"x\",\n\"request_timeout\": \"5\"}", "request_timeout", "is not a duration"},
		{"two objects for one", "{\"Kind\": \"x\",\n\"inner_part\": [{}, {}]}", "inner_part", "must be an object, not a list"},
		{"list of lists", "{\"Kind\": \"x\",\n\"inner_part\": [[{}]]}", "inner_part", "must be an object, not a list"},
		{"refused", "{\"Kind\": \"x\",\n\"old\": {\"a\": 1}}", "old", "it is old"},
		{"meaningless", "{\"Kind\": \"x\",\n\"idle\": true}", "idle", "it does nothing"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, doc, _ := decodeLoosely(t, test.text)
			if len(doc.Problems) != 1 {
				t.Fatalf("problems: %v", doc.Problems)
			}
			p := doc.Problems[0]
			if p.Line != 2 || !strings.HasSuffix(p.Path, test.path) || !strings.Contains(p.Message, test.message) {
				t.Errorf("%d: %s: %s, want 2: %s: %s", p.Line, p.Path, p.Message, test.path, test.message)
			}
		})
	}
}

// Reports name fields as the document spells them, and find them in lists and objects that stand for one another.
func TestLoosen_FindsFieldsInAnySpelling(t *testing.T) {
	doc := yamldoc.Parse([]byte("{\"kind\": \"x\",\n\"routes\": {\n\"match\": [{\n\"path_exact\": 1}]}}"))[0][0]
	doc.Loosen()
	doc.Errorf("Routes[0].Match.PathExact", "wrong")
	doc.Errorf("Routes[0].Destination", "missing")
	if p := doc.Problems[0]; p.Line != 4 || p.Path != "routes[0].match.path_exact" {
		t.Errorf("%d: %s", p.Line, p.Path)
	}
	if p := doc.Problems[1]; p.Line != 2 || p.Path != "routes[0].Destination" {
		t.Errorf("%d: %s", p.Line, p.Path)
	}
}

// JSON has escapes that YAML does not have.
func TestParse_EscapesOfJSON(t *testing.T) {
	got, doc, ok := decodeLoosely(t, "{\n\t\"kind\": \"a\\/\\\\/b\\ud83d\\uDE00\\u0041\\ud800\\n\",\n\t\"Names\": [\"\\\"\\/\"]\n}")
	if !ok || got.Kind != "a/\\/b😀A\uFFFD\n" || got.Names[0] != `"/` {
		t.Errorf("read %q, %q: %v", got.Kind, got.Names, doc.Problems)
	}
}
