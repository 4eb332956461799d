package route

import (
	"math/bits"
	"regexp/syntax"
	"slices"
	"strings"
	"unicode/utf8"
)

// Most regular expressions contain text that every string they match contains too. A table with many expressions files each one under a
// gram: a few bytes of such text, chosen so that few other expressions share them. A path is looked up by all of its grams.

// gramSizes are the lengths of grams in bytes, the most selective first. The grams of a text have the first length that it is long
// enough for.
var gramSizes = [...]int{4, 2}

// grams files matches under grams.
type grams struct {
	lists map[string][]int32

	// Most grams of a path are in no list. Testing a bit finds that out faster than a map look-up.
	set  []uint64
	down int // how far a hash is shifted to get a position in set
}

func (g *grams) file(gram string, i int32) {
	if g.lists == nil {
		g.lists = make(map[string][]int32)
	}
	if list := g.lists[gram]; len(list) == 0 || list[len(list)-1] != i {
		g.lists[gram] = append(list, i)
	}
}

// seal builds the set of bits, once all matches are filed.
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

// find calls first with the list of each gram of a path. The second argument is the previous result of first, or best at the beginning.
func (g *grams) find(size int, path string, best int32, first func([]int32, int32) int32) int32 {
	mask := uint32(1)<<(8*size) - 1 // all bits if size is that of a uint32
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

// mostAlternatives bounds the texts of an element of literals.
const mostAlternatives = 16

// fileGrams adds the ways to file a match whose paths all contain one of the texts: under one gram of each text. It adds nothing if a
// text is too short.
func fileGrams(all []option, texts []string) []option {
	for _, size := range gramSizes {
		if slices.ContainsFunc(texts, func(text string) bool { return len(text) < size }) {
			continue
		}
		if len(texts) == 1 { // each gram is an option: the rarest will be chosen
			for i := range len(texts[0]) - size + 1 {
				all = append(all, option{first: condition{kind: onGram, text: texts[0][i : i+size]}})
			}
			return all
		}
		// Alternatives mostly differ at the end.
		ends := make([]condition, len(texts))
		for i, text := range texts {
			ends[i] = condition{kind: onGram, text: text[len(text)-size:]}
		}
		return append(all, option{ends[0], ends[1:]})
	}
	return all
}

// literals returns lists of texts. Every string that m matches contains at least one text of each list. The texts are in lower case;
// strings contain them in any case of ASCII.
func (m *stringMatcher) literals() [][]string {
	switch {
	case m.kind == Regex:
		re, err := syntax.Parse(m.re.String(), syntax.Perl)
		if err != nil {
			return nil // it was parsed before, so this cannot happen
		}
		return required(re)
	case (m.kind == Exact || m.kind == Prefix) && m.fold:
		return pieces([]rune(m.value), true)
	}
	return nil
}

// required returns lists of texts. Every match of the expression contains at least one text of each list.
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

// pieces returns the parts of a literal that every string it matches contains, apart from the case of ASCII. If the literal ignores case,
// the letters that letters beyond ASCII fold to are left out. So is the replacement character, which any byte that is not UTF-8 matches.
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
