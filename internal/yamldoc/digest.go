package yamldoc

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Sum identifies the text of a document, or what an item of a List says.
type Sum [sha256.Size]byte

// SumOf returns the Sum of a text.
func SumOf(text []byte) Sum { return sha256.Sum256(text) }

// Digest has what [ParseNew] needs to know about a document in order not to parse it: where it begins in its text, and its problems.
type Digest struct {
	// Content is what the caller has made of the document; see [Document.Content].
	Content any

	sum      Sum // zero if it has none
	line     int
	problems []Problem // with lines of the text
}

// Sum returns the Sum of the document. It reports false if it has none: it cannot be parsed, or is an item of a List with aliases.
func (d *Document) Sum() (Sum, bool) {
	if d.digest == nil {
		return Sum{}, false
	}
	return d.digest.sum, d.digest.sum != Sum{}
}

// Content returns the Content of the digest that the document was restored from. It is nil for a document that was parsed.
func (d *Document) Content() any {
	if d.digest == nil {
		return nil
	}
	return d.digest.Content
}

// Outline says where the documents of a stream are, and has their digests. It does not change once all documents were added.
type Outline struct{ entries []entry }

// entry is a document of an outline: its first line, and its place in the text of its stream.
type entry struct {
	*Digest
	line, at, size int32
}

// Add adds the next document of the stream.
func (o *Outline) Add(d *Document, digest *Digest) {
	o.entries = append(o.entries, entry{digest, d.offset + 1, d.at, int32(len(d.text))})
}

// Len returns the number of documents.
func (o *Outline) Len() int { return len(o.entries) }

// Digests yields the digest of each document, by its Sum.
func (o *Outline) Digests() iter.Seq2[Sum, *Digest] {
	return func(yield func(Sum, *Digest) bool) {
		for _, e := range o.entries {
			if !yield(e.sum, e.Digest) {
				return
			}
		}
	}
}

// sumOf returns the Sum of an item of a List, without its comments and its place. It is zero if the item has aliases: what they stand for may be
// outside of it.
func sumOf(item *yaml.Node) Sum {
	text, own := said(nil, item)
	if !own {
		return Sum{}
	}
	return sha256.Sum256(text)
}

// said appends what a node says to text, in a form of its own for each.
func said(text []byte, node *yaml.Node) (_ []byte, own bool) {
	text = fmt.Appendf(text, "%d %q %q %d\n", node.Kind, node.ShortTag(), node.Value, len(node.Content))
	own = node.Kind != yaml.AliasNode
	for _, part := range node.Content {
		if !own {
			break
		}
		text, own = said(text, part)
	}
	return text, own
}

// Digest returns the digest of the document with its current problems.
func (d *Document) Digest() *Digest {
	offset := int(d.offset)
	digest := &Digest{line: d.Line - offset, problems: slices.Clone(d.Problems)}
	digest.sum, _ = d.Sum()
	for i := range digest.problems {
		digest.problems[i].Line -= offset
	}
	return digest
}

// Again returns a copy of the document without problems. Problems of the copy do not count towards the limits of the stream.
func (d *Document) Again() *Document {
	d.load()
	return &Document{Line: d.Line, root: d.root, offset: d.offset, depth: d.depth, stream: &stream{run: new(run)}}
}

// Without returns the digest without the problems that other has too.
func (d *Digest) Without(other *Digest) *Digest {
	rest := &Digest{line: d.line}
	for _, p := range d.problems {
		if !slices.Contains(other.problems, p) {
			rest.problems = append(rest.problems, p)
		}
	}
	return rest
}

// Report reports the problems of a digest of the same text.
func (d *Document) Report(digest *Digest) {
	for _, p := range digest.problems {
		d.report(int(d.offset)+p.Line, p.Path, p.Warning, "%s", p.Message)
	}
}

// restore makes d the document of an entry in a stream with the given text, and returns it.
func (s *stream) restore(d *Document, from entry, text []byte) *Document {
	*d = Document{
		Line: int(from.line) - 1 + from.Digest.line, stream: s, digest: from.Digest,
		text: text[from.at : from.at+from.size], at: from.at, offset: from.line - 1, unread: true,
	}
	d.Report(from.Digest)
	return d
}

// KnownItems is Items for a list whose elements all have a digest. None of them is parsed.
func (d *Document) KnownItems(key string, digests []*Digest) (items []*Document) {
	for i, digest := range digests {
		if message := d.stream.documented(1); message != "" {
			d.Errorf(key, "%s", message)
			break
		}
		one := d.stream.restore(new(Document), entry{Digest: digest, line: d.offset + 1}, nil)
		one.depth, one.item = d.depth+1, &item{d, key, i}
		items = append(items, one)
	}
	return items
}

// Renew drops the problems that were reported since the digest was made.
func (d *Document) Renew(digest *Digest) {
	d.stream.problems -= int32(len(d.Problems))
	d.stream.run.problems -= len(d.Problems)
	d.Problems, d.failed, d.omitted = nil, false, 0
	d.Report(digest)
}

// Kept returns the document in a form to keep: not parsed, and without problems. See [Document.Restored].
func (d *Document) Kept() *Document {
	kept := &Document{Line: d.Line, text: d.text, digest: d.digest, offset: d.offset, depth: d.depth, unread: true}
	if in := d.item; in != nil {
		list := d.stream.kept[in.of]
		if list == nil {
			if d.stream.kept == nil {
				d.stream.kept = make(map[*Document]*Document)
			}
			list = in.of.Kept()
			d.stream.kept[in.of] = list
		}
		kept.item = &item{list, in.key, in.nth}
	}
	return kept
}

// Unload undoes what a document that was kept, or a copy of it, has parsed of its List.
func (d *Document) Unload() {
	for in := d.item; in != nil; in = in.of.item {
		in.of.root, in.of.unread = nil, true
	}
}

// Restored returns a copy of a document that was kept, with the problems of its digest. They do not count towards the limits of a stream.
func (d *Document) Restored(digest *Digest) *Document {
	restored := *d
	restored.stream = &stream{run: new(run)}
	restored.Report(digest)
	return &restored
}

// load parses the document if it was not yet parsed.
func (d *Document) load() {
	if !d.unread {
		return
	}
	d.unread = false
	if in := d.item; in != nil {
		elements, _ := in.of.list(in.key)
		d.root = in.of.element(elements[in.nth])
		return
	}
	c := chunk{data: d.text}
	c.parse()
	d.root = c.root
}

// List returns the List that the document is an item of, or nil.
func (d *Document) List() *Document {
	if d.item == nil {
		return nil
	}
	return d.item.of
}

// Raw returns the text of the document in its stream, even if it cannot be parsed. It is nil for an item of a List, and for the document
// that reports problems of several documents. For an item that is not an object, it has the scalars of the item.
func (d *Document) Raw() []byte { return d.text }
