package consul

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/hashicorp/consul/api"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/consul"
	"github.com/nosidecar/mesh/internal/pemfile"
	"github.com/nosidecar/mesh/tlsid"
)

// Source is a [tlsid.Source] that follows the certificate of a service and the roots of Consul Connect. The fields must not
// change once Watch is called.
//
// Its token needs service:write for the service. All roots that Consul lists are trusted, also those that it no longer issues
// with. New ones are in force at once, before the certificate that they sign, so that peers whose certificate is newer are not
// refused.
type Source struct {
	// Service is the name of the service, with the case that it is registered with. Consul issues certificates for any name,
	// registered or not. It must be set.
	Service string

	// Client talks to the agent. nil is a client of the environment, as discovery/consul.NewClient(nil) makes it. NewClient says what any
	// other client does not bound.
	Client *api.Client
}

var _ tlsid.Source = Source{}

// Watch yields the identity now, after each renewal of the certificate, which the agent sees to, and after each change of the
// roots. It asks for both by blocking queries, so that no certificate is issued but by the agent's own plan.
//
// An agent that cannot be reached, and one that denies the certificate, are an error, as is an answer that is no identity; it is
// asked again, less and less often, and the last identity stays in force until it expires. Only an invalid Source ends the
// sequence with an error.
func (s Source) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		client, err := s.client()
		if err != nil {
			yield(nil, err)
			return
		}
		ctx, stop := context.WithCancel(ctx)
		updates := make(chan update)
		var following sync.WaitGroup
		defer following.Wait()
		defer stop()
		following.Go(func() {
			follow(ctx, updates, rootsOf(client), func(roots *api.CARootList) update { return update{roots: roots} })
		})
		following.Go(func() {
			follow(ctx, updates, s.leafOf(client), func(leaf *api.LeafCert) update { return update{isLeaf: true, leaf: leaf} })
		})

		var roots, leaf update // the last, each with the error since
		for {
			var next update
			select {
			case <-ctx.Done():
				return
			case next = <-updates:
			}
			has, other := &roots, &leaf
			if next.isLeaf {
				has, other = other, has
			}
			if has.err = next.err; next.err != nil {
				if !yield(nil, next.err) {
					return
				}
				continue
			}
			*has = next
			if roots.roots == nil || leaf.leaf == nil {
				continue
			}
			// An identity says that all is well, and it is not if the other one cannot be read.
			if !yield(s.identity(roots.roots, leaf.leaf)) || other.err != nil && !yield(nil, other.err) {
				return
			}
		}
	}
}

func (s Source) client() (*api.Client, error) {
	if err := connectid.Check(s.Service); err != nil {
		return nil, fmt.Errorf("consul: Source.Service: %w", err)
	}
	if s.Client != nil {
		return s.Client, nil
	}
	return consul.NewClient(nil)
}

// update is new roots, a new certificate, or an error about one of them.
type update struct {
	isLeaf bool
	roots  *api.CARootList
	leaf   *api.LeafCert
	err    error
}

func follow[T any](ctx context.Context, updates chan<- update, w consul.Watch[T], of func(T) update) {
	for answer, err := range w.All(ctx) {
		u := of(answer)
		u.err = err
		select {
		case updates <- u:
		case <-ctx.Done():
			return
		}
	}
}

func rootsOf(client *api.Client) consul.Watch[*api.CARootList] {
	return consul.Watch[*api.CARootList]{
		What: "roots of Connect",
		Read: func(options *api.QueryOptions) (*api.CARootList, *api.QueryMeta, error) {
			roots, meta, err := client.Agent().ConnectCARoots(options)
			if err == nil && (roots == nil || len(roots.Roots) == 0) {
				err = errors.New("there are none")
			}
			return roots, meta, err
		},
		Equal: func(a, b *api.CARootList) bool {
			return a.TrustDomain == b.TrustDomain && slices.EqualFunc(a.Roots, b.Roots, func(a, b *api.CARoot) bool {
				return a != nil && b != nil && a.RootCertPEM == b.RootCertPEM
			})
		},
	}
}

func (s Source) leafOf(client *api.Client) consul.Watch[*api.LeafCert] {
	return consul.Watch[*api.LeafCert]{
		What: fmt.Sprintf("certificate of the service %q", s.Service),
		Read: func(options *api.QueryOptions) (*api.LeafCert, *api.QueryMeta, error) {
			leaf, meta, err := client.Agent().ConnectCALeaf(s.Service, options)
			if err == nil && leaf == nil {
				err = errors.New("there is none")
			}
			return leaf, meta, err
		},
		Equal: func(a, b *api.LeafCert) bool { return a.CertPEM == b.CertPEM },
	}
}

// identity makes an identity of what Consul says.
func (s Source) identity(roots *api.CARootList, leaf *api.LeafCert) (*tlsid.Identity, error) {
	fail := func(err error) (*tlsid.Identity, error) {
		return nil, fmt.Errorf("consul: identity of the service %q: %w", s.Service, err)
	}
	bundle, err := bundleOf(roots)
	if err != nil {
		return fail(err)
	}
	certificates, err := pemfile.Certificates([]byte(leaf.CertPEM))
	if err != nil {
		return fail(err)
	}
	key, err := pemfile.Key([]byte(leaf.PrivateKeyPEM))
	if err != nil {
		return fail(err)
	}
	identity, err := tlsid.NewIdentity(&x509svid.SVID{Certificates: certificates, PrivateKey: key}, bundle)
	if err != nil {
		return fail(err)
	}
	if namespace, service, ok := connectid.Parse(identity.ID().Path()); !ok || service != s.Service || namespace != connectid.Namespace {
		return fail(fmt.Errorf("the certificate is of %s", identity.ID()))
	}
	return identity, nil
}

// bundleOf returns all authorities that Consul lists.
func bundleOf(roots *api.CARootList) (*x509bundle.Bundle, error) {
	domain, err := spiffeid.TrustDomainFromString(roots.TrustDomain)
	if err != nil {
		return nil, fmt.Errorf("trust domain: %w", err)
	}
	var authorities []*x509.Certificate
	for _, root := range roots.Roots {
		if root == nil {
			return nil, errors.New("a root is null")
		}
		certificates, err := pemfile.Certificates([]byte(root.RootCertPEM))
		if err != nil {
			return nil, fmt.Errorf("root %s: %w", root.ID, err)
		}
		for _, c := range certificates {
			if !slices.ContainsFunc(authorities, func(other *x509.Certificate) bool { return bytes.Equal(other.Raw, c.Raw) }) {
				authorities = append(authorities, c)
			}
		}
	}
	return x509bundle.FromX509Authorities(domain, authorities), nil
}
