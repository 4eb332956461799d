// Package balancergrpc spreads the calls of a grpc.ClientConn over the endpoints of a service.
//
// [Client] finds the endpoints with a discovery.Resolver, keeps a connection to each of them, and picks with the algorithms
// of package balancer:
//
//	balancergrpc.Register() // once in a program, before the first grpc.ClientConn
//
//	c := &balancergrpc.Client{Resolver: resolver}
//	conn, err := grpc.NewClient("discovery:///user-service:8080", append(c.DialOptions(), credentials)...)
//
// gRPC knows balancers only by a name in a global table: hence [Register]. The state of each client is nevertheless its own: only the
// code is shared.
package balancergrpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/resolver"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpcstatus"
)

var errTarget = errors.New(`balancergrpc: the target of a ClientConn with the options of a Client is "discovery:///host:port"`)

const (
	// scheme is the scheme of a Client's targets: "discovery:///user-service:8080".
	scheme = "discovery"

	// name is the name of the balancer in service configs.
	name = "nosidecar_balancer"

	serviceConfig = `{"loadBalancingConfig":[{"` + name + `":{}}]}`
)

// Register makes the balancer known to gRPC. A program calls it once, from main or an init function, before it makes a
// grpc.ClientConn: gRPC's table of balancers is not safe for concurrent use. Without it, grpc.NewClient with the options of
// a [Client] fails: "no supported policies found in config".
func Register() {
	grpcbalancer.Register(builder{})
}

// Client balances the calls of grpc.ClientConns made with its DialOptions, whose targets are "discovery:///host:port". It is used as
// a literal, as in the package comment.
//
// The port of the target is the port of the service; endpoints may map it to another. The authority, and with TLS the name
// to verify, stay the service's. A ClientConn keeps connected to all its endpoints; calls go only to those whose connection
// is up. Among those, the balancer picks as [balancer.Config] says; a hashing algorithm waits for an endpoint that is
// connecting, and skips one that cannot be connected to.
//
// The state of endpoints (calls in flight, latency, ejections) survives when a ClientConn goes idle, although gRPC then
// discards its balancer. The fields must not be changed once DialOptions has been called. A Client needs no Close: it works
// only for open ClientConns.
type Client struct {
	// Resolver finds the endpoints of the services. It must be set. A ClientConn whose service has no endpoints yet fails
	// calls with the Resolver's error; calls with grpc.WaitForReady wait. Later errors change nothing: the last good set
	// stays.
	Resolver discovery.Resolver

	// Config says how to pick. If it is invalid, every call fails. A HashKey with Source HeaderKey is looked up in the
	// metadata of a call, CookieKey in its cookie metadata; SourceIPKey is the peer whose call is being served. QueryKey and
	// generated cookies do not exist for gRPC.
	Config balancer.Config

	// Outlier ejects endpoints. nil means that none is ejected. It gets gRPC statuses as the HTTP statuses that Envoy maps
	// them to: Unavailable is a 503, Internal a 500, NotFound a 404.
	Outlier balancer.Outlier

	// Connections is the number of connections to each endpoint. 0 means 1. More than one helps if servers allow few
	// concurrent streams per connection: a call on a full connection waits, even if others are free.
	Connections int

	mu    sync.Mutex
	live  map[*service]bool
	spare map[string][]*service // those whose ClientConn is idle or closed, by target
}

// DialOptions returns the options that make a grpc.ClientConn use the client. They include grpc.WithNoProxy: endpoints are
// dialled directly, so that their attributes are not lost on the way. The interceptors among them should come before retry
// interceptors: then all tries of a call know about one another and go to different endpoints.
func (c *Client) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithResolvers((*resolvers)(c)),
		grpc.WithDefaultServiceConfig(serviceConfig), // for a ClientConn that does not take one from the resolver
		grpc.WithNoProxy(),
		grpc.WithChainUnaryInterceptor(c.unary),
		grpc.WithChainStreamInterceptor(c.stream),
	}
}

// check returns an error if the client's settings cannot be honoured.
func (c *Client) check() error {
	key := c.Config.HashKey
	switch {
	case c.Resolver == nil:
		return errors.New("balancergrpc: Client has no Resolver")
	case c.Connections < 0:
		return fmt.Errorf("balancergrpc: Connections is %d, want 0 or more", c.Connections)
	case key.Source == balancer.QueryKey:
		return errors.New("balancergrpc: HashKey: a gRPC call has no query")
	case key.Generate:
		return errors.New("balancergrpc: HashKey: a gRPC client keeps no cookies that could be generated")
	}
	return nil
}

// spareTime is how long the state of a service is kept for a ClientConn that is idle or closed: gRPC does not say which.
const spareTime = 24 * time.Hour

// acquire returns the state for a target: the state of a ClientConn that has become idle, or a new one.
func (c *Client) acquire(target resolver.Target) (*service, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forgetLocked(time.Now())
	if c.live == nil {
		c.live, c.spare = map[*service]bool{}, map[string][]*service{}
	}
	name := target.String()
	var s *service
	if spare := c.spare[name]; len(spare) > 0 {
		s, c.spare[name] = spare[len(spare)-1], spare[:len(spare)-1]
	} else {
		var err error
		if s, err = newService(c, name, target.Endpoint()); err != nil {
			return nil, err
		}
	}
	c.live[s] = true
	return s, nil
}

// release keeps the state of a service for when its ClientConn is used again.
func (c *Client) release(s *service) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.live, s)
	s.spareSince = time.Now()
	c.spare[s.target] = append(c.spare[s.target], s)
}

func (c *Client) forgetLocked(now time.Time) {
	for target, spare := range c.spare {
		for len(spare) > 0 && now.Sub(spare[0].spareSince) > spareTime {
			spare = spare[1:]
		}
		if len(spare) == 0 {
			delete(c.spare, target)
		} else {
			c.spare[target] = spare
		}
	}
}

// splitTarget returns the host and the port of a target. The port is 0 if the target has none.
func splitTarget(endpoint string) (host string, port int, err error) {
	host, service, err := net.SplitHostPort(endpoint)
	if err != nil {
		host, service = strings.Trim(endpoint, "[]"), ""
	}
	if service != "" {
		if port, err = strconv.Atoi(service); err != nil || port < 1 || port > 65535 {
			return "", 0, fmt.Errorf("balancergrpc: target %q has no port number", endpoint)
		}
	}
	if host == "" {
		return "", 0, errTarget
	}
	return strings.ToLower(strings.TrimSuffix(host, ".")), port, nil
}

func (c *Client) unary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn,
	invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	call := c.newCall(ctx, true, opts)
	err := invoker(call, method, req, reply, cc, opts...)
	if err != nil && !call.picked.Load() {
		return c.explain(cc, err)
	}
	return err
}

func (c *Client) stream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
	streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	call := c.newCall(ctx, false, opts)
	stream, err := streamer(call, desc, cc, method, opts...)
	if err != nil && !call.picked.Load() {
		return nil, c.explain(cc, err)
	}
	return stream, err
}

// explain returns the error of a call that our picker has not seen. If gRPC uses another balancer, whose own error would
// explain nothing, the error says so.
func (c *Client) explain(cc *grpc.ClientConn, err error) error {
	target := cc.CanonicalTarget()
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := range c.live {
		if s.target == target && s.told.Load() && !s.seen.Load() {
			return grpcstatus.Wrap(codes.Unavailable, errReplaced)
		}
	}
	return err
}
