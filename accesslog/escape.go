package accesslog

import (
	"unicode"
	"unicode/utf8"
)

// Where a field stands in a line decides what has to be escaped in it.
type place uint8

const (
	inJSON   place = iota // in quotes, by the rules of JSON
	inQuotes              // of a line of text
	bare                  // in a line of text, between spaces
)

// longest is how many bytes of a field are written. Callers choose the length of some.
const longest = 4096

const hex = "0123456789abcdef"

// appendEscaped appends s so that it stays one field: what separates fields and lines, what does not print and what is no UTF-8 is
// written in ASCII. Fields that are too long are cut.
func appendEscaped(line []byte, s string, at place) []byte {
	s, cut := shorten(s)
	done := 0 // of s
	for i := 0; i < len(s); {
		if c := s[i]; c < utf8.RuneSelf {
			if plain(c, at) {
				i++
				continue
			}
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
				line = append(line, `\ufffd`...) // which has no way to write bytes
			} else {
				line = appendByte(line, s[i], at)
			}
		} else if unicode.IsPrint(r) { // which excludes other spaces, and marks that turn the direction of text
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

// shorten returns what is written of s, and whether that is not all of it.
func shorten(s string) (written string, cut bool) {
	if len(s) <= longest {
		return s, false
	}
	s = s[:longest]
	for len(s) > longest-utf8.UTFMax { // not within a character
		if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size != 1 {
			break
		}
		s = s[:len(s)-1]
	}
	return s, true
}

func plain(c byte, at place) bool {
	return c > ' ' && c < 0x7f && c != '"' && c != '\\' || c == ' ' && at != bare
}

func appendByte(line []byte, c byte, at place) []byte {
	switch {
	case c == '"' || c == '\\':
		return append(line, '\\', c)
	case at == inJSON:
		return append(line, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
	}
	return append(line, '\\', 'x', hex[c>>4], hex[c&15])
}

// appendRune appends a character that does not print.
func appendRune(line []byte, r rune, at place) []byte {
	if r <= 0xffff {
		return append(line, '\\', 'u', hex[r>>12], hex[r>>8&15], hex[r>>4&15], hex[r&15])
	}
	if at == inJSON { // as a pair of surrogates
		r -= 0x10000
		return appendRune(appendRune(line, 0xd800+r>>10, at), 0xdc00+r&0x3ff, at)
	}
	line = append(line, '\\', 'U', '0', '0')
	for shift := 20; shift >= 0; shift -= 4 {
		line = append(line, hex[r>>shift&15])
	}
	return line
}
