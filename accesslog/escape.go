package accesslog

import (
	"unicode"
	"unicode/utf8"
)

// place is the place of a field in a line. It determines which characters must be escaped.
type place uint8

const (
	inJSON   place = iota // a JSON string
	inQuotes              // within quotes in a line of text
	bare                  // between spaces in a line of text
)

// longest is the number of bytes of a field that are written. Callers choose the length of some fields.
const longest = 4096

const hex = "0123456789abcdef"

// appendEscaped appends s so that it remains one field: separators of fields and lines, unprintable characters and invalid UTF-8 are
// escaped in ASCII. A field that is too long is cut.
func appendEscaped(line []byte, s string, at place) []byte {
	s, cut := shorten(s)
	done := 0 // of s
	for i := 0; i < len(s); {
		if plain[at][s[i]] {
			i++
			continue
		}
		if c := s[i]; c < utf8.RuneSelf {
			line = append(line, s[done:i]...)
			line = appendByte(line, c, at)
			i++
			done = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			line = append(line, s[done:i]...)
			if at == inJSON {
				line = append(line, `\ufffd`...) // JSON cannot represent single bytes
			} else {
				line = appendByte(line, s[i], at)
			}
		} else if unicode.IsPrint(r) { // excludes other spaces, and marks that change the direction of text
			i += size
			continue
		} else {
			line = append(line, s[done:i]...)
			line = appendRune(line, r, at)
		}
		i += size
		done = i
	}
	line = append(line, s[done:]...)
	if cut {
		line = append(line, "..."...)
	}
	return line
}

// shorten returns the part of s that is written, and reports whether s was cut.
func shorten(s string) (written string, cut bool) {
	if len(s) <= longest {
		return s, false
	}
	s = s[:longest]
	for len(s) > longest-utf8.UTFMax { // do not cut within a character
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s, true
}

// plain has the characters that are written as they are.
var plain = func() (all [3][256]bool) {
	for at := range all {
		for c := byte(' '); c < 0x7f; c++ {
			all[at][c] = c != '"' && c != '\\' && (c != ' ' || place(at) != bare)
		}
	}
	return all
}()

func appendByte(line []byte, c byte, at place) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(line, '\\', c)
	case at == inJSON:
		return append(line, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
	}
	return append(line, '\\', 'x', hex[c>>4], hex[c&15])
}

// appendRune appends the escape of an unprintable character.
func appendRune(line []byte, r rune, at place) []byte {
	if r <= 0xffff {
		return append(line, '\\', 'u', hex[r>>12], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	}
	if at == inJSON { // a surrogate pair
		r -= 0x10000
		return appendRune(appendRune(line, 0xd800+r>>10, at), 0xdc00+r&0x3ff, at)
	}
	line = append(line, '\\', 'U', '0', '0')
	for shift := 20; shift >= 0; shift -= 4 {
		line = append(line, hex[r>>shift&15])
	}
	return line
}
