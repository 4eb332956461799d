package yamldoc_test

import (
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

func TestQuantity(t *testing.T) {
	tests := []struct {
		text  string
		milli int64
		whole bool
		ok    bool
	}{
		{"90", 90_000, true, true},
		{"0", 0, true, true},
		{`"90"`, 90_000, false, true},
		{"-3", -3_000, true, true},
		{"1.5", 1_500, false, true},
		{"500m", 500, false, true},
		{"1u", 1, false, true},
		{"2k", 2_000_000, false, true},
		{"2Ki", 2_048_000, false, true},
		{"1e3", 1_000_000, false, true},
		{`"2E2"`, 200_000, false, true},
		{"090", 0, false, false},
		{"0x10", 0, false, false},
		{"1e99", 0, false, false},
		{"1e3m", 0, false, false},
		{"9999999999999", 0, false, false},
		{"1 k", 0, false, false},
		{"1/2", 0, false, false},
		{"m", 0, false, false},
		{"1K", 0, false, false},
		{"1mm", 0, false, false},
		{`""`, 0, false, false},
		{"true", 0, false, false},
		{"[1]", 0, false, false},
		{".inf", 0, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			doc := yamldoc.Parse([]byte("kind: a\nweight: " + tt.text))[0][0]
			var into struct {
				Kind   string           `yaml:"kind"`
				Weight yamldoc.Quantity `yaml:"weight"`
			}
			ok := new(yamldoc.Decoder).Decode(doc, &into)
			want := yamldoc.Quantity{Milli: tt.milli, Whole: tt.whole, Set: tt.ok}
			if ok != tt.ok || into.Weight != want {
				t.Errorf("got %+v, %v: %v; want %+v", into.Weight, ok, doc.Problems, want)
			}
		})
	}
}

func TestDecode_Single(t *testing.T) {
	type into struct {
		Headers []map[string]string `yaml:"headers,single"`
		Lists   [][]string          `yaml:"lists,single"`
	}
	for text, want := range map[string]int{
		"headers: {a: b}":                 1,
		"headers: [{a: b}, {c: d}]":       2,
		"headers: [[{a: b}]]":             -1,
		"headers: a":                      -1,
		"headers: {a: 1}":                 -1,
		"headers: []\nlists: [[a], [b]]":  0,
		"headers: []\nlists: [{a: b}, 1]": -1,
	} {
		doc := yamldoc.Parse([]byte(text))[0][0]
		var v into
		if ok := new(yamldoc.Decoder).Decode(doc, &v); ok != (want >= 0) || ok && len(v.Headers) != want {
			t.Errorf("%s: %v, %+v, %v", text, ok, v, doc.Problems)
		}
	}
}

func TestMetadata(t *testing.T) {
	type object struct {
		Metadata yamldoc.Metadata `yaml:"metadata,required"`
	}
	for text, want := range map[string]bool{
		"metadata: {name: a.b-c.1, namespace: a-b}": true,
		"metadata: {name: A}":                       false,
		"metadata: {name: a..b}":                    false,
		"metadata: {name: a, namespace: a.b}":       false,
		"metadata: {name: a-}":                      false,
	} {
		doc := yamldoc.Parse([]byte(text))[0][0]
		var v object
		if !new(yamldoc.Decoder).Decode(doc, &v) {
			t.Fatal(doc.Problems)
		}
		if v.Metadata.Check(doc); doc.Failed() == want {
			t.Errorf("%s: %v", text, doc.Problems)
		}
	}
}
