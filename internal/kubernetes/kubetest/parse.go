package kubetest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// parse reads documents in YAML or JSON.
func parse(text string) (documents []map[string]any) {
	d := yaml.NewDecoder(strings.NewReader(text))
	for {
		var value any
		err := d.Decode(&value)
		if errors.Is(err, io.EOF) {
			return documents
		}
		if err != nil {
			panic(fmt.Sprintf("kubetest: %v", err))
		}
		if value == nil {
			continue
		}
		data, err := json.Marshal(value)
		if err != nil {
			panic(fmt.Sprintf("kubetest: %v", err))
		}
		var fields map[string]any
		if err := json.Unmarshal(data, &fields); err != nil {
			panic(fmt.Sprintf("kubetest: %v", err))
		}
		if _, ok := fields["metadata"].(map[string]any); !ok {
			panic("kubetest: a document without metadata")
		}
		documents = append(documents, fields)
	}
}

func setDefault(fields map[string]any, name string, value any) {
	if _, ok := fields[name]; !ok {
		fields[name] = value
	}
}

// differ reports whether two objects differ in anything but some fields.
func differ(a, b map[string]any, except ...string) bool {
	without := func(fields map[string]any) map[string]any {
		kept := make(map[string]any)
		for name, value := range fields {
			if !slices.Contains(except, name) {
				kept[name] = value
			}
		}
		return kept
	}
	return !reflect.DeepEqual(without(a), without(b))
}

// selector selects objects by labels and fields.
type selector func(o *object) bool

// selectorOf reads what a request selects.
func selectorOf(labels, fields string) (selector, error) {
	var all []selector
	for _, term := range terms(labels) {
		s, err := labelTerm(term)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	for _, term := range terms(fields) {
		path, want, ok := strings.Cut(term, "=")
		if !ok {
			return nil, fmt.Errorf("unable to parse field selector %q", term)
		}
		negated := strings.HasSuffix(path, "!")
		path, want = strings.TrimRight(path, "!"), strings.TrimPrefix(want, "=")
		all = append(all, func(o *object) bool { return (o.field(path) == want) != negated })
	}
	return func(o *object) bool {
		return !slices.ContainsFunc(all, func(s selector) bool { return !s(o) })
	}, nil
}

// terms splits a selector at commas outside of parentheses.
func terms(text string) (split []string) {
	depth, from := 0, 0
	for i, r := range text + "," {
		switch r {
		case '(':
			depth++
		case ')':
			depth--
		case ',':
			if depth == 0 {
				if term := strings.TrimSpace(text[from:i]); term != "" {
					split = append(split, term)
				}
				from = i + 1
			}
		}
	}
	return split
}

func labelTerm(term string) (selector, error) {
	if name, values, ok := strings.Cut(term, "("); ok {
		words := strings.Fields(name)
		if len(words) != 2 || words[1] != "in" && words[1] != "notin" {
			return nil, fmt.Errorf("unable to parse label selector %q", term)
		}
		set := strings.FieldsFunc(strings.TrimSuffix(values, ")"), func(r rune) bool { return r == ',' || r == ' ' })
		return func(o *object) bool {
			value, ok := o.labels[words[0]]
			return (ok && slices.Contains(set, value)) == (words[1] == "in")
		}, nil
	}
	if name, value, ok := strings.Cut(term, "!="); ok {
		return func(o *object) bool { return o.labels[strings.TrimSpace(name)] != strings.TrimSpace(value) }, nil
	}
	if name, value, ok := strings.Cut(term, "="); ok {
		value = strings.TrimSpace(strings.TrimPrefix(value, "="))
		return func(o *object) bool {
			have, ok := o.labels[strings.TrimSpace(name)]
			return ok && have == value
		}, nil
	}
	name, absent := strings.CutPrefix(term, "!")
	return func(o *object) bool {
		_, ok := o.labels[name]
		return ok != absent
	}, nil
}

// field returns a field as text, such as that of "metadata.name".
func (o *object) field(path string) string {
	var value any = o.fields
	for name := range strings.SplitSeq(path, ".") {
		fields, _ := value.(map[string]any)
		value = fields[name]
	}
	if value == nil {
		return ""
	}
	return fmt.Sprint(value)
}
