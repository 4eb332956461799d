package authz

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"
)

// reading is one way to read a path.
type reading struct {
	path    string
	decoded bool // all escapes are decoded, as in URL.Path: compare with patterns that are, too
}

// maxOddPath bounds the paths that have several readings by how many kinds of oddities they have: each multiplies the number of
// readings, and no path should cost more than the request it comes with.
var maxOddPath = [...]int{1: 2 << 10, 2: 768, 3: 256}

// tooLong reports whether a path that is not plain is too long for its oddities.
func tooLong(path string, found escapes) bool {
	if len(path) <= maxOddPath[len(maxOddPath)-1] {
		return false
	}
	if len(path) > maxOddPath[1] {
		return true
	}
	kinds := 0
	for _, there := range [...]bool{
		found.any,
		strings.Contains(path, ";"),
		strings.Contains(path, "#"),
		found.dot || found.slash || strings.Contains(path, "//") || strings.Contains(path, "/."),
		found.backslash || strings.Contains(path, `\`),
	} {
		if there {
			kinds++
		}
	}
	return len(path) > maxOddPath[min(max(kinds, 1), len(maxOddPath)-1)]
}

// escapes says which characters stand in a path percent-encoded.
type escapes struct {
	any, dot, slash, backslash bool
	nul, high, malformed       bool // high: what is no ASCII
}

func escapesOf(path string) (found escapes) {
	for i := strings.IndexByte(path, '%'); i >= 0 && i < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		found.any = true
		if !isEscape(path[i:]) {
			found.malformed = true
			continue
		}
		switch c := unhex(path[i+1])<<4 | unhex(path[i+2]); {
		case c == '.':
			found.dot = true
		case c == '/':
			found.slash = true
		case c == '\\':
			found.backslash = true
		case c == 0:
			found.nul = true
		case c >= utf8.RuneSelf:
			found.high = true
		}
		i += 2
	}
	return found
}

// read appends the readings of a request target to buf, none if it is malformed.
func (a *Authorizer) read(method, target string, buf []reading) []reading {
	path, plain, ok := targetPath(method, target)
	switch {
	case !ok:
		return nil
	case plain:
		buf = append(buf, reading{path: path})
		if a.escaped {
			buf = append(buf, reading{path: path, decoded: true})
		}
		return buf
	}
	if found := escapesOf(path); tooLong(path, found) || !valid(path, found) {
		return nil
	}
	mode := a.normalization
	if method == http.MethodConnect { // http.ServeMux cleans no path of these
		mode = None
	}
	return readings(path, mode, a.escaped)
}

// targetPath returns the path of a request target with what follows it but for the query (RFC 9112, section 3.2). A
// plain path has one reading only. The target of a CONNECT request has no path: it is "".
func targetPath(method, target string) (path string, plain, ok bool) {
	if target == "" {
		return "", false, false
	}
	if target[0] == '/' {
		path, plain = scan(target)
		return path, plain, true
	}
	if target == "*" {
		return target, true, true
	}
	if method == http.MethodConnect {
		// net/http would take what follows the authority for a path, though there is nothing to follow it.
		return "", true, !strings.ContainsAny(target, `/\?#%`)
	}
	path, _, _ = strings.Cut(target, "?")
	scheme, rest, ok := strings.Cut(path, "://")
	if !ok || !isScheme(scheme) {
		return "", false, false
	}
	authority, _, _ := strings.Cut(rest, "/")
	if strings.ContainsAny(authority, `\#%`) {
		return "", false, false
	}
	path = rest[len(authority):]
	if path == "" {
		return "/", true, true
	}
	path, plain = scan(path)
	return path, plain, true
}

func isScheme(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		case i > 0 && ('0' <= c && c <= '9' || c == '+' || c == '-' || c == '.'):
		default:
			return false
		}
	}
	return s != ""
}

// scan cuts the query off target, which begins with a slash, and reports whether what is left has one reading only.
func scan(target string) (path string, plain bool) {
	plain = true
	for i := range len(target) {
		switch c := target[i]; {
		case c == '?':
			return target[:i], plain
		case c == '/':
			plain = plain && !oddSegment(target[i+1:])
		case c == '%', c == '\\', c == ';', c == '#', c <= ' ', c >= 0x7f:
			plain = false
		}
	}
	return target, plain
}

// oddSegment reports whether rest begins with a segment that is a dot segment, or empty without being the last.
func oddSegment(rest string) bool {
	if rest == "" {
		return false
	}
	switch rest[0] {
	case '/':
		return true
	case '.':
		rest = strings.TrimPrefix(rest[1:], ".")
		return rest == "" || rest[0] == '/' || rest[0] == '?'
	}
	return false
}

// valid reports whether path has only well-formed escapes, is UTF-8 once decoded, and has no NUL.
func valid(path string, found escapes) bool {
	if found.malformed || found.nul || strings.IndexByte(path, 0) >= 0 {
		return false
	}
	if found.high {
		path = decodeEvery.apply(path)
	}
	return utf8.ValidString(path)
}

// decoding says which escapes are decoded, beside those of unreserved characters.
type decoding uint8

const (
	decodeNone    decoding = iota
	decodeSlashes          // %2F and %5C
	decodeEvery            // all, as URL.Path has it
)

// readings returns the ways to read a valid path that begins with a slash; the first is the one that mode means.
//
// What a reader does to a path, he does in this order: he decodes escapes, takes `\` for `/`, cuts parameters off
// segments, and resolves dot segments. Parameters may be cut off before all that, too, as Java's servers do:
// `/a;%2Fb/c` is `/a/b/c` or `/a/c`. And slashes are merged at the end, as Istio does, or before dot segments are
// resolved, as path.Clean does: `/a//../b` is `/a/b` or `/b`. All combinations count that mode does not rule out.
//
// net/http takes `\` for an ordinary character, so a path that has one is read with it, too: to http.ServeMux `/a\b` is one
// segment. In DecodeAndMergeSlashes, which says that the application takes it for a slash, that counts only where it may lead
// somewhere else altogether: beside dot segments, which have then less to climb over, and parameters, of which there is then
// more.
//
// Two oddities always count only there. net/http takes `#` for a part of the path: what follows it matters if it has segments
// of its own, or makes a dot segment another one. And http.ServeMux resolves dot segments before it decodes escapes, so that
// `/a/%2e%2e/b` belongs to the handler of `/a/`.
//
// Readings with every escape decoded are for patterns that differ once decoded. Without any (escaped is false), they
// are left out for a path that has no escapes either.
func readings(path string, mode Normalization, escaped bool) []reading {
	s := readingSet{mode: mode}
	if mode == None {
		s.add(decodeNone.apply(path))
		if escaped || strings.Contains(path, "%") {
			s.decoded = true
			s.add(decodeEvery.apply(path))
		}
	}
	cut, fragment, _ := strings.Cut(path, "#")
	s.addPath(cut, escaped)
	s.addRouted(cut)
	if strings.Contains(cut, ";") {
		s.addRouted(cutParameters(cut))
	}
	if strings.ContainsAny(fragment, `/\%`) || len(cut) < len(path) && endsInDots(cut) {
		s.addPath(path, escaped)
	}
	return s.all
}

// endsInDots reports whether the last segment of path is a dot segment to any reader.
func endsInDots(path string) bool {
	path = strings.ReplaceAll(decodeEvery.apply(path), `\`, "/")
	return strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..")
}

// readingSet is the readings of a path, without duplicates.
type readingSet struct {
	mode    Normalization
	decoded bool // of what is added
	all     []reading
	forms   []reading // whose segments were read
}

func (s *readingSet) add(path string) {
	if r := (reading{path, s.decoded}); !slices.Contains(s.all, r) {
		s.all = append(s.all, r)
	}
}

// addPath adds the readings of a path, with its parameters and without them.
func (s *readingSet) addPath(path string, escaped bool) {
	s.addDecoded(path, escaped)
	if strings.Contains(path, ";") {
		s.addDecoded(cutParameters(path), escaped)
	}
}

// addRouted adds what a path with escaped dot segments is to a router to which those are like any other.
func (s *readingSet) addRouted(path string) {
	if !escapesOf(path).dot || removeDots(decodeNone.apply(path)) == decodeNone.apply(removeDots(path)) {
		return
	}
	cleaned, normal := removeDots(mergeSlashes(path)), decodeNone
	if s.mode == DecodeAndMergeSlashes {
		normal = decodeSlashes
	}
	s.decoded = false
	s.add(mergeSlashes(normal.apply(cleaned)))
	s.decoded = true
	s.add(mergeSlashes(decodeEvery.apply(cleaned)))
}

// addDecoded adds the readings of a path by the escapes that are decoded.
func (s *readingSet) addDecoded(path string, escaped bool) {
	s.decoded = false
	normal := decodeNone.apply(path)
	slashes := normal
	if found := escapesOf(path); found.slash || found.backslash {
		slashes = decodeSlashes.apply(path)
	}
	if s.mode != DecodeAndMergeSlashes {
		s.addBackslashes(normal)
	}
	if s.mode == DecodeAndMergeSlashes || slashes != normal {
		s.addBackslashes(slashes)
	}
	if escaped || strings.Contains(path, "%") {
		s.decoded = true
		s.addBackslashes(decodeEvery.apply(path))
	}
}

// addBackslashes adds the readings of a path whose escapes are settled.
func (s *readingSet) addBackslashes(path string) {
	s.addParameters(strings.ReplaceAll(path, `\`, "/"))
	if strings.Contains(path, `\`) && (s.mode != DecodeAndMergeSlashes || strings.Contains(path, "..") || strings.Contains(path, ";")) {
		s.addParameters(path)
	}
}

func (s *readingSet) addParameters(path string) {
	s.addSegments(path)
	if strings.Contains(path, ";") {
		s.addSegments(cutParameters(path))
	}
}

func (s *readingSet) addSegments(path string) {
	form := reading{path, s.decoded}
	if slices.Contains(s.forms, form) {
		return // another way to read the path came to the same
	}
	s.forms = append(s.forms, form)
	resolved := removeDots(path)
	if s.mode == Base || s.mode == None {
		s.add(resolved)
	}
	s.add(mergeSlashes(resolved))
	if strings.Contains(path, "//") {
		s.add(removeDots(mergeSlashes(path)))
	}
}

// apply decodes the escapes of d in path. It writes the others in upper case, and leaves what is malformed as it is.
func (d decoding) apply(path string) string {
	i := strings.IndexByte(path, '%')
	if i < 0 {
		return path
	}
	var room [maxScratch]byte
	out := append(scratch(&room, path), path[:i]...)
	for ; i < len(path); i++ {
		c := path[i]
		if c != '%' || !isEscape(path[i:]) {
			out = append(out, c)
			continue
		}
		if c = unhex(path[i+1])<<4 | unhex(path[i+2]); d == decodeEvery || isUnreserved(c) || d == decodeSlashes && (c == '/' || c == '\\') {
			out = append(out, c)
		} else {
			out = append(out, '%', upper(path[i+1]), upper(path[i+2]))
		}
		i += 2
	}
	if string(out) == path {
		return path
	}
	return string(out)
}

func isEscape(s string) bool {
	return len(s) >= 3 && s[0] == '%' && unhex(s[1])|unhex(s[2]) < 16
}

// unhex returns the value of a hexadecimal digit, and 255 for any other character.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

func upper(c byte) byte {
	if 'a' <= c && c <= 'z' {
		return c - 'a' + 'A'
	}
	return c
}

// isUnreserved reports whether c may be escaped or not without a difference (RFC 3986, section 2.3).
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// cutParameters cuts off each segment what follows a semicolon.
func cutParameters(path string) string {
	first := strings.IndexByte(path, ';')
	if first < 0 {
		return path
	}
	var room [maxScratch]byte
	out := append(scratch(&room, path), path[:first]...)
	inside := true
	for i := first; i < len(path); i++ {
		switch path[i] {
		case ';':
			inside = true
		case '/':
			inside = false
		}
		if !inside {
			out = append(out, path[i])
		}
	}
	return string(out)
}

func mergeSlashes(path string) string {
	first := strings.Index(path, "//")
	if first < 0 {
		return path
	}
	var room [maxScratch]byte
	out := append(scratch(&room, path), path[:first]...)
	before := byte(0)
	for i := first; i < len(path); i++ {
		c := path[i]
		if c != '/' || before != '/' {
			out = append(out, c)
		}
		before = c
	}
	return string(out)
}

// removeDots resolves the segments "." and ".." (RFC 3986, section 5.2.4). The path begins with a slash.
func removeDots(path string) string {
	first := strings.Index(path, "/.")
	if first < 0 {
		return path
	}
	var room [maxScratch]byte
	out := append(scratch(&room, path), path[:first]...)
	for rest := path[first:]; rest != ""; {
		end := 1
		for end < len(rest) && rest[end] != '/' {
			end++
		}
		segment := rest[:end] // with its slash
		rest = rest[end:]
		switch segment {
		case "/.":
		case "/..":
			out = out[:max(0, bytes.LastIndexByte(out, '/'))]
		default:
			out = append(out, segment...)
			continue
		}
		if rest == "" {
			out = append(out, '/')
		}
	}
	if len(out) == len(path) { // a name that begins with a dot
		return path
	}
	return string(out)
}

// maxScratch is the longest path that is rewritten without another allocation than that of what comes of it.
const maxScratch = 768

// scratch returns room for what comes of path.
func scratch(room *[maxScratch]byte, path string) []byte {
	if len(path) <= len(room) {
		return room[:0]
	}
	return make([]byte, 0, len(path))
}
