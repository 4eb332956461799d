package field

import "strings"

// Discreet returns a text without the credentials and queries of URLs in it.
func Discreet(text string) string {
	if !strings.ContainsAny(text, "?@#") {
		return text
	}
	words := strings.FieldsFuncSeq(text, func(r rune) bool { return r == ' ' || r == '\n' })
	for word := range words {
		if clean := withoutSecrets(word); clean != word {
			text = strings.ReplaceAll(text, word, clean)
		}
	}
	return text
}

// withoutSecrets removes the credentials and the query of a word that is a URL, or that contains some.
func withoutSecrets(word string) string {
	before, after, ok := strings.Cut(word, "://")
	if !ok {
		if path, query, ok := strings.Cut(word, "?"); ok && strings.Contains(query, "=") {
			return path + "?…"
		}
		return word
	}
	next := ""
	if i := strings.Index(after, "://"); i >= 0 { // one more
		start := i
		for start > 0 && isScheme(after[start-1]) {
			start--
		}
		after, next = after[:start], withoutSecrets(after[start:])
	}
	authority := after
	if end := strings.IndexAny(after, "/?#"); end >= 0 {
		authority = after[:end]
	}
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		after = after[at+1:]
	} else if at := strings.LastIndexByte(after, '@'); at >= 0 && !isHostPort(authority) { // a password with one of /?# in it
		after = after[at+1:]
	}
	if end := strings.IndexAny(after, "?#"); end >= 0 {
		after = after[:end+1] + "…"
	}
	return before + "://" + after + next
}

func isScheme(c byte) bool {
	return c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '-' || c == '.'
}

// isHostPort reports whether text is a host, perhaps with a port, rather than a name and the beginning of a password.
func isHostPort(text string) bool {
	i := strings.LastIndexByte(text, ':')
	if i < 0 || strings.HasSuffix(text, "]") {
		return true
	}
	return strings.Trim(text[i+1:], "0123456789") == ""
}
