package authz

import (
	"encoding/base64"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds on the readings of one header, so that a header repeated thousands of times costs no more than a short one.
const (
	maxHeaderReadings = 64      // lines and list elements
	maxPlainHeader    = 8 << 10 // bytes of a value that each condition may compare without shared readings
)

// headerReadings are the readings of a header that has more than one.
type headerReadings struct {
	// unreadable says that there are too many readings: the header could mean anything.
	unreadable bool

	// line is the only line of the header, as sent; "" if there are several.
	line string

	// all are the readings. Each is a list of the spellings of one value. Only values of binary headers have several spellings.
	all [][]string
}

// headerOf returns the value of a header that has a single reading, or its readings in odd if it has several.
func (q *query) headerOf(c *condition) (value string, odd *headerReadings, present bool) {
	values := q.Header[c.header]
	if len(values) == 0 {
		return "", nil, false
	}
	slot := uint64(1) << c.slot // 0 beyond the first 64
	if q.plain&slot != 0 {
		return values[0], nil, true
	}
	if len(values) == 1 && !c.binary && isPlainHeader(values[0], c.single) {
		q.plain |= slot
		return values[0], nil, true
	}
	if q.odd == nil {
		q.odd = make([]*headerReadings, q.slots)
	}
	if q.odd[c.slot] == nil {
		q.odd[c.slot] = readHeader(values, c)
	}
	return "", q.odd[c.slot], true
}

// isPlainHeader reports whether a value has a single reading: it is not a list and has no surrounding space.
func isPlainHeader(value string, single bool) bool {
	if value == "" {
		return true
	}
	if len(value) > maxPlainHeader || !single && strings.IndexByte(value, ',') >= 0 {
		return false
	}
	return inner(value[0]) && inner(value[len(value)-1])
}

// inner reports whether c cannot be part of the space around a value. Unicode has spaces beyond ASCII.
func inner(c byte) bool { return c > ' ' && c < 0x7f }

// readHeader returns the readings of a header: all lines joined by commas, as in Envoy, each line alone, and each element of a
// line that is a list. Lines of cookies are also joined by semicolons. HTTP/1 removes the space around a line, HTTP/2 keeps it, and
// handlers may or may not remove it, so the value with and without the space are both readings.
func readHeader(lines []string, c *condition) *headerReadings {
	single, binary := c.single, c.binary
	h := new(headerReadings)
	if len(lines) > maxHeaderReadings {
		h.unreadable = true
		return h
	}
	total := len(lines)
	for _, line := range lines {
		if !single {
			total += strings.Count(line, ",")
		}
	}
	if total > maxHeaderReadings {
		h.unreadable = true
		return h
	}
	if len(lines) == 1 {
		h.line = lines[0]
		if total == 1 {
			h.all = append(h.all, spellings(h.line, binary))
			if trimmed := strings.TrimSpace(h.line); trimmed != h.line {
				h.all = append(h.all, spellings(trimmed, binary))
			}
			return h
		}
	}
	seen := make(map[string]struct{}, total+1)
	add := func(value string) {
		for _, v := range [2]string{value, strings.TrimSpace(value)} {
			if _, ok := seen[v]; !ok {
				seen[v] = struct{}{}
				h.all = append(h.all, spellings(v, binary))
			}
		}
	}
	add(strings.Join(lines, ","))
	if c.header == "Cookie" { // Envoy joins cookies like this, and handlers read all lines
		trimmed := make([]string, len(lines))
		for i, line := range lines {
			trimmed[i] = strings.TrimSpace(line)
		}
		add(strings.Join(trimmed, "; "))
	}
	for _, line := range lines {
		add(line)
		if single || strings.IndexByte(line, ',') < 0 {
			continue
		}
		for element := range strings.SplitSeq(line, ",") {
			if element = strings.TrimSpace(element); element != "" {
				add(element)
			}
		}
	}
	return h
}

// spellings returns the ways to spell the value of a header. Values of binary headers (-bin, as in gRPC) are sent in base64, with
// or without padding, and handlers see them encoded or decoded.
func spellings(value string, binary bool) []string {
	all := []string{value}
	if !binary {
		return all
	}
	bare := strings.TrimRight(value, "=")
	decoded, err := base64.RawStdEncoding.DecodeString(bare)
	if err != nil {
		return all
	}
	for _, v := range []string{bare, base64.StdEncoding.EncodeToString(decoded), string(decoded)} {
		if !slices.Contains(all, v) {
			all = append(all, v)
		}
	}
	return all
}

// singleHeaders are headers whose value is not a list: a comma in it does not separate elements.
var singleHeaders = []string{
	"Authorization", "Content-Disposition", "Content-Location", "Content-Type", "Cookie", "Date", "Expires", "From",
	"If-Modified-Since", "If-Range", "If-Unmodified-Since", "Last-Modified", "Location", "Proxy-Authorization", "Referer",
	"Retry-After", "Server", "Set-Cookie", "User-Agent",
}

// matchHeader reports whether a header matches under every reading, or under any.
func (c *condition) matchHeader(q *query, every bool) bool {
	value, odd, present := q.headerOf(c)
	switch {
	case !present:
		return c.texts.values.empty() && !c.demanded
	case c.forbidden:
		return false
	case c.utf8 && slices.ContainsFunc(q.Header[c.header], func(line string) bool { return !utf8.ValidString(line) }):
		return !every
	case odd == nil:
		return c.texts.matchPresent(value)
	case odd.unreadable:
		return !every
	}
	// A value that equals the whole line, commas included, covers all its readings.
	settled := every && odd.line != "" && c.texts.values.names(odd.line)
	for _, reading := range odd.all {
		if c.texts.matchSpellings(reading, settled) != every {
			return !every
		}
	}
	return every
}

func (t *texts) matchPresent(s string) bool {
	return (t.values.empty() || t.values.matchPresent(s)) && !t.notValues.matchPresent(s)
}

// matchSpellings is matchPresent for a value with several spellings. If settled, t.values are known to match.
func (t *texts) matchSpellings(spellings []string, settled bool) bool {
	return (settled || t.values.empty() || slices.ContainsFunc(spellings, t.values.matchPresent)) &&
		!slices.ContainsFunc(spellings, t.notValues.matchPresent)
}

// isBinary reports whether values of the header are base64, as in gRPC. The name is canonical.
func isBinary(name string) bool { return strings.HasSuffix(name, "-Bin") }

func isSingle(name string) bool { return slices.Contains(singleHeaders, name) }

// hostReadings appends the readings of the host of a request to buf, or returns nil if the host could be anything: if there are too many
// readings, or if a host is not ASCII. RFC 3986 has no such hosts and Envoy refuses them, but a handler may fold or map their letters, such
// as a long s. An HTTP/2 request may have :authority, which is Request.Host, a host header, and a :path with a host of its own, which is
// URL.Host. A host with surrounding space, a trailing dot or user information is also read without it.
func hostReadings(r *Request, buf []string) []string {
	sent, target := r.Header["Host"], targetHost(r.Target)
	if len(sent) == 0 && (target == "" || target == r.Host) && isPlainHost(r.Host) {
		return append(buf, r.Host)
	}
	if len(sent) > maxHeaderReadings/8 || slices.ContainsFunc(sent, beyondASCII) || beyondASCII(r.Host) || beyondASCII(target) {
		return nil
	}
	add := func(host string) {
		if !slices.Contains(buf, host) {
			buf = append(buf, host)
		}
	}
	read := func(host string) {
		add(host)
		host = strings.TrimSpace(host)
		add(host)
		host = host[strings.LastIndexByte(host, '@')+1:]
		add(host)
		name, port := host, ""
		if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
			name, port = host[:i], host[i:]
		}
		if bare, ok := strings.CutPrefix(name, "["); ok && strings.IndexByte(bare, ':') < 0 { // it is no IPv6 address
			name = strings.TrimSuffix(bare, "]")
			add(name + port)
		}
		add(strings.TrimRight(name, ".") + port)
	}
	read(r.Host)
	for _, host := range sent {
		read(host)
	}
	if target != "" {
		read(target)
	}
	return buf
}

// targetHost returns the host in a request target with a scheme (RFC 9112, section 3.2.2), as url.URL has it, and "" for other targets.
func targetHost(target string) string {
	if target == "" || target[0] == '/' {
		return ""
	}
	_, rest, _ := strings.Cut(target, "://")
	if end := strings.IndexAny(rest, "/?"); end >= 0 {
		rest = rest[:end]
	}
	return rest[strings.LastIndexByte(rest, '@')+1:]
}

func beyondASCII(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r >= utf8.RuneSelf })
}

// isPlainHost reports whether a host has a single reading.
func isPlainHost(host string) bool {
	if host == "" {
		return true
	}
	for i := range len(host) {
		switch c := host[i]; {
		case !inner(c), c == '@', c == '[':
			return false
		case c == '.' && (i == len(host)-1 || host[i+1] == ':'):
			return false
		}
	}
	return true
}
