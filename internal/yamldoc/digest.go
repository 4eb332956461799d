package yamldoc

import (
	"crypto/sha256"
	"slices"
)

// Sum identifies the text of a document.
type Sum [sha256.Size]byte

// Digest has what [ParseNew] needs to know about a document in order not to parse it: where it begins in its text, and its problems.
type Digest struct {
	line     int
	problems []Problem // with lines of the text
}

// Sum returns the Sum of the document's text. It reports false if the document has no text of its own, like an item of a List.
func (d *Document) Sum() (Sum, bool) {
	return d.sum, d.text != nil
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

// KnownItems is Items for a list whose elements all have a digest. None of them is parsed.
func (d *Document) KnownItems(key string, digests []*Digest) (items []*Document) {
	for i, digest := range digests {
		if message := d.stream.documented(); message != "" {
			d.Errorf(key, "%s", message)
			break
		}
		item := d.stream.restore(digest, d.offset)
		item.depth, item.of, item.key, item.nth = d.depth+1, d, key, i
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
		kept.of = d.of.Kept()
	}
	return kept
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

// Raw returns the text of the document in its stream, even if it cannot be parsed. It is nil for an item of a List, and for the document
// that reports problems of several documents.
func (d *Document) Raw() []byte {
	if d.text != nil {
		return d.text
	}
	return d.broken
}
