package field

import (
	"net/url"
	"strings"
)

// SentPath returns the path that net/http sends for u, without the query.
func SentPath(u *url.URL) string {
	if u.RawPath == "" && u.Opaque == "" && isPlain(u.Path) {
		return u.Path
	}
	path := u.EscapedPath()
	if u.Opaque != "" {
		path, _, _ = strings.Cut(u.Opaque, "?")
		if rest, ok := strings.CutPrefix(path, "//"); ok { // an authority comes first
			_, path, _ = strings.Cut(rest, "/")
			path = "/" + path
		}
	}
	if path == "" {
		return "/"
	}
	return path
}

// isPlain reports whether path is not empty and has only bytes that are sent as they are, whatever the rules for the others.
func isPlain(path string) bool {
	rest := path
	for ; len(rest) >= 4; rest = rest[4:] {
		if plain[rest[0]]&plain[rest[1]]&plain[rest[2]]&plain[rest[3]] == 0 {
			return false
		}
	}
	for i := range len(rest) {
		if plain[rest[i]] == 0 {
			return false
		}
	}
	return path != ""
}

var plain = func() (set [256]uint8) {
	for _, c := range []byte("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/-._~") {
		set[c] = 1
	}
	return set
}()
