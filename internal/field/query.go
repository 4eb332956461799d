package field

import (
	"net/url"
	"slices"
	"strings"
)

// Redacted stands where a secret was.
const Redacted = "REDACTED"

// RedactQuery returns a query with the values of some parameters redacted. The rest stays as it was sent.
func RedactQuery(query string, secret []string) string {
	var out strings.Builder
	from := 0 // what is before it is in out
	for at := 0; at < len(query); {
		end := len(query)
		if i := strings.IndexByte(query[at:], '&'); i >= 0 {
			end = at + i
		}
		key, _, ok := strings.Cut(query[at:end], "=")
		name, err := url.QueryUnescape(key)
		if err != nil {
			name = key
		}
		if ok && slices.Contains(secret, name) {
			out.WriteString(query[from:at] + key + "=" + Redacted)
			from = end
		}
		at = end + 1
	}
	if from == 0 {
		return query
	}
	out.WriteString(query[from:])
	return out.String()
}
