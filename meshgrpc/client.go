package meshgrpc

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/engine"
)

// scheme is the scheme of the targets that [DialOptions] resolves, as in "mesh:///order-service:8080".
const scheme = "mesh"

// DialOptions returns the options that take the calls of a grpc.ClientConn through m. The target names a service that documents
// or discovery know: "mesh:///order-service:8080".
//
// Calls do not leave the mesh: a call to a host that neither a document nor discovery knows fails with [mesh.ErrNotInMesh], whether or
// not there is a [mesh.WithRegistryOnly]. A ServiceEntry makes such a host known, and a DestinationRule says whether it is called over TLS.
//
// The mesh finds the endpoints, secures the connections, and retries. So these options include credentials, a dialer and
// [grpc.WithDisableRetry]. If later options replace the credentials, the dialer, or the service config that names the load balancer,
// calls fail with an error that says so; [mesh.WithTransport] takes a dialer. Per-RPC credentials that require transport security fail
// calls to endpoints that the mesh calls in plaintext, with UNAUTHENTICATED. Interceptors that are given before these options see each
// call once; those that are given after them see each try, and so do stats handlers.
//
// Your own service config must name [BalancerName] too, as in {"loadBalancingConfig":[{"nosidecar_mesh":{}}],"methodConfig":[...]}. A
// timeout in it bounds each try, and the wait of a wait-for-ready call. A retryPolicy or a healthCheckConfig has no effect: documents say
// what is retried, and whether an endpoint is healthy is what discovery and the outcomes of calls say.
//
// Several ClientConns may use the same options. The state of endpoints (calls in flight, ejections, circuits, budgets) belongs to
// the mesh, but connections are not shared: in grpc-go a connection belongs to a ClientConn and uses its stats handlers, user agent
// and buffers. maxConnections bounds the connections of all of them together, but each ClientConn always gets one connection to
// an endpoint, whatever the limit is. Close all ClientConns before m.
//
// A connection is made when the first call needs it, within connectTimeout. [grpc.ClientConn.Connect] makes none, so with
// [grpc.WithBlock] a dial would wait forever. An endpoint to which no connection could be made is not dialled again for a while, from
// 100 ms to 10 s. Meanwhile, calls go to another endpoint if there is one. The state of a ClientConn is READY if it has any connection,
// and TRANSIENT_FAILURE if the latest one could not be made.
//
// Routes use [grpc.CallAuthority] as they use the Host header of an HTTP request: it decides which routes apply if a document names
// that host. To set it for all calls, give it as a default call option. The mesh cannot see [grpc.WithAuthority] when it routes a
// call, so calls fail with an error that says so.
func DialOptions(m *mesh.Mesh) []grpc.DialOption {
	c := &client{engine: engine.Of(m.Transport())}
	return []grpc.DialOption{
		grpc.WithResolvers(resolverBuilder{}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"` + BalancerName + `":{}}]}`),
		grpc.WithTransportCredentials(clientCredentials{}),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithDisableRetry(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: noLimit}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}),
		grpc.WithChainUnaryInterceptor(c.unary),
		grpc.WithChainStreamInterceptor(c.stream),
	}
}

// Only a ping detects a peer that has vanished. By default, gRPC servers close connections that ping more often than every 5
// minutes.
const (
	pingAfter   = 6 * time.Minute
	pingTimeout = 20 * time.Second
)

// noLimit is how long gRPC waits for a connection. The mesh does not wait as long.
const noLimit = 365 * 24 * time.Hour

// client is shared by the ClientConns that use the same DialOptions.
type client struct {
	engine *engine.Engine
}
