package yamldoc

import (
	"encoding/base64"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// text decodes a string. Plain words that are booleans in YAML 1.1, and so in Kubernetes, must be quoted: otherwise it would depend on the
// reader whether "method: on" is a string.
func (w *walk) text(node *yaml.Node, v reflect.Value, f *field) {
	if node.Kind != yaml.ScalarNode {
		w.errorf(node, "must be a string, not %s", describe(node))
		return
	}
	switch node.ShortTag() {
	case "!!str", "!!timestamp":
	case "!!int", "!!float", "!!bool":
		if f.enum != nil {
			w.errorf(node, "%s is not one of %s", clip(node.Value), strings.Join(f.enum, ", "))
			return
		}
		w.errorf(node, "must be a string, not %s: quote it", describe(node))
		return
	default:
		w.errorf(node, "must be a string, not %s", describe(node))
		return
	}
	if node.Style == 0 && yaml11Bool(node.Value) {
		w.errorf(node, "%s is a boolean to Kubernetes: quote it", node.Value)
		return
	}
	if f.enum != nil && !slices.Contains(f.enum, node.Value) {
		w.errorf(node, "%q is not one of %s%s", clip(node.Value), strings.Join(f.enum, ", "), Hint(node.Value, f.enum))
		return
	}
	v.SetString(node.Value)
}

func yaml11Bool(s string) bool {
	switch s {
	case "yes", "Yes", "YES", "no", "No", "NO", "on", "On", "ON", "off", "Off", "OFF":
		return true
	}
	return false
}

func (w *walk) boolean(node *yaml.Node, v reflect.Value) {
	switch {
	case node.Kind == yaml.ScalarNode && node.ShortTag() == "!!bool":
		v.SetBool(strings.EqualFold(node.Value, "true"))
	case node.Kind == yaml.ScalarNode && node.Style == 0 && yaml11Bool(node.Value):
		w.errorf(node, "must be true or false, not %s", node.Value)
	default:
		w.errorf(node, "must be true or false, not %s%s", describe(node), unquote(node, "!!bool"))
	}
}

func (w *walk) integer(node *yaml.Node, v reflect.Value) {
	if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!int" {
		w.errorf(node, "must be a whole number, not %s%s", describe(node), unquote(node, "!!int"))
		return
	}
	digits := strings.TrimPrefix(node.Value, "+")
	if v.CanInt() {
		n, err := strconv.ParseInt(digits, 10, 64)
		if err == nil && !v.OverflowInt(n) && !octal(digits) {
			v.SetInt(n)
			return
		}
	} else {
		n, err := strconv.ParseUint(digits, 10, 64)
		if err == nil && !v.OverflowUint(n) && !octal(digits) {
			v.SetUint(n)
			return
		}
		if strings.HasPrefix(digits, "-") {
			w.errorf(node, "must not be negative: %s", clip(node.Value))
			return
		}
	}
	if _, err := strconv.ParseFloat(digits, 64); err == nil && !octal(digits) {
		w.errorf(node, "%s is out of range", clip(node.Value))
		return
	}
	w.errorf(node, "%s must be written in decimal", clip(node.Value))
}

// unquote returns the advice to remove the quotes from a string, if it would then have one of the tags.
func unquote(node *yaml.Node, tags ...string) string {
	plain := yaml.Node{Kind: yaml.ScalarNode, Value: node.Value}
	if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!str" || !slices.Contains(tags, plain.ShortTag()) {
		return ""
	}
	return ": remove the quotes"
}

// octal reports whether digits start with a zero, which YAML 1.1 and 1.2 read differently, and are not zero.
func octal(digits string) bool {
	digits = strings.TrimPrefix(digits, "-")
	return len(digits) > 1 && digits[0] == '0' && strings.Trim(digits, "0") != ""
}

func (w *walk) float(node *yaml.Node, v reflect.Value) {
	tag := node.ShortTag()
	if node.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" {
		w.errorf(node, "must be a number, not %s%s", describe(node), unquote(node, "!!int", "!!float"))
		return
	}
	n, err := strconv.ParseFloat(node.Value, 64)
	if err != nil || math.IsInf(n, 0) || math.IsNaN(n) || tag == "!!int" && octal(node.Value) {
		w.errorf(node, "%s must be a finite number, written in decimal", clip(node.Value))
		return
	}
	v.SetFloat(n)
}

func (w *walk) duration(node *yaml.Node, v reflect.Value) {
	tag := node.ShortTag()
	if node.Kind == yaml.ScalarNode && (tag == "!!int" || tag == "!!float") {
		w.errorf(node, "must be a duration with a unit: write \"%ss\" for seconds", clip(node.Value))
		return
	}
	if node.Kind != yaml.ScalarNode || tag != "!!str" {
		w.errorf(node, "must be a duration such as \"1.5s\", not %s", describe(node))
		return
	}
	d, err := time.ParseDuration(node.Value)
	if err != nil {
		w.errorf(node, "%q is not a duration: write it like 100ms, 1.5s or 1h30m", clip(node.Value))
		return
	}
	v.Set(reflect.ValueOf(Duration{Duration: d, Set: true}))
}

func (w *walk) quantity(node *yaml.Node, v reflect.Value) {
	tag := node.ShortTag()
	if node.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" && tag != "!!str" {
		w.errorf(node, "must be a number, not %s", describe(node))
		return
	}
	milli, message := parseQuantity(node.Value)
	if message == "" && tag != "!!str" && !strings.Contains(node.Value, ".") && octal(node.Value) {
		message = "must be written in decimal"
	}
	if message != "" {
		w.errorf(node, "%s %s", clip(node.Value), message)
		return
	}
	v.Set(reflect.ValueOf(Quantity{Milli: milli, Whole: tag == "!!int", Set: true}))
}

func (w *walk) bytes(node *yaml.Node, v reflect.Value) {
	if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!str" {
		w.errorf(node, "must be base64 text, not %s", describe(node))
		return
	}
	b, err := base64.StdEncoding.DecodeString(node.Value)
	if err != nil {
		w.errorf(node, "not valid base64")
		return
	}
	v.SetBytes(b)
}
