package policy

import (
	"bytes"
	"cmp"
	"encoding/json"
	"strings"
)

// head is the beginning of a document: what it is.
type head struct {
	APIVersion, Kind string
	Metadata         struct{ Name, Namespace, UID string }
}

// guess finds out which document it is that is too large or not valid YAML.
func (c *compiler) guess(p *piece) {
	var h head
	if json.Unmarshal(p.Raw(), &h) != nil {
		h = headOf(p.Raw())
	}
	if h.Kind == "" || h.Metadata.Name == "" {
		return
	}
	r := *p.reading
	r.kind, r.name, r.uid = c.word(h.Kind), h.Metadata.Name, h.Metadata.UID
	r.namespace = c.word(cmp.Or(h.Metadata.Namespace, defaultNamespace))
	if group, _, has := strings.Cut(h.APIVersion, "/"); has {
		r.group = group
	}
	p.reading = &r
}

// headOf finds the head of a document by its lines.
func headOf(text []byte) (h head) {
	within := ""
	for line := range bytes.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimRight(string(line), " \r\n"), ":")
		value = strings.Trim(strings.TrimSpace(value), `"'`)
		field := strings.TrimLeft(name, " ")
		switch {
		case !ok:
		case field == name:
			switch within = name; name {
			case "kind":
				h.Kind = value
			case "apiVersion":
				h.APIVersion = value
			}
		case within == "metadata" && len(name)-len(field) <= 4:
			switch field {
			case "name":
				h.Metadata.Name = value
			case "namespace":
				h.Metadata.Namespace = value
			case "uid":
				h.Metadata.UID = value
			}
		}
	}
	return h
}
