package meshgrpc

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/engine"
)

// scheme is that of the targets that [DialOptions] resolves, as in "mesh:///order-service:8080".
const scheme = "mesh"

// DialOptions returns the options that take the calls of a grpc.ClientConn through m. The target is a service of the mesh,
// by a name that documents or discovery know: "mesh:///order-service:8080".
//
// The mesh finds the endpoints, secures the connections, and retries. So these options come with credentials and a dialer,
// and with [grpc.WithDisableRetry]. Calls fail with an explanation if later options replace the credentials or the service
// config, which names the load balancer; a service config of your own must name [BalancerName] too. Interceptors that are
// given before these options see each call once, those after them see each try.
//
// The options may serve several ClientConns. What is known of endpoints (calls in flight, ejections, circuits, budgets) is the
// mesh's, but connections are not shared: in grpc-go a connection belongs to a ClientConn, whose stats handlers, user agent
// and buffers it has. maxConnections bounds them all together, except that each ClientConn gets a first connection to an
// endpoint whatever the limit is. To end in order, close ClientConns before m.
//
// Connections are made with the calls that need them, within connectTimeout. [grpc.ClientConn.Connect] makes none. An endpoint
// that cannot be connected to is left alone for a while, from 100 ms up to 10 s; meanwhile calls pass it over if there is another.
// The state of a ClientConn is READY if it has any connection, and TRANSIENT_FAILURE if the latest could not be made.
//
// [grpc.CallAuthority] is to routes what the Host header is over HTTP: it decides if a document names the host. To have it for
// all calls, give it as a default call option: [grpc.WithAuthority] reaches the server, but is known only to gRPC when a call
// is routed.
func DialOptions(m *mesh.Mesh) []grpc.DialOption {
	c := &client{engine: engine.Of(m.Transport())}
	return []grpc.DialOption{
		grpc.WithResolvers(resolverBuilder{}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"` + BalancerName + `":{}}]}`),
		grpc.WithTransportCredentials(clientCredentials{}),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithChainUnaryInterceptor(c.unary),
		grpc.WithChainStreamInterceptor(c.stream),
	}
}

// A peer that vanished is noticed only through a ping. Servers of gRPC close connections that ping them more often than
// every 5 minutes, unless they are told otherwise.
const (
	pingAfter   = 6 * time.Minute
	pingTimeout = 20 * time.Second
)

// client is what the ClientConns of one DialOptions share.
type client struct {
	engine *engine.Engine
}
