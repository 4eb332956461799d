package grpctest

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// OrphanedStream tests that a stream behind the options succeeds although its first connection is lost before the stream is sent, with its
// messages still in memory. gRPC sends such a stream once more.
func OrphanedStream(t *testing.T, options ...grpc.DialOption) {
	t.Helper()
	address := Serve(t, &Service{Unary: Echo, Bidi: EchoStream})
	stuck := &stuckConn{writing: make(chan struct{}, 1), lost: make(chan struct{})}
	connections := 0
	cc := Dial(t, address, append(options, grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", address)
		if connections++; connections > 1 || err != nil {
			return conn, err
		}
		stuck.Conn = conn
		return stuck, nil
	}))...)
	client := NewClient(cc)
	if _, err := client.UnaryCall(t.Context(), &Request{}); err != nil {
		t.Fatal(err)
	}

	stuck.holds.Store(true)
	other := make(chan struct{}) // occupies the goroutine of gRPC that writes
	go func() {
		defer close(other)
		_, _ = client.UnaryCall(t.Context(), &Request{})
	}()
	<-stuck.writing
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&In{Payload: Large('a')}); err != nil {
		t.Fatal(err)
	}
	stuck.Close()
	cc.WaitForStateChange(t.Context(), connectivity.Ready) // until gRPC would use the connection no more
	close(stuck.lost)
	<-other

	for _, first := range []byte("ab") {
		got, err := stream.Recv()
		if err != nil || got.GetPayload().GetBody()[0] != first {
			t.Fatalf("the stream was not sent again: %v", err)
		}
		if err := stream.Send(&In{Payload: Large(first + 1)}); err != nil {
			t.Fatal(err)
		}
	}
	if connections != 2 {
		t.Errorf("%d connections, want 2", connections)
	}
}

// stuckConn is a connection on which writes get stuck, once holds is set, until it is lost.
type stuckConn struct {
	net.Conn
	holds   atomic.Bool
	writing chan struct{} // a write is stuck
	lost    chan struct{}
}

func (c *stuckConn) Write(p []byte) (int, error) {
	if !c.holds.Load() {
		return c.Conn.Write(p)
	}
	select {
	case c.writing <- struct{}{}:
	default:
	}
	<-c.lost
	return 0, errors.New("the connection was lost")
}
