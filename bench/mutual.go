package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"strconv"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// security is what a careful operator asks for between services, added to documents.
const security = `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: users, namespace: default}
spec:
  selector: {matchLabels: {app: user-service}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/admin]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
    to: [{operation: {methods: [GET], paths: [/users/*]}}]
`

// MutualCallers returns ways to call a service over HTTP/2 with mTLS, in this process with both its ends: with nothing but
// net/http, and with the whole mesh on both ends, without timeouts and with them. As with [Callers], the first calls the instances in
// turn, and the last has one connection. The caller closes the first of them.
func MutualCallers() (_ []Caller, err error) {
	var close closers
	defer func() {
		if err != nil {
			close.all()
		}
	}()
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		return nil, err
	}

	roots := x509.NewCertPool()
	for _, root := range ca.Bundle().X509Authorities() {
		roots.AddCert(root)
	}
	certificate := func(account string) (tls.Certificate, error) {
		id, err := ca.Identity("default", account)
		if err != nil {
			return tls.Certificate{}, err
		}
		return *id.Certificate(), nil
	}
	own, err := certificate("user-service")
	if err != nil {
		return nil, err
	}
	addresses, err := close.serve(func(ln net.Listener) (net.Listener, http.Handler) {
		return tls.NewListener(ln, &tls.Config{
			Certificates: []tls.Certificate{own}, ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
			NextProtos: []string{"h2"},
		}), serve
	})
	if err != nil {
		return nil, err
	}
	web, err := certificate("web")
	if err != nil {
		return nil, err
	}
	s := &Server{protocol: HTTP2, addresses: addresses}
	bare := func() *http.Client {
		t := s.Spread()
		t.TLSClientConfig = &tls.Config{
			Certificates: []tls.Certificate{web}, RootCAs: roots,
			InsecureSkipVerify: true, // host names prove nothing here; as in the mesh, the chain is verified instead
			VerifyConnection: func(state tls.ConnectionState) error {
				_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
				return err
			},
		}
		close.add(t.CloseIdleConnections)
		return &http.Client{Transport: t}
	}

	member := func(account string, registry discovery.Resolver, timeouts bool) (*mesh.Mesh, error) {
		m, err := mesh.New(context.Background(),
			mesh.WithPolicy(policy.Source{Name: "bench.yaml", Data: []byte(routed(timeouts) + security)}),
			mesh.WithDiscovery(registry),
			mesh.WithIdentity(ca.Source("default", account)),
			mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": account}}),
			mesh.WithServer(mesh.ServerConfig{MaxRequests: 10_000}),
			mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{}}),
		)
		if err == nil {
			close.add(func() { m.Close() })
		}
		return m, err
	}
	var registry discovery.Memory
	server, err := member("user-service", &registry, false)
	if err != nil {
		return nil, err
	}
	if addresses, err = close.serve(func(ln net.Listener) (net.Listener, http.Handler) {
		return server.Listen(ln), server.Handler(serve)
	}); err != nil {
		return nil, err
	}
	known := make([]discovery.Endpoint, len(addresses))
	for i, address := range addresses {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		n, err := strconv.Atoi(port)
		if err != nil {
			return nil, err
		}
		known[i] = discovery.Endpoint{Address: host, Port: n, ServiceAccount: "user-service"}
	}
	registry.Set("user-service", known...)
	callers := []Caller{{"bare, mTLS", bare(), s.Instances(), close.all}}
	for _, timeouts := range []bool{false, true} {
		client, err := member("web", &registry, timeouts)
		if err != nil {
			return nil, err
		}
		name := "whole mesh on both ends, mTLS"
		if timeouts {
			name += ", timeouts"
		}
		callers = append(callers, Caller{name, client.Client(), []string{"http://user-service/users/42"}, func() {}})
	}
	return append(callers, Caller{OneConnection + ", mTLS", bare(), []string{s.URL()}, func() {}}), nil
}

// closers are what must be closed, the last first.
type closers []func()

func (c *closers) add(f func()) { *c = append(*c, f) }

func (c *closers) all() {
	for i := len(*c) - 1; i >= 0; i-- {
		(*c)[i]()
	}
}

// serve starts the instances of a service, and returns where they listen.
func (c *closers) serve(wrap func(net.Listener) (net.Listener, http.Handler)) ([]string, error) {
	var addresses []string
	for range endpoints {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, ln.Addr().String())
		listener, handler := wrap(ln)
		srv := &http.Server{Handler: handler}
		go srv.Serve(listener)
		c.add(func() { srv.Close() })
	}
	return addresses, nil
}
