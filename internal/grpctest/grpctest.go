// Package grpctest has gRPC servers for tests: on the loopback interface for tests that need real sockets, and in memory for tests in a
// synctest bubble.
package grpctest

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/test/bufconn"

	"github.com/nosidecar/mesh/internal/rawtest"
)

// Names of the messages and clients of the service, so that tests need only this package.
type (
	Request  = grpc_testing.SimpleRequest
	Response = grpc_testing.SimpleResponse
	In       = grpc_testing.StreamingOutputCallRequest
	Out      = grpc_testing.StreamingOutputCallResponse
	Upload   = grpc_testing.StreamingInputCallRequest
	Sum      = grpc_testing.StreamingInputCallResponse
	Client   = grpc_testing.TestServiceClient

	Parameters = grpc_testing.ResponseParameters

	BidiServer   = grpc_testing.TestService_FullDuplexCallServer
	OutServer    = grpc_testing.TestService_StreamingOutputCallServer
	UploadServer = grpc_testing.TestService_StreamingInputCallServer
)

// UnaryMethod is the full name of the unary method.
const UnaryMethod = "/grpc.testing.TestService/UnaryCall"

// Service implements grpc.testing.TestService. A method whose function is nil is unimplemented.
type Service struct {
	grpc_testing.UnimplementedTestServiceServer
	Unary  func(context.Context, *Request) (*Response, error)
	Bidi   func(BidiServer) error
	Output func(*In, OutServer) error
	Input  func(UploadServer) error

	// Options are options of the server.
	Options []grpc.ServerOption
}

// UnaryCall implements the service.
func (s *Service) UnaryCall(ctx context.Context, in *Request) (*Response, error) {
	if s.Unary == nil {
		return s.UnimplementedTestServiceServer.UnaryCall(ctx, in)
	}
	return s.Unary(ctx, in)
}

// FullDuplexCall implements the service.
func (s *Service) FullDuplexCall(stream BidiServer) error {
	if s.Bidi == nil {
		return s.UnimplementedTestServiceServer.FullDuplexCall(stream)
	}
	return s.Bidi(stream)
}

// StreamingOutputCall implements the service.
func (s *Service) StreamingOutputCall(in *In, stream OutServer) error {
	if s.Output == nil {
		return s.UnimplementedTestServiceServer.StreamingOutputCall(in, stream)
	}
	return s.Output(in, stream)
}

// StreamingInputCall implements the service.
func (s *Service) StreamingInputCall(stream UploadServer) error {
	if s.Input == nil {
		return s.UnimplementedTestServiceServer.StreamingInputCall(stream)
	}
	return s.Input(stream)
}

// Echo answers with the payload of the request.
func Echo(_ context.Context, in *Request) (*Response, error) {
	return &Response{Payload: in.GetPayload()}, nil
}

// Serve serves s on the loopback interface until the end of the test, and returns the address.
func Serve(t testing.TB, s *Service, opts ...grpc.ServerOption) string {
	t.Helper()
	listener := rawtest.Listen(t)
	ServeOn(t, listener, s, opts...)
	return listener.Addr().String()
}

// ServeOn serves s on a listener until the end of the test.
func ServeOn(t testing.TB, listener net.Listener, s *Service, opts ...grpc.ServerOption) *grpc.Server {
	server := grpc.NewServer(append(opts, s.Options...)...)
	Register(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // ends with Stop
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return server
}

// Register registers s with a server.
func Register(server *grpc.Server, s *Service) {
	grpc_testing.RegisterTestServiceServer(server, s)
}

// Dial returns a connection that is closed at the end of the test.
func Dial(t testing.TB, target string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}, opts...)
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// NewClient returns a client of the service.
func NewClient(conn grpc.ClientConnInterface) Client {
	return grpc_testing.NewTestServiceClient(conn)
}

// Connect serves s in memory and returns a client, for tests in a bubble. stop ends both. It must be called within the bubble.
func Connect(t testing.TB, s *Service, opts ...grpc.DialOption) (client Client, stop func()) {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer(s.Options...)
	grpc_testing.RegisterTestServiceServer(server, s)
	go func() { _ = server.Serve(listener) }()
	opts = append([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
	}, opts...)
	conn, err := grpc.NewClient("passthrough:///memory", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return NewClient(conn), func() {
		conn.Close()
		server.Stop()
	}
}
