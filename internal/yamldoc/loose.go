package yamldoc

import (
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Loosen makes paths find the fields of the document by names in any case, with or without underscores, and through lists with a single
// element. [Decoder.DecodeLoosely] calls it. It must also be called before problems are reported about a document that was decoded loosely
// earlier.
func (d *Document) Loosen() { d.loose = true }

// keyed returns a key as DecodeLoosely compares it.
func keyed(key string) string {
	return strings.ToLower(strings.ReplaceAll(key, "_", ""))
}

// spelledChild is child for a loose document. It also returns the key as it is written.
func spelledChild(node *yaml.Node, key string, index int) (line int, spelled string, value *yaml.Node) {
	if key == "" {
		switch {
		case node.Kind == yaml.SequenceNode && index >= 0 && index < len(node.Content):
			return node.Content[index].Line, "", node.Content[index]
		case node.Kind == yaml.MappingNode && index == 0: // a list of one, written as its element
			return node.Line, "", node
		}
		return 0, "", nil
	}
	objects := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		objects = node.Content
	}
	exact := func(name string) bool { return name == key }
	folded := func(name string) bool { return keyed(name) == keyed(key) }
	for _, same := range []func(string) bool{exact, folded} {
		for _, object := range objects {
			if object = target(object); object.Kind != yaml.MappingNode {
				continue
			}
			for i := 0; i+1 < len(object.Content); i += 2 {
				if same(object.Content[i].Value) {
					return object.Content[i].Line, object.Content[i].Value, object.Content[i+1]
				}
			}
		}
	}
	return 0, "", nil
}

// spelled returns a path with the keys as the document spells them, as far as they exist.
func (d *Document) spelled(path string) string {
	d.load()
	out := ""
	for node := d.root; path != ""; {
		key, index, rest := step(path)
		spelled := key
		if node != nil {
			if node = target(node); key != "" || index >= 0 {
				_, spelled, node = spelledChild(node, key, index)
			}
		}
		switch {
		case key == "":
			out = Index(out, index)
		case spelled == "" && strings.HasPrefix(out, "spec"): // of a Kubernetes object
			out = Key(out, camelCase(key))
		case spelled == "":
			out = Key(out, key)
		default:
			out = Key(out, spelled)
		}
		path = rest
	}
	return out
}

// camelCase returns the key of a config entry of Consul as its Kubernetes object has it: "PathPrefix" is pathPrefix there, and "HTTP" is http.
func camelCase(key string) string {
	if key == strings.ToUpper(key) {
		return strings.ToLower(key)
	}
	return strings.ToLower(key[:1]) + key[1:]
}

// loosen returns a node of the type of v for a node of another type. A node that cannot be converted is returned unchanged, for the error
// message.
func (w *walk) loosen(node *yaml.Node, v reflect.Value) *yaml.Node {
	t := v.Type()
	switch {
	case t == anyType || t == bytesType:
	case t.Kind() == reflect.Slice && node.Kind != yaml.SequenceNode:
		return &yaml.Node{Kind: yaml.SequenceNode, Line: node.Line, Content: []*yaml.Node{node}}
	case t.Kind() == reflect.Slice:
	case t.Kind() == reflect.Map && node.Kind == yaml.SequenceNode:
		return merged(node)
	case node.Kind == yaml.SequenceNode && len(node.Content) == 1: // an object, or a value, as a list of one
		if only := target(node.Content[0]); only.Kind != yaml.SequenceNode && !null(only) {
			return w.loosen(only, v)
		}
	case node.Kind == yaml.ScalarNode && t == durationType:
		return looseDuration(node)
	case node.Kind == yaml.ScalarNode && t.Kind() != reflect.Struct && t.Kind() != reflect.Map:
		return looseScalar(node, t)
	}
	return node
}

// isZero reports whether a value is a zero value: empty, or with zero values only.
func isZero(node *yaml.Node) bool {
	node = target(node)
	switch node.Kind {
	case yaml.ScalarNode:
		n, err := strconv.ParseFloat(node.Value, 64)
		return null(node) || node.Value == "" || err == nil && n == 0 || node.ShortTag() == "!!bool" && strings.EqualFold(node.Value, "false")
	case yaml.MappingNode:
		for i := 1; i < len(node.Content); i += 2 {
			if !isZero(node.Content[i]) {
				return false
			}
		}
		return true
	case yaml.SequenceNode:
		return !slices.ContainsFunc(node.Content, func(n *yaml.Node) bool { return !isZero(n) })
	}
	return false
}

// merged returns an object with the keys of all objects of a list. A key of two objects appears twice.
func merged(node *yaml.Node) *yaml.Node {
	whole := &yaml.Node{Kind: yaml.MappingNode, Line: node.Line}
	for _, element := range node.Content {
		if element = target(element); element.Kind != yaml.MappingNode {
			return node
		}
		whole.Content = append(whole.Content, element.Content...)
	}
	return whole
}

func looseDuration(node *yaml.Node) *yaml.Node {
	if tag := node.ShortTag(); tag == "!!int" || tag == "!!float" {
		n, err := strconv.ParseFloat(node.Value, 64)
		whole, failed := strconv.ParseInt(node.Value, 10, 64)
		switch {
		case failed == nil:
			return scalar(node, "!!str", time.Duration(whole).String())
		case err == nil && n == math.Trunc(n) && math.Abs(n) < 1<<63:
			return scalar(node, "!!str", time.Duration(n).String())
		}
	}
	return node
}

// looseScalar converts a scalar to a type, if possible.
func looseScalar(node *yaml.Node, t reflect.Type) *yaml.Node {
	tag := node.ShortTag()
	number := t.Kind() != reflect.String && t.Kind() != reflect.Bool
	switch {
	case t.Kind() == reflect.String && tag == "!!bool":
		if strings.EqualFold(node.Value, "true") {
			return scalar(node, "!!str", "1")
		}
		return scalar(node, "!!str", "0")
	case t.Kind() == reflect.String && (tag == "!!int" || tag == "!!float"):
		if n, err := strconv.ParseFloat(node.Value, 64); err == nil {
			return scalar(node, "!!str", strconv.FormatFloat(n, 'f', -1, 64))
		}
	case t.Kind() == reflect.String && node.Style == 0 && tag == "!!str":
		return scalar(node, "!!str", node.Value)
	case t.Kind() == reflect.Bool && (tag == "!!str" || tag == "!!int"):
		if b, err := strconv.ParseBool(node.Value); err == nil {
			return scalar(node, "!!bool", strconv.FormatBool(b))
		}
	case number && tag == "!!str":
		if _, err := strconv.ParseInt(node.Value, 10, 64); err == nil {
			return scalar(node, "!!int", node.Value)
		}
		if _, err := strconv.ParseFloat(node.Value, 64); err == nil {
			return scalar(node, "!!float", node.Value)
		}
	case number && t.Kind() != reflect.Float32 && t.Kind() != reflect.Float64 && tag == "!!float":
		if n, err := strconv.ParseFloat(node.Value, 64); err == nil && n == math.Trunc(n) && math.Abs(n) < 1<<53 {
			return scalar(node, "!!int", strconv.FormatInt(int64(n), 10))
		}
	}
	return node
}

func scalar(at *yaml.Node, tag, value string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: value, Line: at.Line, Style: yaml.DoubleQuotedStyle}
}
