package yamldoc

import (
	"strconv"
	"strings"
)

// Index returns the path of an element of the list at path.
func Index(path string, i int) string {
	return path + "[" + strconv.Itoa(i) + "]"
}

// Key returns the path of a key of the map at path: path.key, or path["key"] if the key is not a plain word.
func Key(path, key string) string {
	if plain(key) {
		if path == "" {
			return key
		}
		return path + "." + key
	}
	return path + "[" + strconv.Quote(key) + "]"
}

func plain(key string) bool {
	for i := 0; i < len(key); i++ {
		c := key[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-') {
			return false
		}
	}
	return key != ""
}

// step takes the first part off a path: a key, or an index (with key empty).
func step(path string) (key string, index int, rest string) {
	path = strings.TrimPrefix(path, ".")
	if strings.HasPrefix(path, "[\"") {
		if quoted, err := strconv.QuotedPrefix(path[1:]); err == nil {
			key, _ = strconv.Unquote(quoted)
			return key, -1, strings.TrimPrefix(path[1+len(quoted):], "]")
		}
	}
	if inner, ok := strings.CutPrefix(path, "["); ok {
		number, rest, _ := strings.Cut(inner, "]")
		if i, err := strconv.Atoi(number); err == nil {
			return "", i, rest
		}
		return "", -1, rest
	}
	if i := strings.IndexAny(path, ".["); i >= 0 {
		return path[:i], -1, path[i:]
	}
	return path, -1, ""
}

// Parent returns the path of the object or list that the field or element at path is part of, which is "" for the document.
func Parent(path string) string {
	parent, rest := "", path
	for rest != "" {
		parent = path[:len(path)-len(rest)]
		_, _, rest = step(rest)
	}
	return parent
}
