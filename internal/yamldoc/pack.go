package yamldoc

import (
	"encoding/binary"

	"go.yaml.in/yaml/v3"
)

// Words has the strings that documents repeat, mainly names of fields. Packed documents refer to them by number. It is immutable and safe for
// concurrent use.
type Words struct {
	list   []string
	index  map[string]int
	shapes []shape
	known  map[shape]int // the index of each shape
}

// shape has the properties of a node other than its value. There are few different shapes.
type shape struct {
	kind  yaml.Kind
	style yaml.Style
	tag   string
}

// worthwhile is how often a string must occur to become a word.
const worthwhile = 16

// NewWords returns the strings that docs repeat.
func NewWords(docs []*Document) *Words {
	w := &Words{index: make(map[string]int), known: make(map[shape]int)}
	seen := make(map[string]int)
	var count func(node *yaml.Node)
	count = func(node *yaml.Node) {
		s := shape{node.Kind, node.Style, node.Tag}
		if _, ok := w.known[s]; !ok && len(w.shapes) < 100 {
			w.known[s] = len(w.shapes)
			w.shapes = append(w.shapes, s)
		}
		if seen[node.Value]++; seen[node.Value] == worthwhile {
			w.index[node.Value] = len(w.list)
			w.list = append(w.list, node.Value)
		}
		for _, inner := range node.Content {
			count(inner)
		}
	}
	for _, d := range docs {
		if d.load(); d.root != nil {
			count(d.root)
		}
	}
	return w
}

// Packed is a compact form of a document. It does not include lines, so a problem that is found in it has none.
type Packed string

// Pack packs a document. It returns "" for a document with aliases, which could become much larger.
func (w *Words) Pack(d *Document) Packed {
	d.load()
	if d.root == nil {
		return ""
	}
	b, ok := w.pack(nil, d.root)
	if !ok {
		return ""
	}
	return Packed(b)
}

func (w *Words) pack(b []byte, node *yaml.Node) (_ []byte, ok bool) {
	if node.Kind == yaml.AliasNode {
		return nil, false
	}
	s := shape{node.Kind, node.Style, node.Tag}
	if i, ok := w.known[s]; ok {
		b = append(b, byte(i)+1)
	} else {
		b = append(b, 0, byte(s.kind))
		b = binary.AppendUvarint(b, uint64(s.style))
		b = w.text(b, s.tag)
	}
	if node.Kind == yaml.ScalarNode {
		return w.text(b, node.Value), true
	}
	b = binary.AppendUvarint(b, uint64(len(node.Content)))
	for _, inner := range node.Content {
		if b, ok = w.pack(b, inner); !ok {
			return nil, false
		}
	}
	return b, true
}

// text appends the number of a word, or the length of any other string followed by the string. The lowest bit distinguishes the two.
func (w *Words) text(b []byte, text string) []byte {
	if i, ok := w.index[text]; ok {
		return binary.AppendUvarint(b, uint64(i)<<1|1)
	}
	return append(binary.AppendUvarint(b, uint64(len(text))<<1), text...)
}

// Unpack decodes a packed document into the struct that into points to, as [Decoder.Decode] does.
func (w *Words) Unpack(p Packed, into any) {
	u := unpacker{words: w, rest: string(p)}
	root := u.node()
	d := &Document{stream: &stream{run: new(run)}, root: &root}
	new(Decoder).Decode(d, into)
}

// unpacker reads a packed document.
type unpacker struct {
	words *Words
	rest  string
}

func (u *unpacker) number() int {
	n := uint64(0)
	for shift := 0; ; shift += 7 {
		c := u.rest[0]
		u.rest = u.rest[1:]
		if n |= uint64(c&0x7F) << shift; c < 0x80 {
			return int(n)
		}
	}
}

func (u *unpacker) text() string {
	n := u.number()
	if n&1 == 1 {
		return u.words.list[n>>1]
	}
	text := u.rest[:n>>1]
	u.rest = u.rest[n>>1:]
	return text
}

func (u *unpacker) node() yaml.Node {
	var s shape
	if i := u.number(); i > 0 {
		s = u.words.shapes[i-1]
	} else {
		s.kind, s.style, s.tag = yaml.Kind(u.number()), yaml.Style(u.number()), u.text()
	}
	node := yaml.Node{Kind: s.kind, Style: s.style, Tag: s.tag}
	if s.kind == yaml.ScalarNode {
		node.Value = u.text()
		return node
	}
	inner := make([]yaml.Node, u.number())
	for i := range inner {
		inner[i] = u.node()
		node.Content = append(node.Content, &inner[i])
	}
	return node
}
