package authz

import (
	"encoding/base64"
	"slices"
	"strings"
)

// Bounds on what is read of one header, so that a header repeated thousands of times costs no more than a short one.
const (
	maxHeaderReadings = 64      // lines and list elements
	maxPlainHeader    = 8 << 10 // bytes that each condition may look at by itself
)

// headerReadings are the ways to read a header that has more than one.
type headerReadings struct {
	// unreadable says that there are too many: the header might say anything.
	unreadable bool

	// line is the only line of the header, as sent; "" if there are several.
	line string

	// all are the readings. Each is a list of spellings of the same value: one, but for binary headers.
	all [][]string
}

// headerOf returns the value of a header if it has one reading only, or its readings.
func (q *query) headerOf(c *condition) (value string, odd *headerReadings, present bool) {
	values := q.Header[c.header]
	if len(values) == 0 {
		return "", nil, false
	}
	seen := c.slot < 64 && q.plain&(1<<c.slot) != 0
	if seen {
		return values[0], nil, true
	}
	if len(values) == 1 && !c.binary && isPlainHeader(values[0], c.single) {
		if c.slot < 64 {
			q.plain |= 1 << c.slot
		}
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

// isPlainHeader reports whether a value has one reading only: there is no space around it and it is no list.
func isPlainHeader(value string, single bool) bool {
	if value == "" {
		return true
	}
	if len(value) > maxPlainHeader || !single && strings.IndexByte(value, ',') >= 0 {
		return false
	}
	return inner(value[0]) && inner(value[len(value)-1])
}

// inner reports whether c is certainly no part of space around a value. Unicode has spaces beyond ASCII.
func inner(c byte) bool { return c > ' ' && c < 0x7f }

// readHeader returns the readings of a header: all lines joined, as Envoy joins them, each line alone, and each element of a
// line that is a list. Lines of cookies are also joined as cookies are. HTTP/1 removes the space around a line, HTTP/2 leaves it there, and handlers remove it or not, so both
// count.
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
	if c.header == "Cookie" { // Envoy joins these so, and handlers read them all
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

// spellings returns the ways to write the value of a header. Those of binary headers (-bin, as gRPC has them) travel in
// base64, with or without padding, and handlers see them so or decoded.
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

// singleHeaders are headers that are no lists: a comma in them separates nothing.
var singleHeaders = []string{
	"Authorization", "Content-Disposition", "Content-Location", "Content-Type", "Cookie", "Date", "Expires", "From",
	"If-Modified-Since", "If-Range", "If-Unmodified-Since", "Last-Modified", "Location", "Proxy-Authorization", "Referer",
	"Retry-After", "Server", "Set-Cookie", "User-Agent",
}

// matchHeader judges a header, under every reading or under any.
func (c *condition) matchHeader(q *query, every bool) bool {
	value, odd, present := q.headerOf(c)
	switch {
	case !present:
		return c.texts.values.empty()
	case odd == nil:
		return c.texts.matchPresent(value)
	case odd.unreadable:
		return !every
	}
	// A value that is the whole line, commas included, says all there is to say about it.
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

// matchSpellings is matchPresent for a value that can be written in several ways. With settled the values match.
func (t *texts) matchSpellings(spellings []string, settled bool) bool {
	return (settled || t.values.empty() || slices.ContainsFunc(spellings, t.values.matchPresent)) &&
		!slices.ContainsFunc(spellings, t.notValues.matchPresent)
}

// isBinary reports whether values of the header are base64, as in gRPC. The name is canonical.
func isBinary(name string) bool { return strings.HasSuffix(name, "-Bin") }

func isSingle(name string) bool { return slices.Contains(singleHeaders, name) }

// hostReadings appends the ways to read the host of a request to buf, none if there are too many. HTTP/2 may send both
// :authority, which is Request.Host, and a host header. Space around a host, a dot at its end and user information before it
// make no other host.
func hostReadings(r *Request, buf []string) []string {
	sent := r.Header["Host"]
	if len(sent) == 0 && isPlainHost(r.Host) {
		return append(buf, r.Host)
	}
	if len(sent) > maxHeaderReadings/8 {
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
		add(strings.TrimRight(name, ".") + port)
	}
	read(r.Host)
	for _, host := range sent {
		read(host)
	}
	return buf
}

// isPlainHost reports whether a host has one reading only.
func isPlainHost(host string) bool {
	if host == "" {
		return true
	}
	for i := range len(host) {
		switch c := host[i]; {
		case !inner(c), c == '@':
			return false
		case c == '.' && (i == len(host)-1 || host[i+1] == ':'):
			return false
		}
	}
	return true
}
