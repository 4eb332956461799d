package authz

import (
	"bytes"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/nosidecar/mesh/internal/field"
)

// reading is one way to read a path.
type reading struct {
	path    string
	decoded bool // all escapes are decoded, as in URL.Path: it is compared with decoded patterns
}

// maxOddPath is the maximum length of paths with several readings, by the number of kinds of oddities that they have. Each kind
// multiplies the number of readings, and no path should cost more than the rest of its request.
var maxOddPath = [...]int{1: 2 << 10, 2: 768, 3: 256, 4: 128}

// tooLong reports whether a path that is not plain is too long to try all its readings.
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

// escapes says which characters are percent-encoded in a path.
type escapes struct {
	any, dot, slash, backslash bool
	nul, high, malformed       bool // high: beyond ASCII
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

// read appends the readings of a request target to buf, or returns nil if the target or the method is malformed: over HTTP/2, net/http
// takes anything for a method, "DELETE " too.
func (a *Authorizer) read(method, target string, buf []reading) []reading {
	path, plain, ok := targetPath(method, target)
	switch {
	case !ok, method != "" && !field.IsToken(method):
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
	if method == http.MethodConnect { // http.ServeMux does not clean their paths
		mode = None
	}
	return readings(path, mode, a.escaped)
}

// targetPath returns the path of a request target (RFC 9112, section 3.2) without the query. A fragment stays part of it. A plain
// path has a single reading. The path of a CONNECT request is "".
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
		// Only an authority is valid here, but net/http would treat what follows it as a path.
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

// scan cuts the query off target, which begins with a slash, and reports whether the path has a single reading.
func scan(target string) (path string, plain bool) {
	plain = true
	for i := range len(target) {
		switch c := target[i]; {
		case 'a' <= c && c <= 'z': // most are
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

// oddSegment reports whether the first segment of rest is a dot segment, or is empty and not the last one.
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

// decoding says which escapes are decoded, in addition to those of unreserved characters.
type decoding uint8

const (
	decodeNone    decoding = iota
	decodeSlashes          // %2F and %5C
	decodeEvery            // all, as URL.Path has it
)

// readings returns the readings of a valid path that begins with a slash. The first one is the one that mode prescribes.
//
// A reader may decode escapes, treat `\` as `/`, cut the parameters off segments, and resolve dot segments, in this order.
// Parameters may also be cut off first, as Java's servers do: `/a;%2Fb/c` is `/a/b/c` or `/a/c`. Slashes are merged at the end, as
// Istio does, or before dot segments are resolved, as path.Clean does: `/a//../b` is `/a/b` or `/b`. All combinations that mode
// does not rule out are readings.
//
// net/http treats `\` as an ordinary character, so a path is also read with its backslashes: to http.ServeMux, `/a\b` is one
// segment. DecodeAndMergeSlashes says that the application treats it as a slash. In that mode the path with backslashes is a
// reading only if it could name something else altogether: next to dot segments, which then remove more, and next to parameters,
// which are then longer.
//
// Two oddities count only in such cases in every mode. net/http treats `#` as part of the path: the text after it matters if it
// has segments of its own, or if it turns a dot segment into an ordinary one. And http.ServeMux resolves dot segments before it
// decodes escapes, so `/a/%2e%2e/b` belongs to the handler of `/a/`.
//
// Readings with every escape decoded are compared with patterns that change when they are decoded. If there are no such patterns
// (escaped is false), these readings are omitted for a path that has no escapes.
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

// endsInDots reports whether the last segment of path is a dot segment under some reading.
func endsInDots(path string) bool {
	path = strings.ReplaceAll(decodeEvery.apply(path), `\`, "/")
	return strings.HasSuffix(path, "/.") || strings.HasSuffix(path, "/..")
}

// readingSet is the readings of a path, without duplicates.
type readingSet struct {
	mode    Normalization
	decoded bool // the decoded field of the readings that are being added
	all     []reading
	forms   []reading // those that addSegments has already seen
}

func (s *readingSet) add(path string) {
	if r := (reading{path, s.decoded}); !slices.Contains(s.all, r) {
		s.all = append(s.all, r)
	}
}

// addPath adds the readings of a path, with and without its parameters.
func (s *readingSet) addPath(path string, escaped bool) {
	s.addDecoded(path, escaped)
	if strings.Contains(path, ";") {
		s.addDecoded(cutParameters(path), escaped)
	}
}

// addRouted adds the readings of a router that resolves dot segments before it decodes escapes.
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

// addDecoded adds the readings of a path with each choice of escapes to decode.
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

// addBackslashes adds the readings of a path whose escapes are decoded, with and without its backslashes.
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
		return // another combination led to the same form
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

// apply decodes those escapes in path that d names. It converts the others to upper case, and keeps malformed ones as they are.
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

// isUnreserved reports whether c means the same whether it is escaped or not (RFC 3986, section 2.3).
func isUnreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// cutParameters removes the part of each segment from the first semicolon on.
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
	if len(out) == len(path) { // there was only a name that begins with a dot
		return path
	}
	return string(out)
}

// maxScratch is the length of the longest path that is rewritten with no allocation but that of the result.
const maxScratch = 768

// scratch returns an empty buffer with room for the rewritten path.
func scratch(room *[maxScratch]byte, path string) []byte {
	if len(path) <= len(room) {
		return room[:0]
	}
	return make([]byte, 0, len(path))
}
