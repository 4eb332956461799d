package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/namespaces"
	"github.com/nosidecar/mesh/tlsid"
)

// identityWait is how long New waits for the first identity, unless its context ends earlier.
const identityWait = 30 * time.Second

// identityPatience is how long New waits before it reports that it is waiting, and the interval between reports.
const identityPatience = 5 * time.Second

var errIdentitySlow = errors.New("mesh: no identity in time")

// Identity returns the identity of the process as it is now, with its expiry. The error says why there is none:
// [tlsid.ErrNoIdentity] without [WithIdentity] or before the first identity has arrived, and a [*tlsid.ExpiredError] if the
// source has not renewed it in time.
func (m *Mesh) Identity() (*tlsid.Identity, error) {
	if m.identity == nil {
		return nil, tlsid.ErrNoIdentity
	}
	return m.identity.Identity()
}

// identify starts to keep the identity and, unless it may come late, waits for the first one.
func (m *Mesh) identify(ctx context.Context, from tlsid.Source, late bool) error {
	if from == nil {
		return nil
	}
	source := oneWorkload{from, names{namespace: m.workload.Namespace, service: m.workload.Service, account: m.workload.ServiceAccount}}
	if late {
		source.names.domain = m.trustDomain()
		source.names.namespace = cmp.Or(m.workload.Namespace, namespaces.DefaultOwn)
	}
	told := make(chan struct{})
	m.identity = tlsid.Keep(source, tlsid.Hooks{Rotated: func(before, now *tlsid.Identity) {
		m.rotated(now)
		if before == nil {
			close(told)
		}
	}, Failed: m.identityFailed})
	if late {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, identityWait, errIdentitySlow)
	defer cancel()
	m.running.Go(func() { m.tellOfWait(ctx) })
	if err := m.identity.Wait(ctx); err != nil {
		return fmt.Errorf("mesh: New: %w", err)
	}
	select {
	case <-told: // else the first calls might be recorded without the identity, and their connections be retired
	case <-ctx.Done(): // an observer blocks
	}
	id, err := m.identity.Identity()
	if err != nil {
		return err
	}
	w, said := &m.workload, namesIn(id)
	w.TrustDomain, w.Namespace = cmp.Or(w.TrustDomain, said.domain), cmp.Or(w.Namespace, said.namespace)
	w.Service, w.ServiceAccount = cmp.Or(w.Service, said.service), cmp.Or(w.ServiceAccount, said.account)
	return names{w.TrustDomain, cmp.Or(w.Namespace, namespaces.DefaultOwn), w.Service, w.ServiceAccount}.check(id)
}

// tellOfWait tells the observers, until ctx ends, that New is waiting for an identity.
func (m *Mesh) tellOfWait(ctx context.Context) {
	ticker := time.NewTicker(identityPatience)
	defer ticker.Stop()
	for waited := identityPatience; ; waited += identityPatience {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if _, err := m.identity.Identity(); err != nil {
			m.observers.Identity(nil, fmt.Errorf("mesh: New waits for an identity, since %v: %w", waited, err))
		}
	}
}

// trustDomain returns the trust domain that documents are compiled for.
func (m *Mesh) trustDomain() string {
	return cmp.Or(m.workload.TrustDomain, "cluster.local") // as in policy.Workload
}

// principal returns a peer's ID in the form that documents use.
func principal(peer tlsid.Peer) string {
	return strings.TrimPrefix(peer.ID.String(), "spiffe://")
}

// names are what the identity of a workload says about it. "" is for what it does not say, or may say as it likes.
type names struct{ domain, namespace, service, account string }

// namesIn returns what an identity of the form of Istio, /ns/NAMESPACE/sa/ACCOUNT, or of Consul Connect says.
func namesIn(id *tlsid.Identity) names {
	said := names{domain: id.TrustDomain().Name()}
	_, said.service, _ = connectid.Parse(id.ID().Path())
	rest, ok := strings.CutPrefix(id.ID().Path(), "/ns/")
	namespace, rest, _ := strings.Cut(rest, "/")
	if account, found := strings.CutPrefix(rest, "sa/"); ok && found {
		said.namespace, said.account = namespace, account
	}
	return said
}

// check returns an error if an identity says something else: its principals would mean other peers than those of the documents, or the
// documents of another workload would be enforced.
func (n names) check(id *tlsid.Identity) error {
	said := namesIn(id)
	for _, c := range [...]struct{ what, said, want, remedy string }{
		{"trust domain", said.domain, n.domain, "TrustDomain in WithWorkload, or the variable TRUST_DOMAIN"},
		{"namespace", said.namespace, n.namespace, "Namespace in WithWorkload, or the variable POD_NAMESPACE"},
		{"service", said.service, n.service, "Service in WithWorkload"},
		{"service account", said.account, n.account, "ServiceAccount in WithWorkload, or the variable SERVICE_ACCOUNT"},
	} {
		if c.said != "" && c.want != "" && c.said != c.want {
			return fmt.Errorf("mesh: the identity %s is of the %s %s, and the workload is of %s: correct %s", id.ID(), c.what, c.said, c.want, c.remedy)
		}
	}
	return nil
}

// oneWorkload is a source whose identities all say the same about their workload: the names, or what the first identity says, which New
// checks. Any other identity is an error.
type oneWorkload struct {
	tlsid.Source
	names names
}

// Watch implements tlsid.Source.
func (s oneWorkload) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		want := s.names
		for id, err := range s.Source.Watch(ctx) {
			if err == nil && id != nil {
				said := namesIn(id)
				want.service, want.account = cmp.Or(want.service, said.service), cmp.Or(want.account, said.account)
				if want.domain == "" {
					want.domain, want.namespace = said.domain, cmp.Or(want.namespace, said.namespace, namespaces.DefaultOwn)
				} else if err = want.check(id); err != nil {
					id = nil
				}
			}
			if !yield(id, err) {
				return
			}
		}
	}
}

// rotated is told of each new identity. Connections made with the previous one take no new calls, and those to endpoints that are not trusted
// any more are cut off.
func (m *Mesh) rotated(now *tlsid.Identity) {
	m.engine.Rotate()
	m.server.certs.Store(new(forwardedCerts))
	m.server.recheck()
	m.engine.Recheck(now)
	m.observers.Identity(now, nil)
}

func (m *Mesh) identityFailed(err error) {
	if _, expired := errors.AsType[*tlsid.ExpiredError](err); expired {
		m.server.recheck() // without a valid identity there are no bundles that could vouch for a peer
	}
	m.observers.Identity(nil, err)
}

// warnOpen tells the observers, once, that a process with an identity serves every peer: an operator who set up identities
// may not expect that.
func (m *Mesh) warnOpen() {
	in := m.engine.Plan().Inbound()
	if m.identity == nil || in.Authorizes() || in.Mode(0) != tlsid.Permissive || !m.server.warned.CompareAndSwap(false, true) {
		return
	}
	m.warn("no AuthorizationPolicy, nothing else that authorizes requests, and no PeerAuthentication is about this workload: requests of " +
		"every peer are served, with and without an identity")
}
