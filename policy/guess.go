package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"regexp"
	"strings"
)

// head has the fields that identify a document.
type head struct {
	APIVersion, Kind string
	Metadata         struct{ Name, Namespace, UID string }
}

// guess determines the identity of a document that is too large or not valid YAML.
func (c *compiler) guess(p *piece) {
	h, plain := headOfJSON(p.Raw())
	if !plain {
		h, plain = headOf(p.Raw())
	}
	if !plain {
		return
	}
	if h.APIVersion == "" || h.Kind == "" || h.Metadata.Name == "" {
		return
	}
	r := *p.reading
	r.kind, r.name, r.uid = c.word(h.Kind), h.Metadata.Name, h.Metadata.UID
	r.namespace = c.word(cmp.Or(h.Metadata.Namespace, defaultNamespace))
	if group, _, has := strings.Cut(h.APIVersion, "/"); has {
		r.group = group
	}
	p.reading, p.nowhere = &r, h.Metadata.Namespace == ""
}

// headOfJSON finds the head of a JSON document. Unlike package json, it does not ignore the case of keys.
func headOfJSON(text []byte) (h head, plain bool) {
	fields := func(text []byte, to map[string]*string) (rest map[string]json.RawMessage, ok bool) {
		if json.Unmarshal(text, &rest) != nil {
			return nil, false
		}
		for key, value := range to {
			if raw := rest[key]; raw != nil && json.Unmarshal(raw, value) != nil {
				return nil, false
			}
		}
		return rest, true
	}
	top, ok := fields(text, map[string]*string{"apiVersion": &h.APIVersion, "kind": &h.Kind})
	if !ok || top["metadata"] == nil {
		return h, false
	}
	_, ok = fields(top["metadata"], map[string]*string{"name": &h.Metadata.Name, "namespace": &h.Metadata.Namespace, "uid": &h.Metadata.UID})
	return h, ok
}

// headOf finds the head of a document line by line. It reports false if the result may be wrong, because a field is set twice or is not a
// simple word.
func headOf(text []byte) (h head, plain bool) {
	var within string
	var indent int // of the fields of metadata
	seen := make(map[string]bool)
	plain = true
	for line := range bytes.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimRight(string(line), " \t\r\n"), ":")
		value, _, _ = strings.Cut(value, " #")
		value = strings.Trim(strings.TrimSpace(value), `"'`)
		field := strings.TrimLeft(name, " ")
		depth := len(name) - len(field)
		if !ok || strings.HasPrefix(field, "#") {
			continue
		}
		field = strings.Trim(field, ` "'`)
		var to *string
		switch {
		case depth == 0:
			within, indent = field, 0
			switch field {
			case "kind":
				to = &h.Kind
			case "apiVersion":
				to = &h.APIVersion
			case "metadata":
				plain = plain && value == "" && !seen[field]
				seen[field] = true
			}
		case within == "metadata":
			if indent = cmp.Or(indent, depth); depth != indent {
				continue
			}
			switch field {
			case "name":
				to = &h.Metadata.Name
			case "namespace":
				to = &h.Metadata.Namespace
			case "uid":
				to = &h.Metadata.UID
			}
		}
		if to != nil {
			plain = plain && *to == "" && word.MatchString(value)
			*to = value
		}
	}
	return h, plain
}

var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9./_-]*$`)
