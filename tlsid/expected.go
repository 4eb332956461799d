package tlsid

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Expected is the set of SPIFFE IDs that a destination may have. The zero value is the empty set, which accepts no peer; no
// set accepts every peer. Sets are values: equal sets are equal by ==, whatever order they were made in, and can be map
// keys.
type Expected struct {
	ids string // sorted, each once, joined by spaces, which no SPIFFE ID contains
}

// Expect returns the set of ids. Zero IDs are left out.
func Expect(ids ...spiffeid.ID) Expected {
	names := make([]string, 0, len(ids))
	for _, id := range ids {
		if !id.IsZero() {
			names = append(names, id.String())
		}
	}
	slices.Sort(names)
	return Expected{strings.Join(slices.Compact(names), " ")}
}

// contains reports whether id is in the set.
func (e Expected) contains(id spiffeid.ID) bool {
	name := id.String()
	for ids, found := e.ids, name != ""; found; {
		var one string
		if one, ids, found = strings.Cut(ids, " "); one == name {
			return true
		}
	}
	return false
}

// Check returns a [*MismatchError] unless id is in the set.
func (e Expected) Check(id spiffeid.ID) error {
	if !e.contains(id) {
		return &MismatchError{Expected: e, Presented: id}
	}
	return nil
}

// String returns the IDs in order, joined by " or ", and "nobody" for the empty set.
func (e Expected) String() string {
	if e.ids == "" {
		return "nobody"
	}
	return strings.ReplaceAll(e.ids, " ", " or ")
}
