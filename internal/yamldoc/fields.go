package yamldoc

import (
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// structOf returns the description of a struct type by its tags.
func (dec *Decoder) structOf(t reflect.Type) *structType {
	if st := dec.types[t]; st != nil {
		return st
	}
	if dec.types == nil {
		dec.types = make(map[reflect.Type]*structType)
	}
	st := &structType{byName: make(map[string]int), folded: make(map[string]int)}
	for _, sf := range reflect.VisibleFields(t) {
		tag := sf.Tag.Get("yaml")
		if tag == "" {
			continue
		}
		options := strings.Split(tag, ",")
		if slices.Contains(options, "inline") {
			for _, f := range dec.structOf(sf.Type).fields {
				f.index = slices.Concat(sf.Index, f.index)
				st.add(f)
			}
			continue
		}
		f := field{name: options[0], index: sf.Index, state: Enforced, oneof: sf.Tag.Get("oneof")}
		f.required = slices.Contains(options, "required")
		f.nullable = slices.Contains(options, "nullable")
		f.single = slices.Contains(options, "single")
		if state, reason, ok := strings.Cut(sf.Tag.Get("mesh"), ": "); ok {
			f.state, f.reason = State(state), reason
		}
		if enum := sf.Tag.Get("enum"); enum != "" {
			f.enum = strings.Split(enum, ",")
		}
		st.add(f)
	}
	dec.types[t] = st
	return st
}

func (st *structType) add(f field) {
	st.must = st.must || f.required
	st.groups = st.groups || f.oneof != ""
	st.byName[f.name] = len(st.fields)
	st.folded[keyed(f.name)] = len(st.fields)
	st.fields = append(st.fields, f)
}

// Field describes a field of a document, for lists of what is supported.
type Field struct {
	Path   string // "spec.http[].timeout"; maps as "spec.http[].match[].headers{}"
	State  State
	Reason string // empty if State is Enforced
}

// Fields returns the fields of a struct type in the order of their declaration, including nested fields. A type that contains itself is not
// listed again within itself.
func Fields(t reflect.Type) []Field {
	return new(Decoder).fields(nil, "", t, nil)
}

func (dec *Decoder) fields(list []Field, path string, t reflect.Type, within []reflect.Type) []Field {
	switch {
	case t.Kind() == reflect.Pointer:
		return dec.fields(list, path, t.Elem(), within)
	case t.Kind() == reflect.Slice && t != bytesType:
		return dec.fields(list, path+"[]", t.Elem(), within)
	case t.Kind() == reflect.Map:
		return dec.fields(list, path+"{}", t.Elem(), within)
	case slices.Contains(within, t), t.Kind() != reflect.Struct || t == durationType || t == quantityType || t == anyType:
		return list
	}
	for _, f := range dec.structOf(t).fields {
		at := strings.TrimPrefix(path+"."+f.name, ".")
		list = append(list, Field{Path: at, State: f.state, Reason: f.reason})
		list = dec.fields(list, at, t.FieldByIndex(f.index).Type, append(within, t))
	}
	return list
}

func (st *structType) names() []string {
	names := make([]string, len(st.fields))
	for i := range st.fields {
		names[i] = st.fields[i].name
	}
	return names
}

// fewFields names the fields of a struct that has few: whoever writes a value in place of such an object does not know of them.
func (st *structType) fewFields() string {
	var names []string
	for i := range st.fields {
		if f := &st.fields[i]; f.state == Enforced {
			names = append(names, f.name)
		}
	}
	switch n := len(names); {
	case n == 0 || n > 3:
		return ""
	case n == 1:
		return " with " + names[0]
	default:
		return " with " + strings.Join(names[:n-1], ", ") + " or " + names[n-1]
	}
}

// Hint returns the end of a message about an unknown name, if one of names is similar: `, did you mean "timeout"?`.
func Hint(name string, names []string) string {
	near := Closest(name, names)
	if near == "" {
		return ""
	}
	return ", did you mean " + strconv.Quote(near) + "?"
}

// belongs says which other object of the document has a field with the name of the last part of the path: the nearest one. It says nothing about
// names of which that cannot be told, such as "name": those of plain values that different objects have.
func (w *walk) belongs(name string) string {
	if w.known == nil {
		w.known = w.dec.fields(nil, "", w.into, nil)
	}
	var at []string
	for _, p := range w.path {
		if p.key != "" {
			at = append(at, p.key)
		} else if len(at) > 0 {
			at[len(at)-1] += "[]"
		}
	}
	best, most, owner := "", -1, ""
	for i, f := range w.known {
		object, ok := strings.CutSuffix(f.Path, "."+name)
		if !ok || f.State != Enforced {
			continue
		}
		of := object[strings.LastIndexByte(object, '.')+1:]
		inside := ""
		if i+1 < len(w.known) {
			inside, _ = strings.CutPrefix(w.known[i+1].Path, f.Path)
		}
		if plain := inside == "" || !strings.ContainsRune(".[{", rune(inside[0])); plain && owner != "" && of != owner {
			return ""
		}
		owner = of
		common := 0
		for j, part := range strings.Split(object, ".") {
			if j == len(at) || part != at[j] {
				break
			}
			common++
		}
		if common > most || common == most && len(object) < len(best) {
			best, most = object, common
		}
	}
	if best == "" {
		return ""
	}
	return ": it belongs in " + best
}

// Closest returns the most similar of names, or "" if none is similar enough. Case and separators are ignored.
func Closest(name string, names []string) string {
	if len(name) > 64 {
		return ""
	}
	folded := fold(name)
	best, least := "", 1+len(folded)/4
	for _, candidate := range names {
		if d := distance(folded, fold(candidate)); d < least || d == least && best == "" {
			best, least = candidate, d
		}
	}
	return best
}

func fold(s string) string {
	return strings.ToLower(strings.NewReplacer("_", "", "-", "").Replace(s))
}

// distance counts the letters to insert, delete or replace to turn a into b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
