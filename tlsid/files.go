package tlsid

import (
	"context"
	"errors"
	"iter"
	"time"
)

// Files is a [Source] that reads an identity from PEM files and follows their changes: the volumes of cert-manager (tls.crt,
// tls.key, ca.crt) and Istio's /etc/certs (cert-chain.pem, key.pem, root-cert.pem), or any three files.
//
// Certificate, key and authorities are taken together: a set that was read while it was written, or whose key is not
// that of the certificate, is an error that names the file, and the identity before stays in force until the set is good
// again. Symbolic links are followed, so the ..data link of a Kubernetes volume may be swapped at any time.
//
// The fields must not change once Watch is called.
type Files struct {
	// Dir is a folder in one of the layouts above. Empty means that Certificate, Key and CA are given.
	Dir string

	// Certificate, Key and CA name the files if Dir does not, and override what Dir says. Certificate holds the SVID and
	// after it any intermediates; Key its private key; CA the authorities of the SVID's own trust domain, one or more.
	Certificate, Key, CA string

	// Federated names for each further trust domain the file with its authorities.
	Federated map[string]string

	// Interval is how often to look for changes. 0 means 1 s.
	Interval time.Duration
}

// Watch yields the identity in the files, and again after each change. See [Source].
func (f Files) Watch(ctx context.Context) iter.Seq2[*Identity, error] {
	return func(yield func(*Identity, error) bool) {
		yield(nil, errors.New("tlsid: not built yet"))
	}
}
