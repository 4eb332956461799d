// Package yamldoc reads streams of YAML documents strictly: into Go structs, with every mistake reported by its line,
// its field path and what to do about it.
//
// It takes the part of YAML that configuration needs. Unknown fields, duplicate keys, values of another type and nulls
// are errors; merge keys, directives and tags of one's own are refused; documents, keys, nesting and the expansion of
// aliases have bounds, so that no input costs more than its size suggests.
package yamldoc

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"go.yaml.in/yaml/v3"
)

// The bounds of what is read. A Kubernetes object cannot be larger than 1.5 MiB.
const (
	maxStream   = 64 << 20 // bytes of one stream
	maxDocument = 1 << 20  // bytes of one document
	maxDepth    = 64       // nested mappings and sequences
	maxKey      = 1024     // bytes of a key
	maxList     = 16_384   // elements of a list
	maxAliased  = 10_000   // nodes of one document reached through aliases
	maxProblems = 100      // problems reported of one document
)

// Problem is a mistake in a document.
type Problem struct {
	Line    int    // in the file, from 1
	Path    string // the field, as "spec.http[0].timeout"; empty for the document as a whole
	Warning bool   // valid, but meaningless or probably not meant
	Message string // what is wrong and what to do about it
}

// Document is one document of a stream, with the problems found in it so far.
type Document struct {
	// Line is the line of the file the document begins at.
	Line int

	// Problems are those of the syntax and those reported by [Decoder.Decode], [Document.Errorf] and
	// [Document.Warnf], in this order.
	Problems []Problem

	root   *yaml.Node // a mapping; nil if the syntax is broken
	offset int        // lines of the stream before those the nodes count
	failed bool       // a problem is not just a warning
}

// Parse splits streams into their documents and parses each by itself: a broken one does not hide the others. It returns
// the documents of each stream; those without content are left out. It uses all processors.
func Parse(streams ...[]byte) [][]*Document {
	var chunks []chunk
	for i, data := range streams {
		chunks = split(chunks, i, data)
	}
	var next atomic.Int64
	parse := func() {
		for i := next.Add(1) - 1; i < int64(len(chunks)); i = next.Add(1) - 1 {
			chunks[i].parse()
		}
	}
	var helpers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(chunks)/8) - 1 {
		helpers.Go(parse)
	}
	parse()
	helpers.Wait()

	docs := make([][]*Document, len(streams))
	for i := range chunks {
		if c := &chunks[i]; c.doc != nil {
			docs[c.stream] = append(docs[c.stream], c.doc)
		}
	}
	return docs
}

// chunk is a part of a stream that may be a document.
type chunk struct {
	stream int
	data   []byte
	line   int
	doc    *Document
}

func split(chunks []chunk, stream int, data []byte) []chunk {
	refuse := func(format string, args ...any) []chunk {
		return append(chunks, chunk{stream: stream, doc: broken(1, format, args...)})
	}
	if len(data) > maxStream {
		return refuse("larger than %d MiB: split it into several files", maxStream>>20)
	}
	if bytes.HasPrefix(data, []byte{0xFE, 0xFF}) || bytes.HasPrefix(data, []byte{0xFF, 0xFE}) {
		return refuse("UTF-16 text: save the file as UTF-8")
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	for line := 1; len(data) > 0; {
		end, next, lines := cut(data)
		chunks = append(chunks, chunk{stream: stream, data: data[:end], line: line})
		data = data[next:]
		line += lines
	}
	return chunks
}

// cut finds the end of the document that data begins with, where the next one begins, and how many lines lie between.
// A line that starts with "---" or "..." is a boundary wherever it stands, in block scalars and quotes too (YAML 1.2,
// section 9.1.2), so a search for it needs no parser.
func cut(data []byte) (end, next, lines int) {
	for pos := 0; pos < len(data); {
		rest := data[pos:]
		if lines > 0 && marker(rest, "---") {
			return pos, pos, lines
		}
		width := bytes.IndexByte(rest, '\n') + 1
		if width == 0 {
			width = len(rest)
		}
		lines++
		if marker(rest, "...") {
			return pos, pos + width, lines
		}
		pos += width
	}
	return len(data), len(data), lines
}

func marker(line []byte, mark string) bool {
	if !bytes.HasPrefix(line, []byte(mark)) {
		return false
	}
	return len(line) == len(mark) || strings.IndexByte(" \t\r\n", line[len(mark)]) >= 0
}

// parse parses the chunk, unless there is nothing in it.
func (c *chunk) parse() {
	skip, empty := blank(c.data)
	if c.doc != nil || empty {
		return
	}
	line := c.line + skip // of the first content
	if len(c.data) > maxDocument {
		c.doc = broken(line, "larger than %d KiB: split it into several documents", maxDocument>>10)
		return
	}
	var node, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(c.data))
	if err := dec.Decode(&node); err != nil {
		at, message := syntaxError(err, c.data)
		c.doc = broken(max(line, c.line-1+at), "not valid YAML: %s", message)
		return
	}
	// YAML has line breaks that cut does not look for, such as a lone CR. What follows them must not get lost.
	if err := dec.Decode(&second); err != io.EOF {
		c.doc = broken(line, "a second document begins after an unusual line break: end lines with LF or CRLF")
		return
	}
	if len(node.Content) > 0 && !null(node.Content[0]) {
		c.doc = document(node.Content[0], c.line-1)
	}
}

func document(root *yaml.Node, offset int) *Document {
	d := &Document{Line: offset + root.Line, root: root, offset: offset}
	if root.Kind != yaml.MappingNode {
		d.Errorf("", "must be an object with apiVersion and kind, not %s", describe(root))
		d.root = nil
	}
	return d
}

// blank counts the lines before the content of a document and says whether there is none.
func blank(data []byte) (lines int, empty bool) {
	for len(data) > 0 {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		trimmed := bytes.TrimSpace(line)
		if len(trimmed) > 0 && trimmed[0] != '#' && string(trimmed) != "---" && !bytes.HasPrefix(line, []byte("%YAML")) {
			return lines, false
		}
		lines++
		data = rest
	}
	return 0, true
}

// syntaxError takes line and message out of an error of the YAML parser. The parser often names the line where the
// broken object begins. For documents of a usual size, the line after the longest part that is valid by itself is closer.
func syntaxError(err error, data []byte) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				line, message = n, text
			}
		}
	}
	const usual = 16 << 10
	if len(data) > usual {
		return line, message
	}
	var ends []int // of the lines
	for i, b := range data {
		if b == '\n' {
			ends = append(ends, i+1)
		}
	}
	valid := func(lines int) bool {
		var node yaml.Node
		return lines == 0 || yaml.Unmarshal(data[:ends[lines-1]], &node) == nil
	}
	// A part may be broken only because it ends within brackets or quotes. So look a little further before a line is
	// taken for the culprit, but not for ever.
	good := 0
	for range 8 {
		good += sort.Search(len(ends)-good, func(n int) bool { return !valid(good + n + 1) })
		next := good + 1
		for next <= len(ends) && next <= good+8 && !valid(next) {
			next++
		}
		if next > len(ends) || next > good+8 {
			break
		}
		good = next
	}
	return max(line, good+1), message
}

func broken(line int, format string, args ...any) *Document {
	d := &Document{Line: line}
	d.report(line, "", false, format, args...)
	return d
}

// Failed says that a problem of the document is an error and not just a warning.
func (d *Document) Failed() bool { return d.failed }

// Errorf reports an error in the field at path, which need not exist: the closest field around it gives the line.
func (d *Document) Errorf(path, format string, args ...any) {
	d.report(d.LineOf(path), path, false, format, args...)
}

// Warnf reports a warning in the field at path.
func (d *Document) Warnf(path, format string, args ...any) {
	d.report(d.LineOf(path), path, true, format, args...)
}

func (d *Document) report(line int, path string, warning bool, format string, args ...any) {
	d.failed = d.failed || !warning
	switch n := len(d.Problems); {
	case n < maxProblems:
		d.Problems = append(d.Problems, Problem{line, path, warning, fmt.Sprintf(format, args...)})
	case n == maxProblems:
		const message = "too many problems: the others are not reported"
		d.Problems = append(d.Problems, Problem{Line: d.Line, Warning: warning, Message: message})
	case !warning:
		d.Problems[maxProblems].Warning = false
	}
}

// LineOf returns the line of the field at path, or of the closest field around it that exists.
func (d *Document) LineOf(path string) int {
	line, node := d.Line, d.root
	for path != "" && node != nil {
		var key string
		var index, at int
		key, index, path = step(path)
		if at, node = child(node, key, index); node != nil {
			line = d.offset + at
		}
	}
	return line
}

// child returns a node of a mapping or sequence, and the line it stands at: for a field that of its key.
func child(node *yaml.Node, key string, index int) (line int, value *yaml.Node) {
	node = target(node)
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

// Text returns the text of the scalar at path, or "" if there is none.
func (d *Document) Text(path string) string {
	node := d.root
	for path != "" && node != nil {
		var key string
		var index int
		key, index, path = step(path)
		_, node = child(node, key, index)
	}
	if node == nil {
		return ""
	}
	if node = target(node); node.Kind != yaml.ScalarNode || null(node) {
		return ""
	}
	return node.Value
}

// Items returns the elements of the list under a key of the document as documents of their own, and false if there is no
// such list.
func (d *Document) Items(key string) (items []*Document, ok bool) {
	if d.root == nil {
		return nil, false
	}
	_, list := child(d.root, key, -1)
	if list == nil || target(list).Kind != yaml.SequenceNode {
		return nil, false
	}
	for _, node := range target(list).Content {
		items = append(items, document(node, d.offset))
	}
	return items, true
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

// describe says in words what a node is.
func describe(node *yaml.Node) string {
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

// clip shortens text that is repeated in a message.
func clip(s string) string {
	const most = 64
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}
