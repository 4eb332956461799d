package yamldoc

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// Sum identifies the text of a document, or what an item of a List says.
type Sum [sha256.Size]byte

// Digest has what [ParseNew] needs to know about a document in order not to parse it: where it begins in its text, and its problems.
type Digest struct {
	line     int
	problems []Problem // with lines of the text
}

// Sum returns the Sum of the document. It reports false if it has none: it cannot be parsed, or is an item of a List with aliases.
func (d *Document) Sum() (Sum, bool) {
	return d.sum, d.sum != Sum{}
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
	digest := &Digest{line: d.Line - d.offset, problems: slices.Clone(d.Problems)}
	for i := range digest.problems {
		digest.problems[i].Line -= d.offset
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
		d.report(d.offset+p.Line, p.Path, p.Warning, "%s", p.Message)
	}
}

// restore returns the document of a digest, at another place.
func (s *stream) restore(from *Digest, offset int) *Document {
	d := &Document{Line: offset + from.line, stream: s, offset: offset, unread: true}
	d.Report(from)
	return d
}

// KnownItems is Items for a list whose elements all have a digest. sums are their Sums. None of them is parsed.
func (d *Document) KnownItems(key string, digests []*Digest, sums []Sum) (items []*Document) {
	for i, digest := range digests {
		if message := d.stream.documented(); message != "" {
			d.Errorf(key, "%s", message)
			break
		}
		item := d.stream.restore(digest, d.offset)
		item.depth, item.of, item.key, item.nth, item.sum = d.depth+1, d, key, i, sums[i]
		items = append(items, item)
	}
	return items
}

// Renew drops the problems that were reported since the digest was made.
func (d *Document) Renew(digest *Digest) {
	d.stream.problems -= len(d.Problems)
	d.stream.run.problems -= len(d.Problems)
	d.Problems, d.failed, d.omitted = nil, false, 0
	d.Report(digest)
}

// Kept returns the document in a form to keep: not parsed, and without problems. See [Document.Restored].
func (d *Document) Kept() *Document {
	kept := &Document{Line: d.Line, text: d.text, sum: d.sum, offset: d.offset, depth: d.depth, unread: true, key: d.key, nth: d.nth}
	if d.of != nil {
		if kept.of = d.stream.kept[d.of]; kept.of == nil {
			if d.stream.kept == nil {
				d.stream.kept = make(map[*Document]*Document)
			}
			kept.of = d.of.Kept()
			d.stream.kept[d.of] = kept.of
		}
	}
	return kept
}

// Unload undoes what a document that was kept, or a copy of it, has parsed of its List.
func (d *Document) Unload() {
	for list := d.of; list != nil; list = list.of {
		list.root, list.unread = nil, true
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
	if d.of != nil {
		elements, _ := d.of.list(d.key)
		d.root = target(elements[d.nth])
		return
	}
	c := chunk{data: d.text}
	c.parse()
	d.root = c.root
}

// InList reports whether the document is an item of a List.
func (d *Document) InList() bool { return d.of != nil }

// Raw returns the text of the document in its stream, even if it cannot be parsed. It is nil for an item of a List, and for the document
// that reports problems of several documents. For an item that is not an object, it has the scalars of the item.
func (d *Document) Raw() []byte {
	if d.text != nil {
		return d.text
	}
	return d.broken
}
