package meshgrpc_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/interop/grpc_testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// TestSoak calls while endpoints, documents and certificates change all the time. See [meshtest.Soak] for what it asserts
// and for MESH_SOAK, which makes it longer.
func TestSoak(t *testing.T) {
	for name, mTLS := range map[string]bool{"plaintext": false, "mTLS": true} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			meshtest.Soak{MTLS: mTLS, Serve: soakServer, Dial: soakClient}.Run(t)
		})
	}
}

func soakServer(m *mesh.Mesh, ln net.Listener) (stop func()) {
	srv := grpc.NewServer(meshgrpc.ServerOptions(m)...)
	grpc_testing.RegisterTestServiceServer(srv, echoStreams)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(m.Listen(ln)) // ends with Stop
	}()
	return func() {
		srv.Stop()
		<-done
	}
}

// soakClient makes unary calls and streams in turn. It replaces its ClientConn after each round, so that connections are closed.
func soakClient(t testing.TB, m *mesh.Mesh) (call func(context.Context) error, hangUp func()) {
	var current atomic.Pointer[grpc.ClientConn]
	open := func() {
		conn, err := grpc.NewClient("mesh:///api", meshgrpc.DialOptions(m)...)
		if err != nil {
			t.Error(err)
			return
		}
		if before := current.Swap(conn); before != nil {
			before.Close()
		}
	}
	open()
	t.Cleanup(func() { current.Load().Close() })
	var n atomic.Int64
	call = func(ctx context.Context) error {
		client := grpctest.NewClient(current.Load())
		said := &grpc_testing.Payload{Body: []byte("hello")}
		if n.Add(1)%2 == 0 {
			reply, err := client.UnaryCall(ctx, &grpctest.Request{Payload: said})
			if err == nil && string(reply.GetPayload().GetBody()) != "hello" {
				err = fmt.Errorf("the reply is %v", reply)
			}
			return err
		}
		stream, err := client.FullDuplexCall(ctx)
		if err != nil {
			return err
		}
		if err := stream.Send(&grpctest.In{Payload: said}); err != nil && err != io.EOF {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		if _, err := stream.Recv(); err != nil {
			return fmt.Errorf("the stream's message: %w", err)
		}
		if _, err := stream.Recv(); err != io.EOF {
			return fmt.Errorf("the stream ended with %w", err)
		}
		return nil
	}
	return call, open
}
