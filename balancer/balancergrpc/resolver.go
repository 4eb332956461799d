package balancergrpc

import (
	"errors"

	"google.golang.org/grpc/attributes"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/resolver"

	"github.com/nosidecar/mesh/discovery"
)

var (
	errNotRegistered = errors.New("balancergrpc: Register was not called")
	errReplaced      = errors.New("balancergrpc: the balancer of the ClientConn was replaced: " +
		"grpc.WithDisableServiceConfig and grpc.WithDefaultServiceConfig must not be used together with it")
)

// resolvers is the resolver.Builder of a Client.
type resolvers Client

// Scheme implements resolver.Builder.
func (*resolvers) Scheme() string { return scheme }

// Build implements resolver.Builder.
func (r *resolvers) Build(target resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (
	resolver.Resolver, error) {
	if grpcbalancer.Get(name) == nil {
		return nil, errNotRegistered
	}
	s, err := (*Client)(r).acquire(target)
	if err != nil {
		return nil, err
	}
	w := &watch{service: s, cc: cc}
	w.watcher = discovery.NewWatcher(s.client.Resolver, func(_ discovery.Service, err error) { w.failed(err) })
	w.watcher.Subscribe(discovery.Service{Host: s.host}, w.update)
	return w, nil
}

// watch is the resolver.Resolver of a ClientConn, between two idle periods.
type watch struct {
	service *service
	cc      resolver.ClientConn
	watcher *discovery.Watcher
	known   bool // there was a set of endpoints; used by the one goroutine of the watcher
}

// serviceKey is the key of the service in the attributes of a state: the way from the resolver to the balancer.
type serviceKey struct{}

func (w *watch) update(endpoints []discovery.Endpoint) {
	w.known = true
	s := w.service
	s.balancer.Update(endpoints)
	s.seen.Store(false)
	s.told.Store(true)
	// It has no addresses: another balancer could only connect to them without their attributes. The error only says that
	// the balancer wants another set.
	_ = w.cc.UpdateState(resolver.State{
		ServiceConfig: w.cc.ParseServiceConfig(serviceConfig),
		Attributes:    attributes.New(serviceKey{}, s),
	})
}

// failed passes on errors while no set is known. After that the last good set stays.
func (w *watch) failed(err error) {
	if !w.known {
		w.cc.ReportError(err)
	}
}

// ResolveNow implements resolver.Resolver. The watch is always up to date.
func (w *watch) ResolveNow(resolver.ResolveNowOptions) {}

// Close implements resolver.Resolver.
func (w *watch) Close() {
	w.watcher.Close()
	w.service.client.release(w.service)
}
