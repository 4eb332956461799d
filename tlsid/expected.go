package tlsid

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/nosidecar/mesh/internal/connectid"
)

// Expected is the set of SPIFFE IDs that a destination may have. The zero value is the empty set, which accepts no peer; no
// set accepts every peer. Sets are values: equal sets are equal by ==, whatever order they were made in, and can be map
// keys.
type Expected struct {
	ids string // sorted, each once, joined by spaces, which no SPIFFE ID contains. One of Connect has connectid.Any in it
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

// ExpectConnect returns the set of the IDs that Consul Connect gives to a service: spiffe://domain/ns/NAMESPACE/dc/DC/svc/SERVICE,
// with any datacenter, since Consul itself does not compare that. The error says that no ID can have the names.
func ExpectConnect(domain spiffeid.TrustDomain, namespace, service string) (Expected, error) {
	for _, name := range []string{namespace, service} {
		if err := connectid.Check(name); err != nil {
			return Expected{}, fmt.Errorf("tlsid: Connect has no ID for the service %q of namespace %q: %w", service, namespace, err)
		}
	}
	return Expected{domain.IDString() + connectid.Path(namespace, connectid.Any, service)}, nil
}

// contains reports whether id is in the set.
func (e Expected) contains(id spiffeid.ID) bool {
	name := id.String()
	for ids, found := e.ids, name != ""; found; {
		var one string
		if one, ids, found = strings.Cut(ids, " "); one == name || connectid.Matches(one, name) {
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

// String returns the IDs in order, joined by " or ", and "nobody" for the empty set. A datacenter that may be any is "*".
func (e Expected) String() string {
	if e.ids == "" {
		return "nobody"
	}
	return strings.ReplaceAll(strings.ReplaceAll(e.ids, connectid.Any, "*"), " ", " or ")
}
