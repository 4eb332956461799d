package tlsid

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/internal/pemfile"
)

// Files is a [Source] that reads an identity from PEM files and follows their changes: the volumes of cert-manager
// (tls.crt, tls.key, ca.crt), Istio's /etc/certs (cert-chain.pem, key.pem, root-cert.pem), or any three files.
//
// Certificate, key and authorities are taken together. A set that does not match, or that is half written, is an error that
// names the file, and changes nothing; it is tried again until it is good. Symbolic links are followed each time, so the
// ..data link of a Kubernetes volume may be swapped while Files reads. A pipe is an error, and so is a revocation list among
// certificates, since it would not be enforced.
//
// The fields must not change once Watch is called.
type Files struct {
	// Dir is a folder in one of the two layouts; if it is in both, Istio's counts. It need not be filled yet.
	Dir string

	// Certificate, Key and CA name individual files, and take precedence over those in Dir. Certificate holds the SVID and
	// after it any intermediates; Key holds its private key; CA holds the authorities of the SVID's own trust domain.
	Certificate, Key, CA string

	// Federated names the file with the authorities of each further trust domain to accept peers from.
	Federated map[string]string

	// Interval is how often to look for changes. 0 means 1 s.
	Interval time.Duration
}

// Watch yields the identity in the files and again after each change, and an error once for each state of the files that
// cannot be used. Only invalid fields end the sequence with an error.
func (f Files) Watch(ctx context.Context) iter.Seq2[*Identity, error] {
	return func(yield func(*Identity, error) bool) {
		federated, err := f.check()
		if err != nil {
			yield(nil, err)
			return
		}
		ticker := time.NewTicker(cmp.Or(f.Interval, time.Second))
		defer ticker.Stop()

		var seen pemfile.Set // what was last yielded, or yielded as an error
		for good, first := false, true; ctx.Err() == nil; first = false {
			now := pemfile.Read(f.paths(federated))
			// A set that could not be used may become valid with time.
			if changed := first || !now.Equal(seen); changed || !good {
				identity, err := f.identity(now, federated)
				if changed || err == nil {
					if !yield(identity, err) {
						return
					}
				}
				seen, good = now, err == nil
			}
			select {
			case <-ticker.C:
			case <-ctx.Done():
			}
		}
	}
}

// check returns the trust domains of Federated.
func (f Files) check() ([]spiffeid.TrustDomain, error) {
	if f.Dir == "" && (f.Certificate == "" || f.Key == "" || f.CA == "") {
		return nil, errors.New("tlsid: Files needs Dir, or all of Certificate, Key and CA")
	}
	if f.Interval < 0 {
		return nil, fmt.Errorf("tlsid: Files.Interval is %v, want 0 or more", f.Interval)
	}
	var federated []spiffeid.TrustDomain
	for _, name := range slices.Sorted(maps.Keys(f.Federated)) {
		domain, err := spiffeid.TrustDomainFromString(name)
		if err == nil && domain.Name() != name {
			err = fmt.Errorf("write it %q", domain.Name())
		}
		if err != nil {
			return nil, fmt.Errorf("tlsid: Files.Federated: trust domain %q: %w", name, err)
		}
		if f.Federated[name] == "" {
			return nil, fmt.Errorf("tlsid: Files.Federated: trust domain %q has no file", name)
		}
		federated = append(federated, domain)
	}
	return federated, nil
}

// paths returns the files to read: certificate, key, authorities, and those of the federated trust domains.
func (f Files) paths(federated []spiffeid.TrustDomain) []string {
	layout := []string{"tls.crt", "tls.key", "ca.crt"}
	if _, err := os.Stat(filepath.Join(f.Dir, "cert-chain.pem")); err == nil && f.Dir != "" {
		layout = []string{"cert-chain.pem", "key.pem", "root-cert.pem"}
	}
	paths := []string{f.Certificate, f.Key, f.CA}
	for i, name := range layout {
		if paths[i] == "" {
			paths[i] = filepath.Join(f.Dir, name)
		}
	}
	for _, domain := range federated {
		paths = append(paths, f.Federated[domain.Name()])
	}
	return paths
}

// identity makes an identity from the contents of the files.
func (f Files) identity(read pemfile.Set, federated []spiffeid.TrustDomain) (*Identity, error) {
	if read.Err != nil {
		return nil, fmt.Errorf("tlsid: %w", read.Err)
	}
	certificates, err := pemfile.Certificates(read.Data[0])
	if err != nil {
		return nil, fmt.Errorf("tlsid: %s: %w", read.Paths[0], err)
	}
	id, err := checkLeaf(certificates[0])
	if err != nil {
		return nil, fmt.Errorf("tlsid: %s: %w", read.Paths[0], err)
	}
	key, err := pemfile.Key(read.Data[1])
	if err == nil {
		err = pemfile.CheckKey(certificates[0], key)
	}
	if err != nil {
		return nil, fmt.Errorf("tlsid: %s: %w", read.Paths[1], err)
	}
	var bundles []*x509bundle.Bundle
	for i, domain := range append([]spiffeid.TrustDomain{id.TrustDomain()}, federated...) {
		authorities, err := parseAuthorities(read.Data[2+i])
		if err != nil {
			return nil, fmt.Errorf("tlsid: %s: %w", read.Paths[2+i], err)
		}
		bundles = append(bundles, x509bundle.FromX509Authorities(domain, authorities))
	}
	identity, err := NewIdentity(&x509svid.SVID{ID: id, Certificates: certificates, PrivateKey: key}, bundles...)
	if err != nil {
		return nil, fmt.Errorf("%w (files %s and %s)", err, read.Paths[0], read.Paths[2])
	}
	return identity, nil
}

func parseAuthorities(data []byte) ([]*x509.Certificate, error) {
	authorities, err := pemfile.Certificates(data)
	if err != nil {
		return nil, err
	}
	for _, c := range authorities {
		if !c.IsCA {
			return nil, fmt.Errorf("the certificate of %q is not that of an authority", c.Subject)
		}
	}
	return authorities, nil
}
