package yamldoc

import (
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// A Decoder decodes documents into Go structs. Its zero value is ready. It caches struct types, so using one Decoder for many documents is
// faster. It is not safe for concurrent use.
//
// A field is set from the key that its yaml tag names. Fields without a tag are ignored. Fields of embedded structs are like any other. The
// tag may also have the options "required" (the key must exist), "nullable" (an element may be null) and "single" (a list may be written as
// its only element, if that is an object). The fields of a struct with the tag ",inline" are like those of an embedded one. Further tags:
//
//	mesh:"refused: REASON"      an error if the field is used
//	mesh:"meaningless: REASON"  a warning if the field is used
//	mesh:"unused: REASON"       accepted, since it never affects traffic
//	enum:"A,B"                  the allowed strings
//	oneof:"GROUP"               at most one field of the group may be set
//
// A field without a mesh tag is enforced. Fields may be strings, booleans, numbers, [Duration], [Quantity], []byte (base64), [Any], structs,
// slices of these, maps from strings to these, and pointers to these, which stay nil if the document does not set the field. Keys are
// case-sensitive.
type Decoder struct {
	types map[reflect.Type]*structType
}

// DecodeLoosely is Decode for a document in the form that Consul accepts; see [Document.Loosen]. Keys may be in any case, with or without
// underscores. A null value counts as absent. Numbers, booleans and durations may be strings, and strings may be numbers and booleans. A list
// may be written as its only element, an object as a list of one object, and a map as a list of objects that are merged. An integer as a
// duration is a number of nanoseconds. A field that is refused or meaningless may be present if it has the zero value of its type.
func (dec *Decoder) DecodeLoosely(d *Document, into any) bool {
	d.Loosen()
	w := walk{dec: dec, doc: d, loose: true}
	return w.whole(into)
}

// Any accepts a value of any type and ignores it.
type Any struct{}

// State says what this library does with a field.
type State string

// The states of a field.
const (
	Enforced    State = "enforced"
	Refused     State = "refused"
	Meaningless State = "meaningless"
	Unused      State = "unused"
)

type structType struct {
	fields []field
	byName map[string]int
	folded map[string]int // by the result of keyed for their names
	groups bool           // it has oneofs
	must   bool           // it has required fields
}

type field struct {
	name               string
	index              []int // for reflect.Value.FieldByIndex
	required, nullable bool
	single             bool
	state              State
	reason             string
	enum               []string
	oneof              string
}

var (
	durationType = reflect.TypeFor[Duration]()
	quantityType = reflect.TypeFor[Quantity]()
	anyType      = reflect.TypeFor[Any]()
	bytesType    = reflect.TypeFor[[]byte]()
)

// Decode decodes a document into the struct that into points to, and reports problems to the document. It returns true if the document has the
// shape of the struct, so that further checks make sense. Refused fields do not affect that; see [Document.Failed].
func (dec *Decoder) Decode(d *Document, into any) bool {
	return dec.DecodeLeniently(d, into, nil)
}

// DecodeLeniently is Decode for a document with parts that have no effect, given by their paths. Refused fields are allowed in these parts.
func (dec *Decoder) DecodeLeniently(d *Document, into any, parts []string) bool {
	w := walk{dec: dec, doc: d, idle: parts}
	return w.whole(into)
}

// walk is one run over a document.
type walk struct {
	dec     *Decoder
	doc     *Document
	path    []part   // the current path; rendered only for a problem
	idle    []string // the paths of parts that have no effect
	loose   bool     // see DecodeLoosely
	aliases int      // aliases around the current node
	aliased int      // nodes reached through aliases
	into    reflect.Type
	known   []Field // all fields of that type; see belongs

	malformed bool // there is an error other than a refused field
}

// whole decodes the document, and reports whether it has the shape of into.
func (w *walk) whole(into any) bool {
	if w.doc.load(); w.doc.root == nil {
		return false
	}
	w.into = reflect.TypeOf(into).Elem()
	w.structure(w.doc.root, reflect.ValueOf(into).Elem())
	return !w.malformed
}

type part struct {
	key   string
	index int // if key is empty
}

func (w *walk) render(parts []part) string {
	path := ""
	for _, p := range parts {
		if p.key != "" {
			path = Key(path, p.key)
		} else {
			path = Index(path, p.index)
		}
	}
	return path
}

// lenient reports whether the walk is in a part that has no effect.
func (w *walk) lenient() bool {
	if len(w.idle) == 0 {
		return false
	}
	path := w.render(w.path)
	return slices.ContainsFunc(w.idle, func(idle string) bool {
		rest, within := strings.CutPrefix(path, idle)
		return within && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

func (w *walk) errorf(node *yaml.Node, format string, args ...any) {
	w.malformed = true
	w.report(node, false, format, args...)
}

func (w *walk) report(node *yaml.Node, warning bool, format string, args ...any) {
	w.doc.report(int(w.doc.offset)+node.Line, w.render(w.path), warning, format, args...)
}

// value decodes a node into v. f has the tags of the field that the node belongs to.
func (w *walk) value(node *yaml.Node, v reflect.Value, f *field) {
	if node.Kind == yaml.AliasNode {
		w.aliases++
		defer func() { w.aliases-- }()
		node = target(node)
	}
	if w.aliases > 0 {
		if w.aliased++; w.aliased > maxAliased {
			if w.aliased == maxAliased+1 {
				w.errorf(node, "aliases expand to more than %d values: write them out", maxAliased)
			}
			return
		}
	}
	if len(w.path) > maxDepth {
		w.errorf(node, "nested more than %d levels deep", maxDepth)
		return
	}
	if null(node) {
		if !f.nullable && v.Type() != anyType && !w.loose {
			w.errorf(node, "has no value: give it one or remove it")
		}
		return
	}
	if v.Kind() == reflect.Pointer {
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if w.loose {
		node = w.loosen(node, v)
	}
	switch t := v.Type(); {
	case t == anyType:
	case t == durationType:
		w.duration(node, v)
	case t == quantityType:
		w.quantity(node, v)
	case t == bytesType:
		w.bytes(node, v)
	case t.Kind() == reflect.Struct:
		w.structure(node, v)
	case t.Kind() == reflect.Slice:
		w.list(node, v, f)
	case t.Kind() == reflect.Map:
		w.object(node, v, f)
	case t.Kind() == reflect.String:
		w.text(node, v, f)
	case t.Kind() == reflect.Bool:
		w.boolean(node, v)
	case v.CanFloat():
		w.float(node, v)
	case v.CanInt() || v.CanUint():
		w.integer(node, v)
	default:
		panic("yamldoc: cannot decode into " + t.String())
	}
}

func (w *walk) structure(node *yaml.Node, v reflect.Value) {
	st := w.dec.structOf(v.Type())
	if node.Kind != yaml.MappingNode {
		with := ""
		if node.Kind == yaml.ScalarNode && !isTemplate(node) {
			with = st.fewFields()
		}
		w.errorf(node, "must be an object%s, not %s", with, describe(node))
		return
	}
	seen := make([]int, len(st.fields)) // the line each field is set at, negative if it is null
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if !w.key(key) {
			continue
		}
		n, known := st.byName[key.Value]
		if !known && w.loose {
			n, known = st.folded[keyed(key.Value)]
		}
		if !known {
			w.unknown(key, st)
			continue
		}
		f := &st.fields[n]
		w.path = append(w.path, part{key: f.name})
		if seen[n] != 0 {
			w.errorf(key, "set twice, first in line %d: remove one", int(w.doc.offset)+max(seen[n], -seen[n]))
		} else if null(target(value)) {
			seen[n] = -key.Line // counts as absent, since an API server prunes it
		} else {
			seen[n] = key.Line
			switch state := f.state; {
			case w.loose && isZero(value):
			case state == Refused:
				if !w.lenient() {
					w.report(key, false, "%s", f.reason)
				}
			case state == Meaningless:
				w.report(key, true, "%s", f.reason)
			}
			w.value(value, v.FieldByIndex(f.index), f)
		}
		w.path = w.path[:len(w.path)-1]
	}
	if st.must || st.groups {
		w.complete(node, st, seen)
	}
}

// complete checks what concerns several fields of a struct: those required and those that exclude each other.
func (w *walk) complete(node *yaml.Node, st *structType, seen []int) {
	for i := range st.fields {
		f := &st.fields[i]
		if f.required && seen[i] <= 0 {
			w.path = append(w.path, part{key: f.name})
			w.errorf(node, "missing: it is required")
			w.path = w.path[:len(w.path)-1]
		}
		if f.oneof == "" || seen[i] <= 0 {
			continue
		}
		for j := range i {
			if g := &st.fields[j]; g.oneof == f.oneof && seen[j] > 0 {
				w.malformed = true
				w.doc.report(int(w.doc.offset)+max(seen[i], seen[j]), w.render(w.path), false,
					"%s and %s exclude each other: set only one of them", g.name, f.name)
			}
		}
	}
}

// key reports whether a node can be a key.
func (w *walk) key(key *yaml.Node) bool {
	switch {
	case key.Kind == yaml.AliasNode:
		w.errorf(key, "an alias cannot be a key: write it out")
	case key.Kind == yaml.MappingNode && key.Style&yaml.FlowStyle != 0:
		w.errorf(key, "a key must be a string, not an object, as in %s", template)
	case key.Kind != yaml.ScalarNode:
		w.errorf(key, "a key must be a string, not %s", describe(key))
	case len(key.Value) > maxKey:
		w.errorf(key, "a key is longer than %d bytes", maxKey)
	case key.Value == "<<" && key.Tag == "!!merge":
		w.errorf(key, "merge keys (<<) are not read: write the fields out")
	default:
		return true
	}
	return false
}

func (w *walk) unknown(key *yaml.Node, st *structType) {
	w.path = append(w.path, part{key: clip(key.Value)})
	if key.Value == "" {
		w.path[len(w.path)-1].key = `""`
	}
	hint := Hint(key.Value, st.names())
	if hint == "" {
		hint = w.belongs(key.Value)
	}
	w.errorf(key, "unknown field %q%s", clip(key.Value), hint)
	w.path = w.path[:len(w.path)-1]
}

func (w *walk) list(node *yaml.Node, v reflect.Value, f *field) {
	if f.single && node.Kind == yaml.MappingNode {
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		w.value(node, v.Index(0), &field{})
		return
	}
	if node.Kind != yaml.SequenceNode {
		advice := ": start each element with \"- \""
		if isTemplate(node) {
			advice = ""
		}
		w.errorf(node, "must be a list, not %s%s", describe(node), advice)
		return
	}
	if len(node.Content) > maxList {
		w.errorf(node, "more than %d elements", maxList)
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(node.Content), len(node.Content)))
	of := *f
	of.nullable, of.single = false, false
	for i, element := range node.Content {
		w.path = append(w.path, part{index: i})
		w.value(element, v.Index(i), &of)
		w.path = w.path[:len(w.path)-1]
	}
}

func (w *walk) object(node *yaml.Node, v reflect.Value, f *field) {
	if node.Kind != yaml.MappingNode {
		w.errorf(node, "must be an object, not %s", describe(node))
		return
	}
	m := reflect.MakeMapWithSize(v.Type(), len(node.Content)/2)
	v.Set(m)
	of := *f
	of.nullable = false
	element := v.Type().Elem()
	lines := make(map[string]int, len(node.Content)/2)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if !w.key(key) {
			continue
		}
		name := key.Value
		w.path = append(w.path, part{key: name})
		if name == "" {
			w.path[len(w.path)-1].key = `""`
			w.errorf(key, "a key must not be empty")
		} else if first, twice := lines[name]; twice {
			w.errorf(key, "set twice, first in line %d: remove one", int(w.doc.offset)+first)
		} else {
			lines[name] = key.Line
			e := reflect.New(element).Elem()
			w.value(value, e, &of)
			m.SetMapIndex(reflect.ValueOf(name), e)
		}
		w.path = w.path[:len(w.path)-1]
	}
}
