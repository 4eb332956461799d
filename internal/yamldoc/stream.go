package yamldoc

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Parse splits streams into documents and parses each separately, so a malformed one does not hide the others. It returns the documents of each
// stream, without those that have no content. It uses all processors.
func Parse(streams ...[]byte) [][]*Document {
	texts := make([]Stream, len(streams))
	for i, data := range streams {
		texts[i].Data = data
	}
	docs := make([][]*Document, len(streams))
	for _, d := range ParseNew(new(Room), texts, func(Sum) *Digest { return nil }) {
		docs[d.Stream()] = append(docs[d.Stream()], d)
	}
	return docs
}

// Stream is a stream of documents.
type Stream struct {
	Data  []byte
	Err   error    // why Data is not a text to parse; its text may begin with the line, as in "3: "
	Known *Outline // if it was parsed before, and all of its documents have a digest; otherwise nil
}

// unreadable returns the chunk of a stream with an Err.
func (s *stream) unreadable(from Stream) chunk {
	line, message := 1, from.Err.Error()
	if number, rest, ok := strings.Cut(message, ": "); ok {
		if n, err := strconv.Atoi(number); err == nil {
			line, message = n, rest
		}
	}
	doc := s.report(line, "%s", message)
	doc.text = from.Data
	return chunk{stream: s, doc: doc}
}

// Room is memory for the documents of [ParseNew], which can be used again. The zero Room is ready to use.
type Room struct {
	streams   []stream
	chunks    []chunk
	documents []Document
	list      []*Document
}

// Clear makes room for another ParseNew. The documents of the last one must not be used any more, unless they are [Document.Kept].
func (r *Room) Clear() {
	clear(r.streams[:cap(r.streams)])
	clear(r.chunks[:cap(r.chunks)])
	clear(r.documents[:cap(r.documents)])
	clear(r.list[:cap(r.list)])
}

// ParseNew is Parse for new versions of streams that were parsed before. It returns the documents of all streams, in order. It does not
// read streams with an outline, and does not parse documents for which known returns a digest: they get the place and the problems of the
// digest, and are parsed when their content is needed. known is called by several goroutines concurrently. The documents are in room, which must
// be clear.
func ParseNew(room *Room, streams []Stream, known func(Sum) *Digest) []*Document {
	all := &run{search: maxSearch}
	room.streams = slices.Grow(room.streams[:0], len(streams))[:len(streams)]
	each := room.streams
	chunks := room.chunks[:0]
	outlined := 0
	for i := range each {
		s := &each[i]
		s.run, s.index, s.outline = all, int32(i), streams[i].Known
		if streams[i].Err != nil {
			chunks, s.outline = append(chunks, s.unreadable(streams[i])), nil
		} else if s.outline == nil {
			chunks = s.split(chunks, streams[i].Data)
		} else if message := s.documented(s.outline.Len()); message != "" {
			s.outline = nil
			chunks = append(chunks, chunk{stream: s, doc: s.report(1, "%s", message)})
		} else {
			outlined += s.outline.Len()
		}
	}
	room.chunks = chunks
	readChunks(chunks, known)

	n := outlined + len(chunks)
	room.list, room.documents = slices.Grow(room.list[:0], n), slices.Grow(room.documents[:0], n)[:n]
	docs, slab := room.list, room.documents
	for i := range each {
		s := &each[i]
		if s.outline != nil {
			for _, e := range s.outline.entries {
				docs, slab = append(docs, s.restore(&slab[0], e, streams[i].Data)), slab[1:]
			}
		}
		for ; len(chunks) > 0 && chunks[0].stream == s; chunks, slab = chunks[1:], slab[1:] {
			if doc := chunks[0].document(&slab[0]); doc != nil {
				docs = append(docs, doc)
			}
		}
	}
	return docs
}

// readChunks reads chunks on all processors.
func readChunks(chunks []chunk, known func(Sum) *Digest) {
	var next atomic.Int64
	parse := func() {
		for i := next.Add(1) - 1; i < int64(len(chunks)); i = next.Add(1) - 1 {
			chunks[i].read(known)
		}
	}
	var helpers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), len(chunks)/8) - 1 {
		helpers.Go(parse)
	}
	parse()
	helpers.Wait()
}

// document returns the document of a chunk that was read, or nil if there is none. If it is known, it is made in the given place.
func (c *chunk) document(place *Document) *Document {
	switch {
	case c.err != nil:
		c.broken()
	case c.known != nil:
		at := entry{c.known, int32(c.line), int32(c.at), int32(len(c.data))}
		return c.restore(place, at, c.whole)
	case c.root != nil:
		d := c.stream.document(c.root, c.line-1)
		d.text, d.at, d.digest = c.data, int32(c.at), &Digest{sum: c.sum}
		return d
	}
	return c.doc
}

// Empty reports whether the streams contain no document, and nothing that was meant to be one. A List without items does not count. It stops at
// the first document.
func Empty(streams ...[]byte) bool {
	for _, data := range streams {
		s := &stream{run: new(run)}
		for _, c := range s.split(nil, data) {
			if c.parse(); c.doc != nil || c.err != nil || c.root != nil && !c.document(new(Document)).emptyList() {
				return false
			}
		}
	}
	return true
}

func (d *Document) emptyList() bool {
	return strings.HasSuffix(d.Text("kind"), "List") && d.HasItems("items") && d.Len("items") == 0
}

// run is one run of Parse. It counts what its streams have used of their common limits.
type run struct {
	documents int
	problems  int
	search    int // how many bytes may still be parsed again to find the places of errors
}

// stream is one of the streams of a run.
type stream struct {
	*run
	outline   *Outline // used instead of the text, if not nil
	index     int32
	documents int32
	problems  int32
	broken    int32     // documents that are not valid YAML
	rest      *Document // reports the documents beyond maxBroken

	kept map[*Document]*Document // Lists in the form in which their items keep them
}

// admits counts a problem and reports whether it may be kept.
func (s *stream) admits() bool {
	if s.problems >= maxStreamProblems || s.run.problems >= maxAllProblems {
		return false
	}
	s.problems++
	s.run.problems++
	return true
}

// documented counts n documents. It returns an error message if there are too many. The first document of a stream does not count for all
// streams: the objects of an API server have a stream each, and those of one namespace must not have others refused.
func (s *stream) documented(n int) string {
	first := 0
	if s.documents == 0 {
		first = min(n, 1)
	}
	s.documents += int32(n)
	s.run.documents += n - first
	switch {
	case s.documents > maxDocuments:
		return fmt.Sprintf("more than %d documents: split it into several files", maxDocuments)
	case s.documents > 1 && s.run.documents > maxAllDocuments:
		return fmt.Sprintf("more than %d documents together with the files before it", maxAllDocuments)
	}
	return ""
}

// chunk is a part of a stream that may be a document.
type chunk struct {
	*stream
	whole []byte // the text of the stream
	data  []byte
	at    int // where data begins in whole
	line  int // the line of the stream at which it begins
	skip  int // the number of lines before the first content
	sum   Sum
	root  *yaml.Node
	err   error // why it could not be parsed
	doc   *Document

	known *Digest // used instead of root, if not nil
}

// split appends the chunks of the text of a stream.
func (s *stream) split(chunks []chunk, data []byte) []chunk {
	before, whole := len(chunks), data
	refuse := func(format string, args ...any) []chunk {
		return append(chunks[:before], chunk{stream: s, doc: s.report(1, format, args...)})
	}
	if len(data) > maxStream {
		return refuse("larger than %d MiB: split it into several files", maxStream>>20)
	}
	if bytes.HasPrefix(data, []byte{0xFE, 0xFF}) || bytes.HasPrefix(data, []byte{0xFF, 0xFE}) {
		return refuse("UTF-16 text: save the file as UTF-8")
	}
	data = bytes.TrimPrefix(data, []byte("\uFEFF"))
	chunks = slices.Grow(chunks, min(bytes.Count(data, []byte("\n---"))+1, maxDocuments))
	for line := 1; len(data) > 0; {
		end, next, lines := cut(data)
		if skip, empty := blank(data[:end]); !empty {
			if message := s.documented(1); message != "" {
				return refuse("%s", message)
			}
			chunks = append(chunks, chunk{stream: s, whole: whole, data: data[:end], at: len(whole) - len(data), line: line, skip: skip})
		}
		line += lines
		if data = data[end:]; next > end {
			data = data[next-end:]
			if text, _, _ := bytes.Cut(data, []byte("\n")); !bare(text) {
				if message := s.documented(1); message != "" {
					return refuse("%s", message)
				}
				doc := s.report(line, `text after "...": begin the document on a line of its own, after "---"`)
				doc.text = text
				chunks = append(chunks, chunk{stream: s, doc: doc})
				data = data[len(text):]
			}
		}
	}
	return chunks
}

const endMark = "..."

// cut returns where the first document in data ends, where the next one begins, and the number of lines before the latter. Only an end mark can
// be between them. A line that starts with "---" or "..." is a boundary everywhere, even in block scalars and quotes (YAML 1.2, section 9.1.2),
// so finding it needs no parser.
func cut(data []byte) (end, next, lines int) {
	for pos := 0; pos < len(data); {
		rest := data[pos:]
		if lines > 0 && marker(rest, "---") {
			return pos, pos, lines
		}
		if marker(rest, endMark) {
			return pos, pos + len(endMark), lines
		}
		width := bytes.IndexByte(rest, '\n') + 1
		if width == 0 {
			width = len(rest)
		}
		lines++
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

// bare reports whether the first line of text has no content.
func bare(text []byte) bool {
	line, _ := cutLine(text)
	line = bytes.TrimLeft(line, " \t")
	return len(line) == 0 || line[0] == '#'
}

// cutLine cuts text at its first line break. The parser also accepts the line breaks of YAML 1.1, which are more than LF and CRLF.
func cutLine(text []byte) (line, rest []byte) {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n':
			return text[:i], text[i+1:]
		case c == '\r':
			return text[:i], bytes.TrimPrefix(text[i+1:], []byte("\n"))
		case c == 0xC2 && bytes.HasPrefix(text[i:], []byte("\u0085")):
			return text[:i], text[i+2:]
		case c == 0xE2 && (bytes.HasPrefix(text[i:], []byte("\u2028")) || bytes.HasPrefix(text[i:], []byte("\u2029"))):
			return text[:i], text[i+3:]
		}
	}
	return text, nil
}

// blank counts the lines before the content of a document, and reports whether the document certainly has no content: only comments, markers,
// directives and whatever else the parser ignores.
func blank(data []byte) (lines int, empty bool) {
	begun := false // directives are over
	for rest := data; len(rest) > 0; lines++ {
		var line []byte
		line, rest = cutLine(rest)
		if marker(line, "---") {
			line, begun = line[len("---"):], true
		} else if marker(line, "%YAML") && !begun {
			line = nil
		}
		if line = bytes.TrimLeft(line, " \t"); len(line) > 0 && (line[0] != '#' || !text(line)) {
			return lines, false
		}
	}
	return 0, true
}

// text reports whether the parser accepts line as text.
func text(line []byte) bool {
	for _, c := range line {
		if c < ' ' && c != '\t' || c == 0x7F {
			return false
		}
	}
	return utf8.Valid(line)
}

// read parses the chunk unless it is known. Chunks may be read concurrently.
func (c *chunk) read(known func(Sum) *Digest) {
	if c.doc != nil {
		return
	}
	c.sum = sha256.Sum256(c.data)
	if c.known = known(c.sum); c.known == nil {
		c.parse()
	}
}

func (c *chunk) parse() {
	if len(c.data) > maxDocument {
		c.err = fmt.Errorf("larger than %d KiB: split it into several documents", maxDocument>>10)
		return
	}
	var node, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(fromJSON(c.data)))
	if err := dec.Decode(&node); err != nil {
		if err != io.EOF {
			c.err = &notYAML{err}
		}
		return
	}
	// YAML has line breaks that cut does not look for, such as a lone CR. A document after one must not be lost.
	if err := dec.Decode(&second); err != io.EOF {
		at := second.Line
		if err != nil {
			at, _ = lineOf(err)
			at++ // the parser counts from 0
		}
		c.err = &secondDocument{at}
		return
	}
	if len(node.Content) > 0 && !null(node.Content[0]) {
		c.root = node.Content[0]
	}
}

// secondDocument is the error of a chunk in which a second document begins.
type secondDocument struct{ at int } // the line in the chunk, counted from 1

func (*secondDocument) Error() string {
	return "a second document begins here without a line --- of its own, which ends with LF or CRLF: add one"
}

// notYAML is an error of the YAML parser.
type notYAML struct{ error }

// broken reports why the chunk could not be parsed. If a stream has many such chunks, only the first ones are reported separately.
func (c *chunk) broken() {
	line := c.line + c.skip
	if c.stream.broken++; c.stream.broken > maxBroken {
		if c.rest == nil {
			c.rest = c.report(line, "")
			c.doc = c.rest
		}
		if problems := c.rest.Problems; len(problems) > 0 {
			problems[0].Message = fmt.Sprintf("%d more documents are not valid YAML, from this line on", c.stream.broken-maxBroken)
		}
		return
	}
	switch err := c.err.(type) {
	case *notYAML:
		at, message := c.syntaxError(err.error)
		line, c.err = max(line, c.line-1+at), errors.New("not valid YAML: "+message+c.advice(at, message))
	case *secondDocument:
		line = max(line, c.line-1+err.at)
	}
	c.doc = c.report(line, "%s", c.err)
	c.doc.text = c.data
}

// advice returns what may be wrong in a line, counted from 1, that is not valid YAML.
func (c *chunk) advice(line int, message string) string {
	lines := bytes.Split(c.data, []byte("\n"))
	if line < 1 || line > len(lines) {
		return ""
	}
	text := lines[line-1]
	indentation := text[:len(text)-len(bytes.TrimLeft(text, " \t"))]
	switch {
	case bytes.IndexByte(indentation, '\t') >= 0:
		return ": indent it with spaces, not with a tab"
	case bytes.Contains(text, []byte("{{")):
		return ": the line has " + template
	case strings.HasPrefix(message, "unknown anchor"):
		return ": define the anchor before it, in the same document"
	case strings.Contains(message, "UTF-8") || strings.HasPrefix(message, "control characters"):
		return ": save the file as UTF-8 text"
	case slices.ContainsFunc(lines, conflict):
		return ": the file has lines of a merge conflict, such as <<<<<<<: resolve it"
	case len(bytes.Trim(text, " \t\r-")) == 0 && bytes.Contains(text, []byte("--")):
		return ": the line between two documents is ---, without a space before it"
	}
	return ""
}

// conflict reports whether a line begins the conflict that a version control system has left in a file.
func conflict(line []byte) bool { return bytes.HasPrefix(line, []byte("<<<<<<< ")) }

// syntaxError returns the line and the message of an error of the YAML parser. The parser often names the line where the malformed object
// begins. For documents of a usual size, the line after the longest valid prefix is more precise.
func (c *chunk) syntaxError(err error) (line int, message string) {
	line, message = lineOf(err)
	const usual = 16 << 10
	if len(c.data) > usual {
		return line, message
	}
	var ends []int // of the lines
	for i, b := range c.data {
		if b == '\n' {
			ends = append(ends, i+1)
		}
	}
	valid := func(lines int) bool {
		if lines == 0 {
			return true
		}
		part := c.data[:ends[lines-1]]
		if c.search -= len(part); c.search < 0 {
			return false
		}
		var node yaml.Node
		return yaml.Unmarshal(part, &node) == nil
	}
	// A prefix may be invalid only because it ends within brackets or quotes. So look a little further before a line is blamed.
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
	if c.search < 0 {
		return line, message // the search was not completed
	}
	return max(line, good+1), message
}

// lineOf cuts the line, 0 if there is none, from the message of an error of the YAML parser.
func lineOf(err error) (line int, message string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if number, text, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(number); err == nil {
				return n, text
			}
		}
	}
	return 0, message
}

// report returns a document that has only this problem.
func (s *stream) report(line int, format string, args ...any) *Document {
	d := &Document{Line: line, stream: s}
	d.report(line, "", false, format, args...)
	return d
}

func (s *stream) document(root *yaml.Node, offset int) *Document {
	d := &Document{Line: offset + root.Line, stream: s, root: root, offset: int32(offset)}
	if root.Kind != yaml.MappingNode {
		d.Errorf("", "must be an object with apiVersion and kind, not %s", describe(root))
		scalars(root, "", make(map[*yaml.Node]bool), func(key, value string) bool {
			d.text = fmt.Appendf(d.text, "%s: %s\n", key, value)
			return true
		})
		d.root = nil
	}
	return d
}
