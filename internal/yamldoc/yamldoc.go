// Package yamldoc reads streams of YAML documents strictly into Go structs. It reports every mistake with its line, its field path and what to
// do about it.
//
// It accepts the part of YAML that configuration needs. Unknown fields, duplicate keys and values of a wrong type are errors. Merge keys,
// directives and custom tags are refused. Documents, keys, nesting and the expansion of aliases are bounded, so that no input costs more than
// its size suggests.
package yamldoc

import (
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The limits of what is read. A Kubernetes object cannot be larger than 1.5 MiB.
const (
	maxStream      = 64 << 20 // bytes of one stream
	maxDocument    = 1 << 20  // bytes of one document
	maxDepth       = 64       // nested mappings and sequences, and Lists in Lists
	maxKey         = 1024     // bytes of a key
	maxList        = 16_384   // elements of a list
	maxPathAliases = 1000     // aliases that Paths follows in one document
	maxAliased     = 10_000   // nodes of one document reached through aliases
	maxProblems    = 100      // problems reported of one document

	maxDocuments      = 20_000  // documents of one stream, including those in Lists
	maxAllDocuments   = 200_000 // documents of all streams, without the first of each
	maxBroken         = 100     // documents of one stream that are reported separately for not being YAML
	maxStreamProblems = 1_000   // problems reported of one stream
	maxAllProblems    = 10_000  // problems reported of all streams
	maxSearch         = 4 << 20 // bytes parsed again to find the places of errors
)

// Problem is a mistake in a document.
type Problem struct {
	Line    int    // the line in the file, counted from 1
	Path    string // the field, such as "spec.http[0].timeout"; empty for the whole document
	Warning bool   // it is valid, but has no meaning or is probably a mistake
	Message string // what is wrong and what to do about it
}

// Document is one document of a stream, with the problems found in it so far.
type Document struct {
	// Line is the line of the file at which the document begins.
	Line int

	// Problems are the problems of the syntax, then those that [Decoder.Decode], [Document.Errorf] and [Document.Warnf] have reported.
	Problems []Problem

	stream *stream
	text   []byte     // see Raw
	digest *Digest    // has its Sum; nil if it has none
	root   *yaml.Node // a mapping; nil if the syntax is broken
	item   *item      // its place in a List, or nil

	// These are small, because each load has a Document for every document, changed or not.
	at      int32 // where text begins in its stream
	offset  int32 // what to add to the lines of nodes to get lines of the stream
	omitted int32
	depth   uint8 // the number of Lists around the document
	unread  bool  // root was not yet parsed
	loose   bool  // see Loosen
	failed  bool  // a problem is an error
}

// item is the place of a document in a List.
type item struct {
	of  *Document
	key string
	nth int
}

// Failed reports whether a problem of the document is an error rather than a warning.
func (d *Document) Failed() bool { return d.failed }

// Omitted returns how many problems of the document are not in Problems, because its stream or all streams together have too many.
func (d *Document) Omitted() int { return int(d.omitted) }

// Stream returns the index of the stream that the document is from.
func (d *Document) Stream() int { return int(d.stream.index) }

// Errorf reports an error in the field at path. If the field does not exist, the error has the line of the closest enclosing field.
func (d *Document) Errorf(path, format string, args ...any) {
	d.report(d.LineOf(path), path, false, format, args...)
}

// Warnf reports a warning in the field at path.
func (d *Document) Warnf(path, format string, args ...any) {
	d.report(d.LineOf(path), path, true, format, args...)
}

// WarnLine is Warnf for a field whose line is known.
func (d *Document) WarnLine(line int, path, format string, args ...any) {
	d.report(line, path, true, format, args...)
}

func (d *Document) report(line int, path string, warning bool, format string, args ...any) {
	d.failed = d.failed || !warning
	n := len(d.Problems)
	if n <= maxProblems && !d.stream.admits() {
		d.omitted++
		return
	}
	if d.loose {
		path = d.spelled(path)
	}
	switch {
	case n < maxProblems:
		d.Problems = append(d.Problems, Problem{line, path, warning, fmt.Sprintf(format, args...)})
	case n == maxProblems:
		const message = "too many problems: the others are not reported"
		d.Problems = append(d.Problems, Problem{Line: d.Line, Warning: warning, Message: message})
	case !warning:
		d.Problems[maxProblems].Warning = false
	}
}

// LineOf returns the line of the field at path, or of the closest enclosing field that exists.
func (d *Document) LineOf(path string) int {
	if path == "" {
		return d.Line // without parsing the document
	}
	_, line := d.locate(path)
	return line
}

// locate returns the node at path, or nil if there is none, and the line that LineOf returns.
func (d *Document) locate(path string) (node *yaml.Node, line int) {
	d.load()
	node, line = d.root, d.Line
	for path != "" && node != nil {
		key, index, rest := step(path)
		own, below := d.child(node, key, index)
		if below != nil {
			line = int(d.offset) + own
		}
		node, path = below, rest
	}
	return node, line
}

// child returns a node of a mapping or sequence, and its line, which is that of the key for a field.
func (d *Document) child(node *yaml.Node, key string, index int) (line int, value *yaml.Node) {
	node = target(node)
	if d.loose {
		line, _, value = spelledChild(node, key, index)
		return line, value
	}
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == key {
				return node.Content[i].Line, node.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if index >= 0 && index < len(node.Content) {
			return node.Content[index].Line, node.Content[index]
		}
	}
	return 0, nil
}

// find returns the node at path, or nil if there is none.
func (d *Document) find(path string) *yaml.Node {
	node, _ := d.locate(path)
	if node == nil {
		return nil
	}
	return target(node)
}

// list returns the elements of the list at path, and false if there is no list.
func (d *Document) list(path string) (elements []*yaml.Node, ok bool) {
	node := d.find(path)
	if node == nil || node.Kind != yaml.SequenceNode {
		return nil, false
	}
	return node.Content, true
}

// Text returns the text of the scalar at path, or "" if there is none.
func (d *Document) Text(path string) string {
	node := d.find(path)
	if node == nil || node.Kind != yaml.ScalarNode || null(node) {
		return ""
	}
	return node.Value
}

// Has reports whether there is a field at path that has a value, even if it is an empty one.
func (d *Document) Has(path string) bool {
	node := d.find(path)
	return node != nil && !null(node)
}

// Items returns the elements of the list under a key of the document as separate documents. If the kind of the document is that of its elements
// with "List" at the end, elements without kind have that kind and, unless they have one, the apiVersion of the document, as with kubectl.
func (d *Document) Items(key string) (items []*Document) {
	elements, _ := d.list(key)
	if d.depth >= maxDepth && elements != nil {
		d.Errorf(key, "Lists are nested more than %d levels deep", maxDepth)
		return nil
	}
	for i, node := range elements {
		if message := d.stream.documented(1); message != "" {
			d.Errorf(key, "%s", message)
			break
		}
		element := d.element(node)
		one := d.stream.document(element, int(d.offset))
		one.depth, one.item, one.digest = d.depth+1, &item{d, key, i}, new(Digest)
		if node.Kind != yaml.AliasNode { // what it stands for may be outside of it
			one.digest.sum = sumOf(element)
		}
		items = append(items, one)
	}
	return items
}

// element returns an element of a list of the document, with what follows from the kind of the document. An API server, and whatever prints its
// answers, omits that from the elements of a list of one kind.
func (d *Document) element(node *yaml.Node) *yaml.Node {
	node = target(node)
	kind, list := strings.CutSuffix(d.Text("kind"), "List")
	if !list || kind == "" || node.Kind != yaml.MappingNode {
		return node
	}
	whole, versioned := *node, false
	whole.Content = nil
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		switch versioned = versioned || key.Value == "apiVersion"; {
		case key.Value != "kind":
		case target(value).ShortTag() == "!!str" && target(value).Value != "":
			return node
		default:
			continue
		}
		whole.Content = append(whole.Content, key, value)
	}
	add := func(key, value string) {
		for _, text := range []string{key, value} {
			whole.Content = append(whole.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Line: node.Line, Column: node.Column})
		}
	}
	add("kind", kind)
	if version := d.Text("apiVersion"); version != "" && !versioned {
		add("apiVersion", version)
	}
	return &whole
}

// Texts returns the scalars of the list at path.
func (d *Document) Texts(path string) []string {
	var texts []string
	for i := range d.Len(path) {
		texts = append(texts, d.Text(Index(path, i)))
	}
	return texts
}

// Keys returns the keys of the object at path. It reports whether there is an object without duplicate keys, or no value at all.
func (d *Document) Keys(path string) (keys []string, ok bool) {
	node := d.find(path)
	if node == nil || null(node) {
		return nil, true
	}
	if node.Kind != yaml.MappingNode || d.repeated(node) != nil {
		return nil, false
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		keys = append(keys, node.Content[i].Value)
	}
	return keys, true
}

// repeated returns the first key of an object that is there before, or nil.
func (d *Document) repeated(node *yaml.Node) *yaml.Node {
	if node.Kind != yaml.MappingNode {
		return nil
	}
	seen := make(map[string]bool, len(node.Content)/2)
	for i := 0; i+1 < len(node.Content); i += 2 {
		key := node.Content[i].Value
		if d.loose {
			key = keyed(key)
		}
		if seen[key] {
			return node.Content[i]
		}
		seen[key] = true
	}
	return nil
}

// Repeated returns a key that the object at path has twice, with the line of the second, or "".
func (d *Document) Repeated(path string) (key string, line int) {
	if node := d.find(path); node != nil {
		if again := d.repeated(node); again != nil {
			return again.Value, int(d.offset) + again.Line
		}
	}
	return "", 0
}

// ErrorLine is Errorf for a field whose line is known.
func (d *Document) ErrorLine(line int, path, format string, args ...any) {
	d.report(line, path, false, format, args...)
}

// Twice reports whether any object in the document has a key twice.
func (d *Document) Twice() bool {
	node := d.find("")
	return node != nil && d.twice(node)
}

func (d *Document) twice(node *yaml.Node) bool {
	return d.repeated(node) != nil || slices.ContainsFunc(node.Content, d.twice)
}

// IsText reports whether there is a scalar at path that is a string.
func (d *Document) IsText(path string) bool {
	node := d.find(path)
	return node != nil && node.Kind == yaml.ScalarNode && node.ShortTag() == "!!str"
}

// Paths yields the paths of all fields with this key, at any depth below path. It follows a limited number of aliases. It yields the path of
// an alias that it does not follow, since there may be such a field in it.
func (d *Document) Paths(path, key string) iter.Seq[string] {
	return d.paths(path, func(name string, _ *yaml.Node) bool { return name == key })
}

// Nulls yields the paths of all fields that are null, at any depth below path. It follows aliases like [Document.Paths].
func (d *Document) Nulls(path string) iter.Seq[string] {
	if d.load(); d.root == nil || !anyNull(d.root) {
		return func(func(string) bool) {}
	}
	return d.paths(path, func(_ string, value *yaml.Node) bool { return null(target(value)) })
}

func anyNull(node *yaml.Node) bool {
	return null(node) || slices.ContainsFunc(node.Content, anyNull)
}

func (d *Document) paths(path string, wanted func(key string, value *yaml.Node) bool) iter.Seq[string] {
	return func(yield func(string) bool) {
		if node := d.find(path); node != nil {
			aliased := 0
			paths(node, path, wanted, maxDepth, &aliased, yield)
		}
	}
}

func paths(node *yaml.Node, path string, wanted func(string, *yaml.Node) bool, depth int, aliased *int, yield func(string) bool) bool {
	if depth == 0 {
		return true
	}
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			key, value := node.Content[i].Value, node.Content[i+1]
			at := Key(path, key)
			if wanted(key, value) && !yield(at) || !paths(value, at, wanted, depth-1, aliased, yield) {
				return false
			}
		}
	case yaml.SequenceNode:
		for i, element := range node.Content {
			if !paths(element, Index(path, i), wanted, depth-1, aliased, yield) {
				return false
			}
		}
	case yaml.AliasNode:
		if *aliased++; *aliased > maxPathAliases {
			return yield(path)
		}
		return paths(target(node), path, wanted, depth-1, aliased, yield)
	}
	return true
}

// Scalars yields the scalars in the document, each with the key of the field that it is in, alone or in a list, and the keys of fields with
// anything else, with an empty value. Objects and lists that aliases repeat are followed once.
func (d *Document) Scalars() iter.Seq2[string, string] {
	return func(yield func(key, value string) bool) {
		if node := d.find(""); node != nil {
			scalars(node, "", make(map[*yaml.Node]bool), yield)
		}
	}
}

func scalars(node *yaml.Node, key string, seen map[*yaml.Node]bool, yield func(key, value string) bool) bool {
	node = target(node)
	if node.Kind == yaml.ScalarNode {
		return null(node) || yield(key, node.Value)
	}
	if !yield(key, "") || seen[node] {
		return seen[node]
	}
	seen[node] = true
	for i, part := range node.Content {
		switch {
		case node.Kind != yaml.MappingNode:
			if !scalars(part, key, seen, yield) {
				return false
			}
		case i%2 == 1:
			if !scalars(part, node.Content[i-1].Value, seen, yield) {
				return false
			}
		}
	}
	return true
}

// Len returns the number of elements of the list at path, and 0 if there is none.
func (d *Document) Len(path string) int {
	elements, _ := d.list(path)
	return len(elements)
}

// HasItems reports whether there is a list under a key of the document.
func (d *Document) HasItems(key string) bool {
	_, ok := d.list(key)
	return ok
}

// target follows an alias.
func target(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode && node.Alias != nil {
		node = node.Alias
	}
	return node
}

func null(node *yaml.Node) bool {
	return node.Kind == yaml.ScalarNode && node.ShortTag() == "!!null"
}

// template describes what YAML makes of {{ }}: an object whose key is an object, or a string.
const template = "{{ }} of a template: render it first, as helm template does"

func isTemplate(node *yaml.Node) bool {
	switch node.Kind {
	case yaml.MappingNode:
		return node.Style&yaml.FlowStyle != 0 && len(node.Content) > 0 && node.Content[0].Kind == yaml.MappingNode
	case yaml.ScalarNode:
		return strings.Contains(node.Value, "{{")
	}
	return false
}

// describe returns a description of a node for messages.
func describe(node *yaml.Node) string {
	if isTemplate(node) {
		return template
	}
	switch node.Kind {
	case yaml.MappingNode:
		return "an object"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch node.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!int", "!!float":
		return "the number " + clip(node.Value)
	case "!!bool":
		return "the boolean " + clip(node.Value)
	case "!!str", "!!timestamp":
		return "the string " + strconv.Quote(clip(node.Value))
	}
	return "a value tagged " + clip(node.Tag)
}

// clip shortens text that is quoted in a message.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
