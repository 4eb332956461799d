package route

import (
	"math/bits"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"
)

// A regular expression mostly has some text in it that every string which it matches has, too. A table of many of them files
// each under a few bytes of such a text, a gram, that the fewest others share. Of a path all grams are looked up.

// gramSizes are the lengths of grams in bytes, the better ones first: a text has some of the first size that it is long
// enough for.
var gramSizes = [...]int{4, 2}

// grams files matches under grams.
type grams struct {
	lists map[string][]int32

	// Most grams of a path are in no list, which a bit tells for less than a look-up.
	set  []uint64
	down int // by how much a hash is shifted to be a position in set
}

func (g *grams) file(gram string, i int32) {
	if g.lists == nil {
		g.lists = make(map[string][]int32)
	}
	if list := g.lists[gram]; len(list) == 0 || list[len(list)-1] != i {
		g.lists[gram] = append(list, i)
	}
}

// seal makes what grams are looked up by.
func (g *grams) seal() {
	const bitsEach = 16
	if g.lists == nil {
		return
	}
	width := max(6, bits.Len(uint(len(g.lists)*bitsEach)))
	g.set, g.down = make([]uint64, 1<<width/64), 32-width
	for gram := range g.lists {
		at := g.hash(number(gram))
		g.set[at/64] |= 1 << (at % 64)
	}
}

func (g *grams) hash(gram uint32) uint32 { return gram * 0x9E3779B1 >> g.down }

// number returns the bytes of a gram as a number.
func number(gram string) (n uint32) {
	for i := range len(gram) {
		n = n<<8 | uint32(gram[i])
	}
	return n
}

// find calls first with the list of each gram of a path, and with what it returned last, at first best.
func (g *grams) find(size int, path string, best int32, first func([]int32, int32) int32) int32 {
	mask := uint32(1)<<(8*size) - 1 // for the size of a number all its bits
	var gram uint32
	for i := range len(path) {
		gram = (gram<<8 | uint32(lower(path[i]))) & mask
		if i+1 < size {
			continue
		}
		at := g.hash(gram)
		if g.set[at/64]&(1<<(at%64)) == 0 {
			continue
		}
		var text [4]byte
		for j := range size {
			text[j] = byte(gram >> (8 * (size - 1 - j)))
		}
		best = first(g.lists[string(text[:size])], best)
	}
	return best
}

// lower returns a letter of ASCII in lower case, and any other byte as it is.
func lower(b byte) byte {
	if 'A' <= b && b <= 'Z' {
		b += 'a' - 'A'
	}
	return b
}

// mostAlternatives is how many texts may stand for one another.
const mostAlternatives = 16

// fileGrams adds what a match may be filed under if each path that it applies to has one of the texts: a gram of each. There is
// nothing to add if a text is too short.
func fileGrams(all []option, texts []string) []option {
	for _, size := range gramSizes {
		if slices.ContainsFunc(texts, func(text string) bool { return len(text) < size }) {
			continue
		}
		if len(texts) == 1 { // whichever gram is the rarest
			for i := range len(texts[0]) - size + 1 {
				all = append(all, option{first: condition{kind: onGram, text: texts[0][i : i+size]}})
			}
			return all
		}
		// Of alternatives the end is mostly what tells them apart.
		ends := make([]condition, len(texts))
		for i, text := range texts {
			ends[i] = condition{kind: onGram, text: text[len(text)-size:]}
		}
		return append(all, option{ends[0], ends[1:]})
	}
	return all
}

// literals returns texts that strings have which m matches: of each element at least one. ASCII is in lower case, in a string
// it may be in any case.
func (m *stringMatcher) literals() [][]string {
	switch {
	case m.kind == Regex:
		re, err := syntax.Parse(m.re.String(), syntax.Perl)
		if err != nil {
			return nil // it was parsed before
		}
		return required(re)
	case (m.kind == Exact || m.kind == Prefix) && m.fold:
		return pieces([]rune(m.value), true)
	}
	return nil
}

// required returns texts that a match of the expression has: of each element at least one.
func required(re *syntax.Regexp) (all [][]string) {
	switch re.Op {
	case syntax.OpLiteral:
		return pieces(re.Rune, re.Flags&syntax.FoldCase != 0)
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			all = append(all, required(sub)...)
		}
		return all
	case syntax.OpCapture, syntax.OpPlus:
		return required(re.Sub[0])
	case syntax.OpRepeat:
		if re.Min > 0 {
			return required(re.Sub[0])
		}
	case syntax.OpAlternate:
		var any []string
		for _, sub := range re.Sub {
			texts := longest(required(sub))
			if texts == nil || len(any)+len(texts) > mostAlternatives {
				return nil
			}
			any = append(any, texts...)
		}
		return [][]string{any}
	}
	return nil
}

// longest returns the element whose shortest text is the longest.
func longest(all [][]string) (best []string) {
	length := 0
	for _, texts := range all {
		shortest := len(slices.MinFunc(texts, func(a, b string) int { return len(a) - len(b) }))
		if shortest > length {
			best, length = texts, shortest
		}
	}
	return best
}

// pieces returns the parts of a literal that are the same in each string that it matches, but for the case of ASCII. To
// ignore case, some letters have to be left out, since others than those of ASCII fold to them. A byte that is no UTF-8 matches
// the replacement character.
func pieces(literal []rune, fold bool) (all [][]string) {
	parts := strings.FieldsFunc(string(literal), func(r rune) bool {
		return r == utf8.RuneError || fold && (r >= utf8.RuneSelf || strings.ContainsRune("kKsS", r))
	})
	for _, part := range parts {
		text := []byte(part)
		for i := range text {
			text[i] = lower(text[i])
		}
		all = append(all, []string{string(text)})
	}
	return all
}
