package smi_test

import (
	"slices"
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/smi"
	"github.com/nosidecar/mesh/policy/route"
)

func TestWeights(t *testing.T) {
	tests := []struct {
		name    string
		weights []string
		want    []int
	}{
		{"percent", []string{"90", "10"}, []int{90, 10}},
		{"one", []string{"7"}, []int{7}},
		{"zero", []string{"0", "5"}, []int{0, 5}},
		{"all zero", []string{"0", "0m"}, nil},
		{"thousandths", []string{"900m", "100m"}, []int{9, 1}},
		{"mixed", []string{"1", "500m"}, []int{2, 1}},
		{"strings", []string{`"90"`, `"1e1"`}, []int{90, 10}},
		{"suffixes", []string{"1k", "1Ki"}, []int{1000, 1024}},
		{"fractions", []string{"0.1", ".3"}, []int{1, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			text := "apiVersion: split.smi-spec.io/v1alpha1\nkind: TrafficSplit\nmetadata: {name: a}\nspec:\n  service: a\n  backends:\n"
			for i, w := range tt.weights {
				text += "  - {service: b" + string(rune('0'+i)) + ", weight: " + w + "}\n"
			}
			doc := yamldoc.Parse([]byte(text))[0][0]
			var ts smi.TrafficSplit
			if new(yamldoc.Decoder).Decode(doc, &ts) {
				ts.Check(doc)
			}
			if doc.Failed() {
				t.Fatal(doc.Problems)
			}
			got, ok := ts.Weights()
			if !slices.Equal(got, tt.want) || ok != (tt.want != nil) {
				t.Errorf("Weights() = %v, %v, want %v", got, ok, tt.want)
			}
		})
	}
}

func TestRoutes(t *testing.T) {
	const text = `
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: a}
spec:
  matches:
  - {name: prefix, pathRegex: "/api", methods: [GET, HEAD]}
  - {name: headers, headers: {x-a: "1.*", x-b: "^2$"}}
  - {name: any method, pathRegex: "/any$", methods: ["*", GET]}
`
	doc := yamldoc.Parse([]byte(text))[0][0]
	var g smi.HTTPRouteGroup
	if new(yamldoc.Decoder).Decode(doc, &g) {
		g.Check(doc)
	}
	if doc.Failed() {
		t.Fatal(doc.Problems)
	}
	table, err := route.NewTable([]route.Route{{Matches: g.Routes(), Destinations: make([]route.Destination, 1)}})
	if err != nil {
		t.Fatal(err)
	}
	header := func(a, b string) map[string][]string { return map[string][]string{"X-A": {a}, "X-B": {b}} }
	tests := []struct {
		method, path string
		header       map[string][]string
		want         bool
	}{
		{"GET", "/api", nil, true},
		{"HEAD", "/api/users", nil, true},
		{"POST", "/api", nil, false},
		{"GET", "/x/api", nil, false},
		{"POST", "/", header("12", "2"), true},
		{"POST", "/", header("2", "2"), false},
		{"POST", "/", header("1", "22"), false},
		{"POST", "/", map[string][]string{"X-A": {"1"}}, false},
		{"DELETE", "/any", nil, true},
		{"DELETE", "/any/more", nil, false},
	}
	for _, tt := range tests {
		r := route.Request{Method: tt.method, Path: tt.path, Header: tt.header}
		if _, _, got := table.Match(&r); got != tt.want {
			t.Errorf("%s %s %v: %v, want %v", tt.method, tt.path, tt.header, got, tt.want)
		}
	}
}
