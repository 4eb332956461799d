package mesh

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// security is how connections to an endpoint are secured. It is comparable: connections are shared only where it is equal.
type security struct {
	kind     securityKind
	expected tlsid.Expected // of mutual: who may answer
}

type securityKind uint8

const (
	plaintext  securityKind = iota // or whatever TLS the caller's URL asks for
	mutual                         // mTLS with the identity of the mesh
	originated                     // TLS with what a DestinationRule names
)

// tlsModeLabel is how Istio marks the endpoints that take its mTLS.
const tlsModeLabel = "security.istio.io/tlsMode"

var (
	errNeedsIdentity = errors.New("the endpoint takes mTLS only and this process has no identity: use mesh.WithIdentity")
	errUnknownPeer   = errors.New("it is not known which SPIFFE ID the endpoint has: set ServiceAccount in discovery, or " +
		"subjectAltNames in a DestinationRule")
)

// secure says how to connect to an endpoint, or why that is not possible.
func (c *cluster) secure(e *discovery.Endpoint) (security, error) {
	config := &c.config
	switch config.TLS.Mode {
	case policy.TLSDisable:
		return security{}, nil
	case policy.TLSSimple, policy.TLSMutual:
		return security{kind: originated}, nil
	case policy.TLSIstioMutual:
		return c.mutual(e)
	}
	if config.TLS.External {
		return security{}, nil
	}
	// Auto-mTLS: what the server's documents say of it, and else what is known of the endpoint.
	switch mode, _ := config.peers.Mode(e.Labels, e.Port); mode {
	case tlsid.Strict:
		return c.mutual(e)
	case tlsid.Permissive:
		if c.mesh.identity != nil && e.Labels[tlsModeLabel] == "istio" {
			return c.mutual(e)
		}
	}
	return security{}, nil
}

// mutual is mTLS with those SPIFFE IDs that the endpoint may have: never with any.
func (c *cluster) mutual(e *discovery.Endpoint) (security, error) {
	if c.mesh.identity == nil {
		return security{}, errNeedsIdentity
	}
	if names := c.config.TLS.SubjectAltNames; names != "" {
		var ids []spiffeid.ID
		for name := range strings.SplitSeq(names, ",") {
			id, err := spiffeid.FromString(name)
			if err != nil {
				return security{}, fmt.Errorf("subjectAltNames: %q: %w", name, err)
			}
			ids = append(ids, id)
		}
		return security{mutual, tlsid.Expect(ids...)}, nil
	}
	namespace, account, both := strings.Cut(e.ServiceAccount, "/")
	if !both {
		namespace, account = c.config.service.Namespace, e.ServiceAccount
	}
	if namespace == "" || account == "" {
		return security{}, errUnknownPeer
	}
	domain, err := spiffeid.TrustDomainFromString(c.config.trustDomain)
	if err != nil {
		return security{}, err
	}
	id, err := spiffeid.FromSegments(domain, "ns", namespace, "sa", account)
	if err != nil {
		return security{}, fmt.Errorf("service account %q: %w", e.ServiceAccount, err)
	}
	return security{mutual, tlsid.Expect(id)}, nil
}

// tlsConfig returns the configuration of the handshakes of a security, nil for none.
func (c *cluster) tlsConfig(s security) *tls.Config {
	switch s.kind {
	case mutual:
		config := c.mesh.identity.Client(s.expected)
		config.ServerName = c.config.TLS.ServerName // empty means the host of the request
		return config
	case originated:
		return c.conns.origination.Config(c.target.Host)
	}
	return nil
}

// endpoint is what a cluster attaches to a host of its balancer.
type endpoint struct {
	tracker *breaker.Tracker // nil if endpoints are never ejected
	plain   *lane            // without TLS, or with that which the caller's URL asks for
	secured atomic.Pointer[secured]
}

// secured is the lane of an endpoint for its security. It is replaced when discovery describes the endpoint differently.
type secured struct {
	security
	err  error // why the endpoint cannot be called
	lane *lane // nil for plaintext

	// always says that a document asked for it, so that it also goes for calls whose URL asks for TLS. Auto-mTLS leaves those
	// to their caller: it takes the place of plaintext only.
	always bool
}

// describe secures the endpoint as discovery describes it now.
func (c *cluster) describe(h *balancer.Host, e *endpoint) {
	described := h.Endpoint()
	s := &secured{always: c.config.TLS.Mode != policy.TLSAuto && c.config.TLS.Mode != policy.TLSDisable}
	s.security, s.err = c.secure(&described)
	old := e.secured.Load()
	if old != nil && old.security == s.security && (old.err == nil) == (s.err == nil) {
		return
	}
	if s.kind != plaintext {
		s.lane = c.conns.open(h.ID(), s.security, c.tlsConfig(s.security))
	}
	e.secured.Store(s)
	if old != nil && old.lane != nil {
		c.conns.close(old.lane)
	}
}

// enter counts a call in, and returns the link it goes over.
func (e *endpoint) enter(m *Mesh, scheme string) (*Link, error) {
	for {
		s, lane := e.secured.Load(), e.plain
		if scheme == "http" || s.always {
			if s.err != nil {
				return nil, s.err
			}
			if s.kind == mutual {
				// Connections that are open would go on working with an identity that has expired.
				if _, err := m.identity.Identity(); err != nil {
					return nil, err
				}
			}
			if s.lane != nil {
				lane = s.lane
			}
		}
		if link := lane.enter(); link != nil {
			return link, nil
		}
		if e.secured.Load() == s {
			return nil, errLinkClosed
		}
	}
}

// close closes the lanes of an endpoint that has no calls.
func (e *endpoint) close(c *connections) {
	c.close(e.plain)
	if s := e.secured.Load(); s.lane != nil {
		c.close(s.lane)
	}
}
