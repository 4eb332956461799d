// Package connectid parses and writes the SPIFFE IDs of Consul Connect: spiffe://DOMAIN/ns/NAMESPACE/dc/DATACENTER/svc/SERVICE.
package connectid

import (
	"fmt"
	"strings"
)

// Namespace is the only namespace of Consul's community edition.
const Namespace = "default"

// Any stands for any datacenter. No SPIFFE ID contains it.
const Any = "{*}"

// Parse returns the service that the path of an ID belongs to, and false if Connect does not write IDs of this form. IDs with a
// partition, which only Consul Enterprise has, are of another form.
func Parse(path string) (namespace, service string, ok bool) {
	parts := strings.Split(path, "/")
	if len(parts) != 7 || parts[1] != "ns" || parts[3] != "dc" || parts[5] != "svc" {
		return "", "", false
	}
	return parts[2], parts[6], true
}

// Path returns what follows the trust domain in the ID of a service, in a datacenter or in [Any].
func Path(namespace, datacenter, service string) string {
	return "/ns/" + namespace + "/dc/" + datacenter + "/svc/" + service
}

// Matches reports whether id is pattern, an ID with the datacenter [Any].
func Matches(pattern, id string) bool {
	before, after, ok := strings.Cut(pattern, Any)
	if !ok {
		return false
	}
	rest, ok := strings.CutPrefix(id, before)
	if !ok {
		return false
	}
	datacenter, ok := strings.CutSuffix(rest, after)
	return ok && datacenter != "" && !strings.Contains(datacenter, "/")
}

// Check returns an error if the name of a service cannot be part of a SPIFFE ID. Connect writes such a name escaped into its
// certificates, so these have no valid SPIFFE ID.
func Check(service string) error {
	if service == "" || service == "." || service == ".." {
		return fmt.Errorf("%q is no segment of a SPIFFE ID", service)
	}
	for i := range len(service) {
		c := service[i]
		if letter := c | 0x20; (letter < 'a' || letter > 'z') && (c < '0' || c > '9') && c != '-' && c != '.' && c != '_' {
			return fmt.Errorf("no SPIFFE ID contains %q", string(c))
		}
	}
	return nil
}
