package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"runtime"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/meshgrpc"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// grpcDocuments are two retries and ejection, as in the documents of a user.
const grpcDocuments = `
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec:
  hosts: [echo]
  http:
  - route: [{destination: {host: echo}}]
    retries: {attempts: 2, retryOn: "unavailable,connect-failure,refused-stream"}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, trafficPolicy: {outlierDetection: {consecutive5xxErrors: 5}}}
`

// grpcSecurity is what security is for a gRPC service.
const grpcSecurity = `
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: echo, namespace: default}
spec:
  selector: {matchLabels: {app: echo}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/default/sa/admin]}}]
  - from: [{source: {principals: [cluster.local/ns/default/sa/web]}}]
    to: [{operation: {methods: [POST], paths: [/grpc.testing.TestService/*]}}]
`

// GRPCCaller is one way to call a gRPC service.
type GRPCCaller struct {
	Name string
	conn *grpc.ClientConn
}

// Unary is a [Worker] that makes unary calls.
func (c *GRPCCaller) Unary(ctx context.Context) (func() error, error) {
	return func() error {
		return c.conn.Invoke(ctx, grpc_testing.TestService_UnaryCall_FullMethodName, &grpc_testing.SimpleRequest{}, &grpc_testing.SimpleResponse{})
	}, nil
}

// Streams is a [Worker] that makes streams of one message in each direction.
func (c *GRPCCaller) Streams(ctx context.Context) (func() error, error) {
	return func() error {
		stream, err := c.open(ctx)
		if err != nil {
			return err
		}
		if err := exchange(stream); err != nil {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		if _, err := stream.Recv(); err != io.EOF {
			return err
		}
		return nil
	}, nil
}

// Messages is a [Worker] that sends messages on one stream, each of which is answered. The stream ends with the context.
func (c *GRPCCaller) Messages(ctx context.Context) (func() error, error) {
	stream, err := c.open(ctx)
	return func() error { return exchange(stream) }, err
}

func (c *GRPCCaller) open(ctx context.Context) (grpc_testing.TestService_FullDuplexCallClient, error) {
	return grpc_testing.NewTestServiceClient(c.conn).FullDuplexCall(ctx)
}

func exchange(stream grpc_testing.TestService_FullDuplexCallClient) error {
	if err := stream.Send(&grpc_testing.StreamingOutputCallRequest{}); err != nil {
		return err
	}
	_, err := stream.Recv()
	return err
}

// echo is the service.
type echo struct {
	grpc_testing.UnimplementedTestServiceServer
}

func (echo) UnaryCall(_ context.Context, in *grpc_testing.SimpleRequest) (*grpc_testing.SimpleResponse, error) {
	return &grpc_testing.SimpleResponse{Payload: in.GetPayload()}, nil
}

func (echo) FullDuplexCall(stream grpc_testing.TestService_FullDuplexCallServer) error {
	for {
		in, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = stream.Send(&grpc_testing.StreamingOutputCallResponse{Payload: in.GetPayload()})
		}
		if err != nil {
			return err
		}
	}
}

// MutualGRPCCallers returns three ways to call a gRPC service with mTLS, in this process with both its ends: with nothing but gRPC; with the
// whole mesh on both ends, with its retries, ejection and authorization; and with nothing but gRPC again, but with as many stream workers
// as a server of the mesh has. closeAll closes them.
func MutualGRPCCallers() (callers []GRPCCaller, closeAll func(), err error) {
	var close closers
	defer func() {
		if err != nil {
			close.all()
		}
	}()
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		return nil, nil, err
	}
	bare, err := bareGRPC(ca, &close, 0)
	if err != nil {
		return nil, nil, err
	}
	meshed, err := meshedGRPC(ca, &close)
	if err != nil {
		return nil, nil, err
	}
	workers, err := bareGRPC(ca, &close, uint32(max(32, 8*runtime.GOMAXPROCS(0))))
	if err != nil {
		return nil, nil, err
	}
	return []GRPCCaller{{"bare gRPC, mTLS", bare}, {"whole mesh on both ends, mTLS", meshed}, {StreamWorkers, workers}}, close.all, nil
}

// StreamWorkers is the name of bare gRPC whose server has stream workers, which it has not by itself.
const StreamWorkers = "bare gRPC, mTLS, stream workers"

func bareGRPC(ca *tlsid.DevCA, close *closers, workers uint32) (*grpc.ClientConn, error) {
	roots := x509.NewCertPool()
	for _, root := range ca.Bundle().X509Authorities() {
		roots.AddCert(root)
	}
	var own [2][]tls.Certificate
	for i, account := range [...]string{"echo", "web"} {
		id, err := ca.Identity("default", account)
		if err != nil {
			return nil, err
		}
		own[i] = []tls.Certificate{*id.Certificate()}
	}
	address, err := close.serveGRPC(func(ln net.Listener) net.Listener { return ln }, grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: own[0], ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	})), grpc.NumStreamWorkers(workers))
	if err != nil {
		return nil, err
	}
	return close.dial(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: own[1], RootCAs: roots,
		InsecureSkipVerify: true, // host names prove nothing here; as in the mesh, the chain is verified instead
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	})))
}

func meshedGRPC(ca *tlsid.DevCA, close *closers) (*grpc.ClientConn, error) {
	var registry discovery.Memory
	member := func(account string) (*mesh.Mesh, error) {
		m, err := mesh.New(context.Background(),
			mesh.WithPolicy(policy.Source{Name: "bench.yaml", Data: []byte(grpcDocuments + grpcSecurity)}),
			mesh.WithDiscovery(&registry), mesh.WithIdentity(ca.Source("default", account)),
			mesh.WithWorkload(policy.Workload{Labels: map[string]string{"app": account}}),
		)
		if err == nil {
			close.add(func() { m.Close() })
		}
		return m, err
	}
	server, err := member("echo")
	if err != nil {
		return nil, err
	}
	address, err := close.serveGRPC(server.Listen, meshgrpc.ServerOptions(server)...)
	if err != nil {
		return nil, err
	}
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	registry.Set("echo", discovery.Endpoint{Address: host, Port: port, ServiceAccount: "echo"})
	client, err := member("web")
	if err != nil {
		return nil, err
	}
	return close.dial("mesh:///echo", meshgrpc.DialOptions(client)...)
}

// serveGRPC starts the service, and returns where it listens.
func (c *closers) serveGRPC(wrap func(net.Listener) net.Listener, opts ...grpc.ServerOption) (address string, err error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	server := grpc.NewServer(opts...)
	grpc_testing.RegisterTestServiceServer(server, echo{})
	go server.Serve(wrap(ln))
	c.add(server.Stop)
	return ln.Addr().String(), nil
}

func (c *closers) dial(target string, opts ...grpc.DialOption) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(target, opts...)
	if err == nil {
		c.add(func() { conn.Close() })
	}
	return conn, err
}
