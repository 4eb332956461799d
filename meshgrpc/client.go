package meshgrpc

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/engine/enginehttp"
)

// Scheme is the scheme of the targets that [DialOptions] resolves, as in "mesh:///order-service:8080".
const Scheme = "mesh"

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
func DialOptions(m *mesh.Mesh) []grpc.DialOption {
	c := &client{}
	c.transport = enginehttp.Through(engine.Of(m.Transport()), c.send)
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
	transport http.RoundTripper // the mesh
	links     sync.Map          // *engine.Connections to *membership
}

// sender is a call on its way through the mesh. The context of its request leads to it.
type sender interface {
	// attempt makes one try.
	attempt(req *http.Request, mt *enginehttp.Try) (*http.Response, error)
}

type senderKey struct{}

// send is the enginehttp.Sender.
func (c *client) send(req *http.Request, mt *enginehttp.Try) (*http.Response, error) {
	return req.Context().Value(senderKey{}).(sender).attempt(req, mt)
}

// call is what unary calls and streams have in common.
type call struct {
	context.Context // the caller's
	client          *client
	method          string
	cc              *grpc.ClientConn
	options

	url    url.URL
	header http.Header // of the request, as it enters the mesh
}

// request returns the call as the mesh sees it. ctx leads to the caller.
func (c *call) request(ctx context.Context) *http.Request {
	c.url = url.URL{Scheme: "http", Host: authority(c.cc), Path: c.method}
	c.header = requestHeader(c.Context, c.contentType())
	req := http.Request{
		Method: http.MethodPost, URL: &c.url, Host: c.authority, Header: c.header,
		Proto: "HTTP/2.0", ProtoMajor: 2,
	}
	return req.WithContext(ctx)
}

// roundTrip takes the call through the mesh: once, unless it is to wait until it can be sent.
func (c *call) roundTrip(req *http.Request) (*http.Response, error) {
	for n := 0; ; n++ {
		resp, err := c.client.transport.RoundTrip(req)
		if err == nil || !c.waits || !unready(err) {
			return resp, err
		}
		if cause := sleep(c.Context, patience(n)); cause != nil {
			return nil, &neverReady{cause: cause, last: err}
		}
		if req.GetBody != nil {
			req.GetBody = mirrored
		}
	}
}

// mirrored is in the place of the message of a call that is made anew, for copies that were sent when it was made first.
func mirrored() (io.ReadCloser, error) {
	return nil, errMirrored
}

// patience is how long a wait-for-ready call waits after it could not be sent for the n-th time, counted from 0.
func patience(n int) time.Duration {
	return min(50*time.Millisecond<<min(n, 5), time.Second)
}

// sleep waits, and returns the cause if ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
