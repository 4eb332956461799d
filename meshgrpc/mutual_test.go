package meshgrpc_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
)

// careful has what operators configure between services: routes with retries, outlier detection, mTLS, and authorization.
const careful = `
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

// ends are ClientConns to an echo service, all with mTLS: with nothing but gRPC, with the mesh on one end, and on both.
type ends struct{ bare, client, server, both *grpc.ClientConn }

func (e *ends) each() []end {
	return []end{{"bare", e.bare}, {"client", e.client}, {"server", e.server}, {"both ends", e.both}}
}

type end struct {
	name string
	conn *grpc.ClientConn
}

// mutual returns ClientConns with all combinations of ends.
func mutual(t testing.TB) *ends {
	t.Helper()
	w := newTown(t)
	roots := x509.NewCertPool()
	for _, root := range w.Bundle().X509Authorities() {
		roots.AddCert(root)
	}
	certificates := func(account string) []tls.Certificate {
		id, err := w.Identity("default", account)
		if err != nil {
			t.Fatal(err)
		}
		return []tls.Certificate{*id.Certificate()}
	}
	service := &grpctest.Service{Unary: grpctest.Echo, Bidi: echoStreams.Bidi}
	_, through := w.serve(t, w.member(t, "echo", careful), "echo", service)

	ln := rawtest.Listen(t)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: certificates("echo"), ClientCAs: roots, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	grpctest.Register(srv, service)
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	direct := meshtest.EndpointOf(t, ln.Addr().String())
	direct.ServiceAccount = "echo"

	secure := grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		Certificates: certificates("web"), RootCAs: roots,
		InsecureSkipVerify: true, // certificates have no host names; as in the mesh, only the chain is verified
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots})
			return err
		},
	}))
	address := func(e discovery.Endpoint) string { return fmt.Sprintf("%s:%d", e.Address, e.Port) }
	meshed := func(e discovery.Endpoint) *grpc.ClientConn {
		w := &town{DevCA: w.DevCA}
		w.registry.Set("echo", e)
		return connect(t, w.member(t, "web", careful), "mesh:///echo")
	}
	return &ends{
		bare: grpctest.Dial(t, address(direct), secure), server: grpctest.Dial(t, address(through), secure),
		client: meshed(direct), both: meshed(through),
	}
}

// callUnary makes one unary call.
func callUnary(t testing.TB, conn *grpc.ClientConn) {
	if err := conn.Invoke(t.Context(), grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{}); err != nil {
		t.Fatal(err)
	}
}

// callStream makes a stream of one message in each direction.
func callStream(t testing.TB, conn *grpc.ClientConn) {
	stream, err := grpctest.NewClient(conn).FullDuplexCall(t.Context())
	if err == nil {
		err = stream.Send(&grpctest.In{})
	}
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil {
		err = stream.CloseSend()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Fatal(err)
	}
}

// The caller of a stream sees the TLS of its connection as with bare gRPC.
func TestPeerOfAStream(t *testing.T) {
	for _, end := range mutual(t).each() {
		stream, err := grpctest.NewClient(end.conn).FullDuplexCall(t.Context())
		if err == nil {
			err = stream.Send(&grpctest.In{})
		}
		if err == nil {
			_, err = stream.Recv()
		}
		if err != nil {
			t.Fatal(err)
		}
		p, ok := peer.FromContext(stream.Context())
		if !ok {
			t.Fatalf("%s: there is no peer", end.name)
		}
		if info, ok := p.AuthInfo.(credentials.TLSInfo); !ok || len(info.State.PeerCertificates) == 0 {
			t.Errorf("%s: AuthInfo is a %T, want credentials.TLSInfo with a certificate", end.name, p.AuthInfo)
		}
		_ = stream.CloseSend()
		_, _ = stream.Recv()
	}
}

func BenchmarkMutual(b *testing.B) {
	e := mutual(b)
	for _, kind := range []struct {
		name string
		call func(testing.TB, *grpc.ClientConn)
	}{{"unary", callUnary}, {"stream", callStream}} {
		for _, end := range e.each() {
			b.Run(kind.name+"/"+end.name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					kind.call(b, end.conn)
				}
			})
		}
	}
}

// BenchmarkMutualMessage measures one message in each direction of an open stream.
func BenchmarkMutualMessage(b *testing.B) {
	for _, end := range mutual(b).each() {
		b.Run(end.name, func(b *testing.B) {
			stream, err := grpctest.NewClient(end.conn).FullDuplexCall(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			out := &grpctest.In{}
			for b.Loop() {
				if err := stream.Send(out); err != nil {
					b.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					b.Fatal(err)
				}
			}
			_ = stream.CloseSend()
			_, _ = stream.Recv()
		})
	}
}
