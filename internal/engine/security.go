package engine

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/connectid"
	"github.com/nosidecar/mesh/internal/engine/sockets"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// tlsModeLabel is how Istio marks the endpoints that take its mTLS.
const tlsModeLabel = "security.istio.io/tlsMode"

var (
	errNeedsIdentity = errors.New("the endpoint takes mTLS only and this process has no identity: use mesh.WithIdentity")
	errUnknownPeer   = errors.New("it is not known which SPIFFE ID the endpoint has: set ServiceAccount in discovery, or " +
		"subjectAltNames in a DestinationRule")
)

// secure returns how to connect to an endpoint, or why that is not possible.
func (c *cluster) secure(e *discovery.Endpoint) (sockets.Security, error) {
	config := &c.config
	switch config.TLS.Mode {
	case policy.TLSDisable:
		return sockets.Security{}, nil
	case policy.TLSSimple, policy.TLSMutual:
		return sockets.Security{Kind: sockets.Originated}, nil
	case policy.TLSIstioMutual:
		return c.mutual(e)
	}
	if config.TLS.External {
		return sockets.Security{}, nil
	}
	// Auto-mTLS: documents about the server decide, and otherwise the label of the endpoint.
	switch mode, _ := config.peers.Mode(e.Labels, e.Port); mode {
	case tlsid.Strict:
		return c.mutual(e)
	case tlsid.Permissive:
		if c.engine.identity != nil && e.Labels[tlsModeLabel] == "istio" {
			return c.mutual(e)
		}
	}
	return sockets.Security{}, nil
}

// mutual returns mTLS with the SPIFFE IDs that the endpoint may have. It never accepts any ID whatever.
func (c *cluster) mutual(e *discovery.Endpoint) (sockets.Security, error) {
	if c.engine.identity == nil {
		return sockets.Security{}, errNeedsIdentity
	}
	if names := c.config.TLS.SubjectAltNames; len(names) > 0 {
		var ids []spiffeid.ID
		for _, name := range names {
			id, err := spiffeid.FromString(name)
			if err != nil {
				return sockets.Security{}, fmt.Errorf("subjectAltNames: %q: %w", name, err)
			}
			ids = append(ids, id)
		}
		s := sockets.Security{Kind: sockets.Mutual, Expected: tlsid.Expect(ids...)}
		if len(ids) == 1 {
			s.Only = ids[0].String()
		}
		return s, nil
	}
	namespace, account, both := strings.Cut(e.ServiceAccount, "/")
	if domain, ok := c.engine.connect(); ok && e.ServiceAccount != "" {
		if !both {
			namespace, account = connectid.Namespace, e.ServiceAccount
		}
		expected, err := tlsid.ExpectConnect(domain, namespace, account)
		return sockets.Security{Kind: sockets.Mutual, Expected: expected}, err
	}
	if !both {
		namespace, account = c.config.service.Namespace, e.ServiceAccount
	}
	if namespace == "" || account == "" {
		return sockets.Security{}, errUnknownPeer
	}
	domain, err := spiffeid.TrustDomainFromString(c.engine.trustDomain)
	if err != nil {
		return sockets.Security{}, err
	}
	id, err := spiffeid.FromSegments(domain, "ns", namespace, "sa", account)
	if err != nil {
		return sockets.Security{}, fmt.Errorf("service account %q: %w", e.ServiceAccount, err)
	}
	return sockets.Security{Kind: sockets.Mutual, Expected: tlsid.Expect(id), Only: id.String()}, nil
}

// connect returns the trust domain of the own identity, and whether Consul Connect issued it: then its peers have IDs of the
// same form.
func (e *Engine) connect() (spiffeid.TrustDomain, bool) {
	own, _ := e.identity.Latest()
	if own == nil {
		return spiffeid.TrustDomain{}, false
	}
	_, _, ok := connectid.Parse(own.ID().Path())
	return own.TrustDomain(), ok
}

// identified returns an error unless the identity of this process is valid at the time now.
func (e *Engine) identified(now time.Time) error {
	own, _ := e.identity.Latest()
	if own != nil && own == e.valid.Load() && !now.After(own.NotAfter()) {
		return nil
	}
	own, err := e.identity.Identity()
	if err == nil {
		e.valid.Store(own)
	}
	return err
}

// tlsConfig returns the configuration of the handshakes of a security, nil for none.
func (c *cluster) tlsConfig(s sockets.Security) *tls.Config {
	switch s.Kind {
	case sockets.Mutual:
		config := c.engine.identity.Client(s.Expected)
		config.ServerName = c.config.TLS.ServerName // empty means the host of the request
		return config
	case sockets.Originated:
		return c.sockets.Originate(c.target.Host)
	}
	return nil
}
