package sockets

import (
	"context"
	"net"
	"net/http"
	"net/url"

	"github.com/nosidecar/mesh/internal/transports"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/tlsid"
)

// Template is the template for all connections. It also holds the connections to hosts outside the mesh, which have no
// limits.
type Template struct {
	Identity *tlsid.Keeper // for [Mutual]; nil without one

	transport *http.Transport
	outside   *limit.Conns      // with the template's proxy
	replaced  http.RoundTripper // in place of all connections to endpoints, for benchmarks

	// The templates of connections to endpoints, which are dialled directly. They are never used themselves.
	endpoints, upgraded *http.Transport

	mutual mutual
}

// NewTemplate returns a template like transport, which is never used itself. nil means http.DefaultTransport.
func NewTemplate(transport *http.Transport) (*Template, error) {
	t := &Template{transport: transports.Clone(transport)}
	t.endpoints = transports.Clone(t.transport)
	t.endpoints.Proxy = nil
	t.upgraded = transports.Clone(t.endpoints)
	t.upgraded.Protocols = new(http.Protocols)
	t.upgraded.Protocols.SetHTTP2(true)
	t.upgraded.Protocols.SetUnencryptedHTTP2(true)
	var unlimited *limit.Pool
	var err error
	t.outside, err = unlimited.Conns(t.transport)
	return t, err
}

// direct returns the template of connections to endpoints, with HTTP/2 for plaintext or without.
func (t *Template) direct(upgrade bool) *http.Transport {
	if upgrade {
		return t.upgraded
	}
	return t.endpoints
}

// Outside returns the connections to hosts outside the mesh.
func (t *Template) Outside() http.RoundTripper { return t.outside }

// CloseIdle closes the connections to hosts outside the mesh that serve no call.
func (t *Template) CloseIdle() { t.outside.CloseIdleConnections() }

// Dial makes a connection to a host outside the mesh.
func (t *Template) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return transports.Dial(t.transport)(ctx, network, address)
}

// Proxies reports whether calls to a host go to a proxy.
func (t *Template) Proxies(scheme, authority string) bool {
	if t.transport.Proxy == nil {
		return false
	}
	proxy, err := t.transport.Proxy(&http.Request{
		Method: http.MethodGet, URL: &url.URL{Scheme: scheme, Host: authority}, Host: authority, Header: make(http.Header),
	})
	return proxy != nil || err != nil
}

// Replace makes every endpoint answer with rt, so that a benchmark sees what the engine itself costs.
func (t *Template) Replace(rt http.RoundTripper) { t.replaced = rt }
