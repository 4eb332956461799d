package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"io"
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
	if !plain || h.APIVersion == "" || h.Kind == "" || h.Metadata.Name == "" {
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

// headOfJSON finds the head of a JSON document. Unlike package json, it does not ignore the case of keys, and it reports false if a field is
// there twice.
func headOfJSON(text []byte) (h head, plain bool) {
	top, ok := fieldsOf(text)
	if !ok || !setStrings(top, map[string]*string{"apiVersion": &h.APIVersion, "kind": &h.Kind}) {
		return h, false
	}
	metadata, ok := fieldsOf(top["metadata"])
	return h, ok && setStrings(metadata, map[string]*string{"name": &h.Metadata.Name, "namespace": &h.Metadata.Namespace, "uid": &h.Metadata.UID})
}

// fieldsOf returns the fields of a JSON object. It reports false if text is anything else, or has a field twice.
func fieldsOf(text []byte) (fields map[string]json.RawMessage, ok bool) {
	dec := json.NewDecoder(bytes.NewReader(text))
	if begin, err := dec.Token(); err != nil || begin != json.Delim('{') {
		return nil, false
	}
	fields = make(map[string]json.RawMessage)
	for dec.More() {
		key, err := dec.Token()
		var value json.RawMessage
		if err != nil || dec.Decode(&value) != nil {
			return nil, false
		}
		name := key.(string) // json.Decoder takes no other keys
		if fields[name] != nil {
			return nil, false
		}
		fields[name] = value
	}
	_, err := dec.Token()
	_, more := dec.Token()
	return fields, err == nil && more == io.EOF
}

// setStrings sets strings to the values of fields that are there. It reports false if one is not a string.
func setStrings(fields map[string]json.RawMessage, to map[string]*string) bool {
	for key, value := range to {
		if raw := fields[key]; raw != nil && json.Unmarshal(raw, value) != nil {
			return false
		}
	}
	return true
}

// headOf finds the head of a document line by line. It reports false if the result may be wrong, because the document is not written in lines,
// a field is set twice, or a field is not a simple word.
func headOf(text []byte) (h head, plain bool) {
	if !inLines(text) {
		return h, false
	}
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
			plain = plain && !seen[field]
			seen[field] = true
			switch field {
			case "kind":
				to = &h.Kind
			case "apiVersion":
				to = &h.APIVersion
			case "metadata":
				plain = plain && value == ""
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

// inLines reports whether a document has no braces, tag or anchor around all of it, and only the line breaks that headOf knows.
func inLines(text []byte) bool {
	if bytes.Count(text, []byte("\r")) != bytes.Count(text, []byte("\r\n")) || bytes.ContainsAny(text, "\u0085\u2028\u2029") {
		return false
	}
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(bytes.TrimPrefix(line, []byte("---")))
		if len(line) > 0 && line[0] != '#' && line[0] != '%' {
			return strings.IndexByte("{[!&", line[0]) < 0
		}
	}
	return false
}

var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9./_-]*$`)
