package field

import (
	"net/http"
	"strings"
)

// ConnectionOptions returns the values of a Connection header without the options that name a header for which keep is true, by its
// canonical name: a proxy removes the headers that are named there (RFC 9110, section 7.6.1), also those that were set on its own side.
// changed reports whether there is such an option.
func ConnectionOptions(values []string, keep func(header string) bool) (options []string, changed bool) {
	for _, value := range values {
		for option := range strings.SplitSeq(value, ",") {
			if keep(http.CanonicalHeaderKey(strings.TrimSpace(option))) {
				return otherOptions(values, keep), true
			}
		}
	}
	return values, false
}

func otherOptions(values []string, keep func(header string) bool) []string {
	var others []string
	for _, value := range values {
		for option := range strings.SplitSeq(value, ",") {
			option = strings.TrimSpace(option)
			if option != "" && !keep(http.CanonicalHeaderKey(option)) {
				others = append(others, option)
			}
		}
	}
	if len(others) == 0 {
		return nil
	}
	return []string{strings.Join(others, ", ")}
}
