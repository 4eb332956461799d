package yamldoc_test

import (
	"reflect"
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// TestPack packs documents and unpacks them into what they were decoded into before.
func TestPack(t *testing.T) {
	type inner struct {
		Text  string            `yaml:"text"`
		Count int               `yaml:"count"`
		Share float64           `yaml:"share"`
		On    *bool             `yaml:"on"`
		Wait  yamldoc.Duration  `yaml:"wait"`
		Part  yamldoc.Quantity  `yaml:"part"`
		Raw   []byte            `yaml:"raw"`
		Names map[string]string `yaml:"names"`
		List  []inner           `yaml:"list"`
		Any   yamldoc.Any       `yaml:"any"`
	}
	var docs []*yamldoc.Document
	for _, text := range []string{
		"text: a\ncount: 7\nshare: 0.5\non: true\nwait: 1m30s\npart: 500m\nraw: aGVsbG8=\nnames: {a: b, \"7\": '8'}",
		"text: \"7\"\nlist:\n- {text: 'true'}\n- text: |\n    one\n    two\n- on: false\nany: [1, {a: b}]",
		"text: \"\\u00e4\\0\"\ncount: 9007199254740992",
		"{}",
		"text: !!str 7\n# comment\nlist: [{list: [{list: [{text: deep}]}]}]",
	} {
		docs = append(docs, yamldoc.Parse([]byte(text))[0]...)
	}
	words := yamldoc.NewWords(append(docs, docs...))
	for i, d := range docs {
		var want, got inner
		if !new(yamldoc.Decoder).Decode(d, &want) {
			t.Fatal(d.Problems)
		}
		packed := words.Pack(d)
		if packed == "" {
			t.Fatalf("document %d is not packed", i)
		}
		words.Unpack(packed, &got)
		if !reflect.DeepEqual(got, want) {
			t.Errorf("unpacked, document %d is %+v, want %+v", i, got, want)
		}
	}
	alias := yamldoc.Parse([]byte("names: &a {x: y}\nlist: [{names: *a}]"))[0][0]
	if packed := words.Pack(alias); packed != "" {
		t.Errorf("a document with an alias was packed: %q", packed)
	}
}
