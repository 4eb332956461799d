package yamldoc_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

type route struct {
	Name    string            `yaml:"name,required"`
	Timeout yamldoc.Duration  `yaml:"timeout"`
	Retries *retries          `yaml:"retries"`
	Labels  map[string]string `yaml:"labels"`
	Weight  *int32            `yaml:"weight"`
	Percent float64           `yaml:"percent"`
	Port    uint32            `yaml:"port"`
	Body    []byte            `yaml:"body"`
	Exact   string            `yaml:"exact" oneof:"match"`
	Prefix  string            `yaml:"prefix" oneof:"match"`
	Level   string            `yaml:"level" enum:"DEFAULT,UPGRADE"`
	Enabled *bool             `yaml:"enabled,nullable"`
	Tunnel  yamldoc.Any       `yaml:"tunnel" mesh:"refused: tunnels are not enforced"`
	Gateway string            `yaml:"gateway" mesh:"meaningless: there are no gateways in-process"`
	UID     string            `yaml:"uid" mesh:"unused: Kubernetes keeps it"`
}

type retries struct {
	PerTryTimeout yamldoc.Duration `yaml:"perTryTimeout"`
	Codes         []uint32         `yaml:"codes"`
	Deep          *retries         `yaml:"deep"`
}

type object struct {
	Kind string `yaml:"kind"`
	Spec struct {
		HTTP []route `yaml:"http"`
		Name string  `yaml:"name"`
	} `yaml:"spec"`
}

// read decodes all documents of a stream and renders the problems, one a line.
func read(data string) (objects []object, problems string) {
	var dec yamldoc.Decoder
	var b strings.Builder
	for _, doc := range yamldoc.Parse([]byte(data))[0] {
		var o object
		dec.Decode(doc, &o)
		objects = append(objects, o)
		for _, p := range doc.Problems {
			severity := "error"
			if p.Warning {
				severity = "warning"
			}
			fmt.Fprintf(&b, "%d: %s: %s: %s\n", p.Line, p.Path, severity, p.Message)
		}
	}
	return objects, b.String()
}

func TestDecode(t *testing.T) {
	objects, problems := read(`
kind: Thing
spec:
  http:
  - name: a
    timeout: 1h30m
    retries: {perTryTimeout: 0.5s, codes: [503, 504]}
    labels: {app.kubernetes.io/name: "yes"}
    weight: 0
    percent: 0.1
    port: 8080
    body: aGk=
    prefix: ""
    level: UPGRADE
    enabled: null
    uid: 42-x
  - {name: 2024-01-01}
`)
	if problems != "" {
		t.Fatalf("problems:\n%s", problems)
	}
	got := objects[0].Spec.HTTP[0]
	zero := int32(0)
	want := route{
		Name:    "a",
		Timeout: yamldoc.Duration{Duration: 90 * time.Minute, Set: true},
		Retries: &retries{
			PerTryTimeout: yamldoc.Duration{Duration: 500 * time.Millisecond, Set: true},
			Codes:         []uint32{503, 504},
		},
		Labels: map[string]string{"app.kubernetes.io/name": "yes"},
		Weight: &zero, Percent: 0.1, Port: 8080, Body: []byte("hi"), Level: "UPGRADE", UID: "42-x",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("decoded %+v\nwant    %+v", got, want)
	}
	if name := objects[0].Spec.HTTP[1].Name; name != "2024-01-01" {
		t.Errorf("name = %q, want the text of the timestamp", name)
	}
}

func TestProblems(t *testing.T) {
	const in = "kind: Thing\nspec:\n  http:\n  - name: a\n"
	tests := []struct {
		name string
		yaml string // appended to the first route, at its indentation
		want string
	}{
		{"unknown field", "retris: {}", `5: spec.http[0].retris: error: unknown field "retris", did you mean "retries"?`},
		{"of another object", "codes: [1]", `5: spec.http[0].codes: error: unknown field "codes": it belongs in spec.http[].retries`},
		{"an object of another object", "deep: {}", `5: spec.http[0].deep: error: unknown field "deep": it belongs in spec.http[].retries`},
		{"of an object above", "retries:\n      weight: 1", `6: spec.http[0].retries.weight: error: unknown field "weight": it belongs in spec.http[]`},
		{"of several objects", "retries:\n      name: a", `6: spec.http[0].retries.name: error: unknown field "name"`},
		{"refused elsewhere", "retries:\n      tunnel: a", `6: spec.http[0].retries.tunnel: error: unknown field "tunnel"`},
		{"far from any field", "zzzzzz: 1", `5: spec.http[0].zzzzzz: error: unknown field "zzzzzz"`},
		{"snake case", "retries:\n      per_try_timeout: 1s",
			`6: spec.http[0].retries.per_try_timeout: error: unknown field "per_try_timeout", did you mean "perTryTimeout"?`},
		{"wrong type", "timeout: 10", `5: spec.http[0].timeout: error: must be a duration with a unit: write "10s" for seconds`},
		{"bad duration", "timeout: 10 seconds",
			`5: spec.http[0].timeout: error: "10 seconds" is not a duration: write it like 100ms, 1.5s or 1h30m`},
		{"number for string", "exact: 1.10", `5: spec.http[0].exact: error: must be a string, not the number 1.10: quote it`},
		{"YAML 1.1 boolean", "exact: on", `5: spec.http[0].exact: error: on is a boolean to Kubernetes: quote it`},
		{"string for number", `weight: "1"`, `5: spec.http[0].weight: error: must be a whole number, not the string "1": remove the quotes`},
		{"string for fraction", `percent: "1.5"`, `5: spec.http[0].percent: error: must be a number, not the string "1.5": remove the quotes`},
		{"string for boolean", `enabled: "true"`, `5: spec.http[0].enabled: error: must be true or false, not the string "true": remove the quotes`},
		{"no number in quotes", `weight: "one"`, `5: spec.http[0].weight: error: must be a whole number, not the string "one"`},
		{"template", "weight: {{ .Values.weight }}",
			`5: spec.http[0].weight: error: must be a whole number, not {{ }} of a template: render it first, as helm template does`},
		{"template in quotes", `weight: "{{ .Values.weight }}"`,
			`5: spec.http[0].weight: error: must be a whole number, not {{ }} of a template: render it first, as helm template does`},
		{"template for an object", "retries: {{ toYaml .Values.retries }}",
			`5: spec.http[0].retries: error: a key must be a string, not an object, as in {{ }} of a template: render it first, as helm template does`},
		{"template for a list", "retries: {codes: {{ .Values.codes }}}",
			`5: spec.http[0].retries.codes: error: must be a list, not {{ }} of a template: render it first, as helm template does`},
		{"overflow", "weight: 4294967296", `5: spec.http[0].weight: error: 4294967296 is out of range`},
		{"hexadecimal", "weight: 0x10", `5: spec.http[0].weight: error: 0x10 must be written in decimal`},
		{"octal", "weight: 010", `5: spec.http[0].weight: error: 010 must be written in decimal`},
		{"negative", "port: -1", `5: spec.http[0].port: error: must not be negative: -1`},
		{"not finite", "percent: .inf", `5: spec.http[0].percent: error: .inf must be a finite number, written in decimal`},
		{"not a boolean", "enabled: 1", `5: spec.http[0].enabled: error: must be true or false, not the number 1`},
		{"null", "retries:", ""},
		{"null that is refused", "tunnel: ~", ""},
		{"null twice", "retries:\n    retries:", `6: spec.http[0].retries: error: set twice, first in line 5: remove one`},
		{"zeros", "weight: 00", ""},
		{"null element", "retries: {codes: [503, ~]}",
			`5: spec.http[0].retries.codes[1]: error: has no value: give it one or remove it`},
		{"list for object", "retries: []", `5: spec.http[0].retries: error: must be an object, not a list`},
		{"string for object", "retries: 2s", `5: spec.http[0].retries: error: must be an object with perTryTimeout, codes or deep, not the string "2s"`},
		{"object for list", "retries: {codes: {}}",
			`5: spec.http[0].retries.codes: error: must be a list, not an object: start each element with "- "`},
		{"duplicate key", "timeout: 1s\n    timeout: 2s",
			`6: spec.http[0].timeout: error: set twice, first in line 5: remove one`},
		{"duplicate map key", "labels:\n      a.b: x\n      a.b: y",
			`7: spec.http[0].labels["a.b"]: error: set twice, first in line 6: remove one`},
		{"enum", "level: upgrade",
			`5: spec.http[0].level: error: "upgrade" is not one of DEFAULT, UPGRADE, did you mean "UPGRADE"?`},
		{"oneof", "exact: a\n    prefix: b",
			`6: spec.http[0]: error: exact and prefix exclude each other: set only one of them`},
		{"required", "retries: {}\n  - {}", `6: spec.http[1].name: error: missing: it is required`},
		{"refused", "tunnel: {x: 1}", `5: spec.http[0].tunnel: error: tunnels are not enforced`},
		{"meaningless", "gateway: a", `5: spec.http[0].gateway: warning: there are no gateways in-process`},
		{"base64", "body: '*'", `5: spec.http[0].body: error: not valid base64`},
		{"merge key", "labels: {<<: {a: b}}",
			`5: spec.http[0].labels: error: merge keys (<<) are not read: write the fields out`},
		{"complex key", "? [a]\n    : b", `5: spec.http[0]: error: a key must be a string, not a list`},
		{"own tag", "exact: !x y", `5: spec.http[0].exact: error: must be a string, not a value tagged !x`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, problems := read(in + "    " + tt.yaml + "\n")
			if got := strings.TrimSpace(problems); got != tt.want {
				t.Errorf("problems:\n%s\nwant:\n%s", got, tt.want)
			}
		})
	}
}

func TestParse_Stream(t *testing.T) {
	tests := []struct {
		name, yaml, want string
		documents        int
	}{
		{"broken document hides none", "kind: [\n---\nkid: x\n---\nkind: y\n...\nspec: {htp: []}\n",
			"1: : error: not valid YAML: did not find expected node content\n" +
				"3: kid: error: unknown field \"kid\", did you mean \"kind\"?\n" +
				"7: spec.htp: error: unknown field \"htp\", did you mean \"http\"?\n", 4},
		{"place of the mistake", "kind: x\nspec:\n  http: [\n    {name: a},\n    {name: b}]\nmeta:\n  name: x\n kind: y\n",
			"8: : error: not valid YAML: did not find expected key\n", 1},
		{"unclosed bracket", "kind: x\nspec: {http: [{name: a}\nmeta: x\n",
			"2: : error: not valid YAML: did not find expected ',' or ']'\n", 1},
		{"tab", "kind: x\nspec:\n\thttp: []\n",
			"3: : error: not valid YAML: found character that cannot start any token: indent it with spaces, not with a tab\n", 1},
		{"tab after spaces", "kind: x\nspec:\n  http:\n  \t- name: a\n",
			"4: : error: not valid YAML: found character that cannot start any token: indent it with spaces, not with a tab\n", 1},
		{"template", "{{- if .Values.on }}\nkind: x\n{{- end }}\n",
			"1: : error: not valid YAML: did not find expected node content: the line has {{ }} of a template: render it first, as helm template does\n", 1},
		{"template in a name", "kind: x\nmeta: {name: {{ .Release.Name }}-x}\n",
			"2: : error: not valid YAML: did not find expected ',' or '}': the line has {{ }} of a template: render it first, as helm template does\n", 1},
		{"anchor of another document", "kind: &k x\n---\nkind: *k\n",
			"3: : error: not valid YAML: unknown anchor 'k' referenced: define the anchor before it, in the same document\n", 2},
		{"Latin-1", "kind: x\nname: caf\xE9 1\n",
			"2: : error: not valid YAML: invalid trailing UTF-8 octet: save the file as UTF-8 text\n", 1},
		{"merge conflict", "<<<<<<< HEAD\nkind: x\n=======\nkind: y\n>>>>>>> main\n",
			"2: : error: not valid YAML: mapping values are not allowed in this context: the file has lines of a merge conflict, such as <<<<<<<: resolve it\n", 1},
		{"two dashes", "kind: x\n--\nkind: y\n",
			"2: : error: not valid YAML: could not find expected ':': the line between two documents is ---, without a space before it\n", 1},
		{"indented separator", "kind: x\nspec: {}\n ---\nkind: y\n",
			"3: : error: not valid YAML: did not find expected key: the line between two documents is ---, without a space before it\n", 1},
		{"two documents of JSON", "{\"kind\": \"x\"}\n{\"kind\": \"y\"}\n",
			"2: : error: a second document begins here without a line --- of its own, which ends with LF or CRLF: add one\n", 1},
		{"empty documents", "---\n# nothing\n---\n\n---\nkind: x\n---\n", "", 1},
		{"CRLF", "---\r\nkind: x\r\n---\r\nkid: x\r\n",
			"4: kid: error: unknown field \"kid\", did you mean \"kind\"?\n", 2},
		{"content on the marker line", "--- {kind: x}\n--- {kid: x}\n",
			"2: kid: error: unknown field \"kid\", did you mean \"kind\"?\n", 2},
		{"marker inside a word", "kind: x\n---x: y\n", "2: ---x: error: unknown field \"---x\"\n", 1},
		{"version directive", "%YAML 1.2\n---\nkind: x\n", "", 1},
		{"not an object", "- kind: x\n", "1: : error: must be an object with apiVersion and kind, not a list\n", 1},
		{"byte order mark", "\uFEFFkind: x\n", "", 1},
		{"UTF-16", "\xFF\xFEk\x00", "1: : error: UTF-16 text: save the file as UTF-8\n", 1},
		{"lone CR", "kind: x\r---\rkid: y\r",
			"2: : error: a second document begins here without a line --- of its own, which ends with LF or CRLF: add one\n", 1},
		{"nothing", "", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			objects, problems := read(tt.yaml)
			if problems != tt.want {
				t.Errorf("problems:\n%s\nwant:\n%s", problems, tt.want)
			}
			if len(objects) != tt.documents {
				t.Errorf("%d documents, want %d", len(objects), tt.documents)
			}
		})
	}
}

func TestParse_Bounds(t *testing.T) {
	bomb := "kind: x\na: &a [1,1,1,1,1,1,1,1,1,1]\n"
	for c := 'b'; c < 'k'; c++ {
		bomb += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.Repeat(fmt.Sprintf("*%c,", c-1), 10))
	}
	type bombed struct {
		Kind string        `yaml:"kind"`
		A    [][][][]int32 `yaml:"d"`
	}
	tests := []struct {
		name, yaml, want string
		into             any
	}{
		{"document", "kind: " + strings.Repeat("x", 2<<20), "larger than 1024 KiB", new(object)},
		{"key", "? " + strings.Repeat("x", 2000) + "\n: 1", "a key is longer than 1024 bytes", new(object)},
		{"depth", "spec:\n  http:\n  - retries: " + strings.Repeat("{deep: ", 100) + strings.Repeat("}", 100),
			"nested more than 64 levels deep", new(object)},
		{"cyclic alias", "spec:\n  http:\n  - {name: a, retries: &r {deep: *r}}", "nested more than 64 levels deep", new(object)},
		{"alias bomb", strings.Replace(bomb, "&d [", "&d [[[[1]]],", 1), "aliases expand to more than 10000 values", new(bombed)},
		{"list", "spec: {http: [" + strings.Repeat("{},", 20_000) + "]}", "more than 16384 elements", new(object)},
		{"problems", "spec: {http: [" + strings.Repeat("{},", 200) + "]}", "too many problems", new(object)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			doc := yamldoc.Parse([]byte(tt.yaml))[0][0]
			var dec yamldoc.Decoder
			if dec.Decode(doc, tt.into) {
				t.Fatal("Decode succeeded")
			}
			for _, p := range doc.Problems {
				if strings.Contains(p.Message, tt.want) {
					return
				}
			}
			t.Errorf("no problem says %q: %v", tt.want, doc.Problems)
		})
	}
}

func TestDocument_LineOf(t *testing.T) {
	doc := yamldoc.Parse([]byte("# comment\n---\nspec:\n  http:\n  - name: a\n    labels:\n      a.b/c: x\n  - name: b\n"))[0][0]
	tests := []struct {
		path string
		want int
	}{
		{"", 3},
		{"spec", 3},
		{"spec.http[0].name", 5},
		{`spec.http[0].labels["a.b/c"]`, 7},
		{"spec.http[1]", 8},
		{"spec.http[1].retries.attempts", 8},
		{"spec.http[7]", 4},
		{"metadata.name", 3},
		{"spec.http[x][", 4},
	}
	for _, tt := range tests {
		if got := doc.LineOf(tt.path); got != tt.want {
			t.Errorf("LineOf(%q) = %d, want %d", tt.path, got, tt.want)
		}
	}
	if got := doc.Text("spec.http[1].name"); got != "b" {
		t.Errorf("Text = %q, want b", got)
	}
	if got := doc.Text("spec.http"); got != "" {
		t.Errorf("Text of a list = %q, want none", got)
	}
}

// TestDocument_ItemsOfOneKind: what an element of a list of one kind omits follows from the list, as with kubectl.
func TestDocument_ItemsOfOneKind(t *testing.T) {
	doc := yamldoc.Parse([]byte("kind: ThingList\napiVersion: a/v1\nitems:\n- {x: 1}\n- {kind: Other}\n- {apiVersion: b/v1}\n- {kind: }\n- &x {y: 2}\n- *x\n- 5\n"))[0][0]
	items := doc.Items("items")
	for i, want := range []struct{ kind, version, x string }{
		{"Thing", "a/v1", "1"}, {"Other", "", ""}, {"Thing", "b/v1", ""}, {"Thing", "a/v1", ""}, {"Thing", "a/v1", ""}, {"Thing", "a/v1", ""}, {},
	} {
		kept := items[i].Kept().Restored(items[i].Digest()) // it is parsed again
		for _, d := range []*yamldoc.Document{items[i], kept} {
			if kind, version, x := d.Text("kind"), d.Text("apiVersion"), d.Text("x"); kind != want.kind || version != want.version || x != want.x {
				t.Errorf("item %d: kind %q, apiVersion %q, x %q, want %+v", i, kind, version, x, want)
			}
		}
		if _, own := items[i].Sum(); own != (i != 5) {
			t.Errorf("item %d has a sum of its own: %v", i, own)
		}
	}
	other := yamldoc.Parse([]byte("kind: ThatList\napiVersion: a/v1\nitems: [{x: 1}]"))[0][0].Items("items")[0]
	a, _ := items[0].Sum()
	if b, _ := other.Sum(); a == b {
		t.Error("equal elements of lists of different kinds have the same sum")
	}
	if items := yamldoc.Parse([]byte("kind: List\napiVersion: v1\nitems: [{x: 1}]"))[0][0].Items("items"); items[0].Text("kind") != "" {
		t.Error("an item of a List has got a kind")
	}
	if !yamldoc.Empty([]byte("{kind: ThingList, items: []}")) || yamldoc.Empty([]byte("{kind: ThingList, items: [{}]}")) || yamldoc.Empty([]byte("{kind: ThingList}")) {
		t.Error("only a list without items is empty")
	}
}

func TestDocument_Items(t *testing.T) {
	doc := yamldoc.Parse([]byte("kind: List\nitems:\n- kind: a\n- 5\n- kid: b\n"))[0][0]
	items, ok := doc.Items("items"), doc.HasItems("items")
	if len(items) != 3 || !ok {
		t.Fatalf("%d items, %v, want 3", len(items), ok)
	}
	if items := doc.Items("kind"); items != nil || doc.HasItems("kind") {
		t.Error("items of a string")
	}
	var dec yamldoc.Decoder
	for i, want := range []struct {
		ok   bool
		line int
	}{{true, 3}, {false, 4}, {false, 5}} {
		if ok := dec.Decode(items[i], new(object)); ok != want.ok || items[i].Line != want.line {
			t.Errorf("item %d: %v at line %d, want %v at %d", i, ok, items[i].Line, want.ok, want.line)
		}
	}
}

func TestFields(t *testing.T) {
	type inner struct {
		A string      `yaml:"a" mesh:"refused: no A"`
		B yamldoc.Any `yaml:"b"`
	}
	type outer struct {
		List  []*inner         `yaml:"list"`
		Map   map[string]inner `yaml:"map" mesh:"meaningless: no map"`
		Bytes []byte           `yaml:"bytes"`
		Wait  yamldoc.Duration `yaml:"wait"`
		skip  int
	}
	_ = outer{}.skip
	want := []yamldoc.Field{
		{Path: "list", State: yamldoc.Enforced},
		{Path: "list[].a", State: yamldoc.Refused, Reason: "no A"},
		{Path: "list[].b", State: yamldoc.Enforced},
		{Path: "map", State: yamldoc.Meaningless, Reason: "no map"},
		{Path: "map{}.a", State: yamldoc.Refused, Reason: "no A"},
		{Path: "map{}.b", State: yamldoc.Enforced},
		{Path: "bytes", State: yamldoc.Enforced},
		{Path: "wait", State: yamldoc.Enforced},
	}
	if got := yamldoc.Fields(reflect.TypeFor[outer]()); !reflect.DeepEqual(got, want) {
		t.Errorf("Fields =\n%v\nwant\n%v", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("kind: Thing\nspec:\n  http:\n  - {name: a, timeout: 1s, labels: {a.b: c}}\n---\nkind: [\n")
	f.Add("a: &a [*a]\n<<: *a\n? {x: y}\n: !!binary aGk=\n...\n%YAML 1.2\n---\n|\n ---\n")
	f.Add("spec: {http: [{retries: &r {deep: *r, codes: [1, 0x2, ~, .nan]}}]}")
	f.Fuzz(func(t *testing.T, data string) {
		lines := 1 + strings.Count(data, "\n") + strings.Count(data, "\r") + strings.Count(data, "\u0085") +
			strings.Count(data, "\u2028") + strings.Count(data, "\u2029")
		var dec yamldoc.Decoder
		for _, doc := range yamldoc.Parse([]byte(data))[0] {
			ok := dec.Decode(doc, new(object))
			items := doc.Items("items")
			for _, item := range items {
				dec.Decode(item, new(object))
			}
			for _, p := range doc.Problems {
				if p.Line < 1 || p.Line > lines+1 {
					t.Errorf("line %d of %d: %+v", p.Line, lines, p)
				}
				if ok && !p.Warning && p.Message != "tunnels are not enforced" {
					t.Errorf("decoded in spite of %+v", p)
				}
				if !p.Warning && !doc.Failed() {
					t.Errorf("not failed in spite of %+v", p)
				}
			}
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	data := []byte(`
kind: Thing
spec:
  http:
  - name: a
    timeout: 10s
    retries: {perTryTimeout: 2s, codes: [503, 504]}
    labels: {app: x, version: v1}
  - name: b
    exact: y
`)
	b.Run("parse", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			yamldoc.Parse(data)
		}
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		var dec yamldoc.Decoder
		doc := yamldoc.Parse(data)[0][0]
		for b.Loop() {
			dec.Decode(doc, new(object))
		}
	})
}

func TestFields_TypeThatContainsItself(t *testing.T) {
	type condition struct {
		Name string       `yaml:"name"`
		All  []*condition `yaml:"all"`
	}
	var paths []string
	for _, f := range yamldoc.Fields(reflect.TypeFor[condition]()) {
		paths = append(paths, f.Path)
	}
	if got := strings.Join(paths, " "); got != "name all" {
		t.Errorf("fields %q, want name and all", got)
	}
}

func TestParent(t *testing.T) {
	for path, want := range map[string]string{
		"": "", "spec": "", "spec.rules": "spec", "spec.rules[0]": "spec.rules", "spec.rules[0].form": "spec.rules[0]", `spec.labels["a.b"]`: "spec.labels",
	} {
		if got := yamldoc.Parent(path); got != want {
			t.Errorf("Parent(%q) = %q, want %q", path, got, want)
		}
	}
}
