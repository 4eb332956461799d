// Package discovery finds the endpoints of a service.
//
// A [Resolver] watches one service and yields its endpoints whenever they change. The package has three: [Memory], a
// registry in the process; [Static], a fixed table; and [DNS]. Resolvers that need a client library live in folders below
// this one.
package discovery

import (
	"cmp"
	"context"
	"iter"
	"net"
	"strconv"
	"strings"
)

// Endpoint is one instance of a service: where it listens and what is known about it. Endpoints are values; the Labels map
// and the Ports slice are shared and must not be changed once published.
type Endpoint struct {
	// Address is an IP address or a host name, without port and brackets.
	Address string

	// Port is dialled for every service port that Ports does not name. 0 means the port the caller asked for.
	Port int

	// Ports says where each port of a service with several ports is served.
	Ports []Port

	// Labels assign the endpoint to subsets.
	Labels map[string]string

	// Locality is where the endpoint runs. The zero value is an unknown place.
	Locality Locality

	// Weight is the endpoint's share of the traffic, relative to its peers. 0 means 1.
	Weight uint32

	// Draining keeps the endpoint and its calls in flight, but sends it no new calls.
	Draining bool

	// OnlyPorts means that Ports is complete: the endpoint serves no other port of the service, and a mesh sends it no call to one.
	OnlyPorts bool

	// ServiceAccount is the identity the endpoint runs as ("order-service", or "namespace/order-service"). Empty means
	// unknown. It says whom a mesh expects at the other end of mTLS, but not that mTLS is used: for that, the endpoint has the
	// label security.istio.io/tlsMode=istio, unless documents say so.
	ServiceAccount string

	// Record is what the resolver itself knows about the endpoint, for code that knows the resolver. nil if there is nothing.
	// It is shared and must not be changed. Two endpoints that differ in nothing but their Records are the same.
	Record any
}

// Port maps one port of a service to the port an endpoint listens on.
type Port struct {
	Name   string // such as "http"; may be empty
	Number int    // the service's port, as callers and documents name it
	Target int    // the endpoint's port; 0 means Number
}

// Locality is a place, from coarse to fine. Empty parts are unknown.
type Locality struct {
	Region, Zone, SubZone string
}

// String returns "region/zone/subzone", the form that documents use, cut after the last known part.
func (l Locality) String() string {
	switch {
	case l.SubZone != "":
		return l.Region + "/" + l.Zone + "/" + l.SubZone
	case l.Zone != "":
		return l.Region + "/" + l.Zone
	}
	return l.Region
}

// DialPort returns the port to dial for the service port number; for 0, the endpoint's only or first port. It returns 0 if
// the endpoint does not say, or does not serve that port.
func (e *Endpoint) DialPort(number int) int {
	for _, p := range e.Ports {
		if p.Number == number || number == 0 {
			return cmp.Or(p.Target, p.Number)
		}
	}
	if e.OnlyPorts {
		return 0
	}
	return cmp.Or(e.Port, number)
}

// ID identifies the endpoint among those of its service: its address and port. State kept for an endpoint (requests in
// flight, ejections, connections) follows the ID across updates.
func (e *Endpoint) ID() string {
	return net.JoinHostPort(e.Address, strconv.Itoa(e.DialPort(0)))
}

// Service is what a resolver looks up.
type Service struct {
	// Host is the canonical name: "user-service.default.svc.cluster.local", "api.example.com" or "10.0.0.7".
	Host string

	// Name and Namespace are the parts of a Host inside the cluster domain; both are empty otherwise.
	Name, Namespace string

	// Local means that the caller is in the same namespace and so may use Name alone.
	Local bool
}

// Names returns the names s may be registered under, most specific first: the host itself and, for a service of the
// cluster, name.namespace.svc, name.namespace and, from the same namespace, the bare name.
func (s Service) Names() []string {
	if s.Name == "" {
		return []string{s.Host}
	}
	short := s.Name + "." + s.Namespace + ".svc"
	if strings.HasPrefix(s.Host, short+".") {
		short = s.Host[:len(short)] // which there may be thousands of
	}
	names := []string{s.Host, short, strings.TrimSuffix(short, ".svc"), s.Name}
	if !s.Local {
		names = names[:3]
	}
	return names
}

// Resolver finds endpoints. Implementations must be safe for concurrent use.
type Resolver interface {
	// Watch yields the endpoints of the service now and after every change, until ctx ends or the caller stops. It
	// blocks between changes and starts no goroutine that outlives the iteration.
	//
	// An empty set is an answer: the service has no endpoints now. An error is not: the caller keeps the last set it got,
	// and Watch keeps trying at its own pace. [ErrUnknownService] means that this resolver does not know the service; it may
	// still appear later. The yielded slice must not be changed by either side.
	//
	// A [Watcher], and so a mesh, runs Watch on a goroutine of its own and does not recover from a panic there. If Watch does not
	// block, it takes 100 sets at once and then 100 a second, 10 errors at once and then one a second. It begins a Watch that ends
	// too early again after a while.
	Watch(ctx context.Context, service Service) iter.Seq2[[]Endpoint, error]
}
