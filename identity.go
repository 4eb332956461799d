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
	source := oneWorkload{Source: from, namespace: m.workload.Namespace, service: m.workload.Service, account: m.workload.ServiceAccount}
	if late {
		source.domain = m.trustDomain()
		source.namespace = cmp.Or(m.workload.Namespace, namespaces.DefaultOwn)
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
	m.workload.TrustDomain = cmp.Or(m.workload.TrustDomain, id.TrustDomain().Name())
	m.workload.Namespace = cmp.Or(m.workload.Namespace, namespaceOf(id))
	m.workload.Service = cmp.Or(m.workload.Service, serviceOf(id))
	m.workload.ServiceAccount = cmp.Or(m.workload.ServiceAccount, accountOf(id))
	return cmp.Or(checkTrustDomain(id, m.workload.TrustDomain), checkNamespace(id, cmp.Or(m.workload.Namespace, namespaces.DefaultOwn)),
		checkService(id, m.workload.Service), checkAccount(id, m.workload.ServiceAccount))
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

// checkTrustDomain returns an error if the identity is not in the trust domain that documents are compiled for: their
// principals would mean other peers.
func checkTrustDomain(id *tlsid.Identity, domain string) error {
	if domain != id.TrustDomain().Name() {
		return fmt.Errorf("mesh: the identity %s is not of the trust domain %s: correct TrustDomain in WithWorkload, or the "+
			"variable TRUST_DOMAIN", id.ID(), domain)
	}
	return nil
}

// checkNamespace returns an error if the identity belongs to a service account in another namespace than the workload's: the
// documents of the wrong namespace would be enforced.
func checkNamespace(id *tlsid.Identity, namespace string) error {
	if own := namespaceOf(id); own != "" && own != namespace {
		return fmt.Errorf("mesh: the identity %s is of the namespace %s, and the workload is in %s: correct Namespace in "+
			"WithWorkload, or the variable POD_NAMESPACE", id.ID(), own, namespace)
	}
	return nil
}

// namespaceOf returns the namespace in an identity of Istio's form, /ns/NAMESPACE/sa/ACCOUNT, and "" for others.
func namespaceOf(id *tlsid.Identity) string {
	namespace, _ := ofIstio(id)
	return namespace
}

// accountOf returns the service account in an identity of Istio's form, and "" for others.
func accountOf(id *tlsid.Identity) string {
	_, account := ofIstio(id)
	return account
}

func ofIstio(id *tlsid.Identity) (namespace, account string) {
	rest, ok := strings.CutPrefix(id.ID().Path(), "/ns/")
	namespace, rest, _ = strings.Cut(rest, "/")
	account, found := strings.CutPrefix(rest, "sa/")
	if !ok || !found {
		return "", ""
	}
	return namespace, account
}

// checkAccount returns an error if the identity is that of another service account than the workload's: the TrafficTargets of the wrong one
// would be enforced.
func checkAccount(id *tlsid.Identity, account string) error {
	if own := accountOf(id); own != "" && account != "" && own != account {
		return fmt.Errorf("mesh: the identity %s is of the service account %s, and the workload is of %s: correct ServiceAccount in WithWorkload, "+
			"or the variable SERVICE_ACCOUNT", id.ID(), own, account)
	}
	return nil
}

// serviceOf returns the service in an identity of Consul Connect's form, and "" for others.
func serviceOf(id *tlsid.Identity) string {
	_, service, _ := connectid.Parse(id.ID().Path())
	return service
}

// checkService returns an error if the identity is that of another Consul service than the workload's: the intentions of the
// wrong service would be enforced.
func checkService(id *tlsid.Identity, service string) error {
	if own := serviceOf(id); own != "" && service != "" && own != service {
		return fmt.Errorf("mesh: the identity %s is of the service %s, and the workload is of %s: correct Service in WithWorkload",
			id.ID(), own, service)
	}
	return nil
}

// oneWorkload is a source whose identities all have one trust domain, namespace, service and service account. Any other is an error.
type oneWorkload struct {
	tlsid.Source
	domain    string // empty: the first identity's, which New checks
	namespace string // empty: the first identity's, if it has one
	service   string // likewise
	account   string // likewise
}

// Watch implements tlsid.Source.
func (s oneWorkload) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		domain, namespace, service, account := s.domain, s.namespace, s.service, s.account
		for id, err := range s.Source.Watch(ctx) {
			if err == nil && id != nil {
				service, account = cmp.Or(service, serviceOf(id)), cmp.Or(account, accountOf(id))
				if domain == "" {
					domain, namespace = id.TrustDomain().Name(), cmp.Or(namespace, namespaceOf(id), namespaces.DefaultOwn)
				} else if err = cmp.Or(checkTrustDomain(id, domain), checkNamespace(id, namespace), checkService(id, service),
					checkAccount(id, account)); err != nil {
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
