package meshgrpc_test

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// bothWays returns two ways to connect to a server: without a mesh, and through one that retries nothing.
func bothWays(t *testing.T, opts ...grpc.DialOption) map[string]func(address string) *grpc.ClientConn {
	return map[string]func(address string) *grpc.ClientConn{
		"bare": func(address string) *grpc.ClientConn { return grpctest.Dial(t, address, opts...) },
		"through the mesh": func(address string) *grpc.ClientConn {
			_, conn := one(t, route("    retries: {attempts: 0}\n"), []discovery.Endpoint{meshtest.EndpointOf(t, address)}, opts...)
			return conn
		},
	}
}

// A server sends GOAWAY while it has a call. The call ends like that of a bare ClientConn, and reaches the server as often.
func TestGoAwayEndsCallsAsWithoutTheMesh(t *testing.T) {
	type answer = func(n int, f *grpctest.Frames, stream uint32) bool
	for _, test := range []struct {
		name   string
		answer answer
		calls  int64 // that the server sees
		code   codes.Code
	}{
		{"and answers", func(_ int, f *grpctest.Frames, stream uint32) bool {
			f.GoAway(stream)
			f.Reply(stream)
			return true
		}, 1, codes.OK},
		{"twice, and answers", func(_ int, f *grpctest.Frames, stream uint32) bool {
			f.GoAway(1<<31 - 1)
			f.GoAway(stream)
			f.Reply(stream)
			return false
		}, 1, codes.OK},
		{"and hangs up", func(_ int, f *grpctest.Frames, stream uint32) bool {
			f.GoAway(stream)
			return false
		}, 1, codes.Unavailable},
		{"for the first call", func(n int, f *grpctest.Frames, stream uint32) bool {
			if n == 1 {
				f.GoAway(stream - 1)
			} else {
				f.Reply(stream)
			}
			return true
		}, 2, codes.OK},
		{"for every call", func(_ int, f *grpctest.Frames, stream uint32) bool {
			f.GoAway(stream - 1)
			return true
		}, 2, codes.Unavailable},
	} {
		for kind, call := range map[string]func(context.Context, grpctest.Client) (int, error){
			"unary": unaryCall, "upload": uploadedCall, "stream": streamedCall,
		} {
			t.Run(test.name+", "+kind, func(t *testing.T) {
				leak.Check(t)
				for name, dial := range bothWays(t) {
					var calls atomic.Int64
					conn := dial(grpctest.ServeFrames(t, func(n int, f *grpctest.Frames, stream uint32) bool {
						calls.Add(1)
						return test.answer(n, f, stream)
					}))
					_, err := call(bounded(t), grpctest.NewClient(conn))
					if status.Code(err) != test.code || calls.Load() != test.calls {
						t.Errorf("%s: %v after the server got the call %d times, want %v after %d", name, err, calls.Load(), test.code, test.calls)
					}
				}
			})
		}
	}
}

// A server stops while it has calls, gracefully or not. They end like those of a bare ClientConn, and so does the next call.
func TestServerThatStopsEndsCallsAsWithoutTheMesh(t *testing.T) {
	for _, test := range []struct {
		name string
		stop func(*grpc.Server)
		code codes.Code
	}{
		{"GracefulStop", (*grpc.Server).GracefulStop, codes.OK},
		{"Stop", (*grpc.Server).Stop, codes.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			for name, dial := range bothWays(t) {
				arrived, release := make(chan struct{}, 2), make(chan struct{})
				block := func(ctx context.Context) error {
					arrived <- struct{}{}
					select {
					case <-release:
						return nil
					case <-ctx.Done():
						return ctx.Err()
					}
				}
				ln := rawtest.Listen(t)
				server := grpctest.ServeOn(t, ln, &grpctest.Service{
					Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
						return &grpctest.Response{}, block(ctx)
					},
					Bidi: func(s grpctest.BidiServer) error { return block(s.Context()) },
				})
				client := grpctest.NewClient(dial(ln.Addr().String()))
				ended := make(chan error, 2)
				go func() {
					_, err := unaryCall(bounded(t), client)
					ended <- err
				}()
				go func() {
					stream, err := client.FullDuplexCall(bounded(t))
					if err == nil {
						_, err = stream.Recv()
					}
					if err == io.EOF {
						err = nil
					}
					ended <- err
				}()
				<-arrived
				<-arrived
				stopped := make(chan struct{})
				go func() {
					defer close(stopped)
					test.stop(server)
				}()
				if test.code == codes.OK {
					close(release)
				}
				for range 2 {
					if err := <-ended; status.Code(err) != test.code {
						t.Errorf("%s: a call ended with %v, want %v", name, err, test.code)
					}
				}
				<-stopped
				if _, err := unaryCall(bounded(t), client); status.Code(err) != codes.Unavailable {
					t.Errorf("%s: the next call ended with %v, want Unavailable", name, err)
				}
			}
		})
	}
}

// A server stops gracefully, and another one takes its place, again and again. Streams that wait for it do not fail, with the mesh at no end, at
// one end, or at both.
func TestServersThatAreReplacedFailNoStream(t *testing.T) {
	const quick = time.Millisecond
	opts := []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{BaseDelay: quick, Multiplier: 1, MaxDelay: quick}, MinConnectTimeout: time.Minute,
		}),
	}
	for _, test := range []struct {
		name         string
		client, both bool
	}{{"bare", false, false}, {"client", true, false}, {"both ends", true, true}} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			network, w := new(memnet.Network), newTown(t)
			at := discovery.Endpoint{Address: "10.0.0.1", Port: 80}
			listen, serverOpts := network.Listen, []grpc.ServerOption(nil)
			if test.both {
				at.ServiceAccount = "echo"
				m := w.member(t, "echo", strict)
				listen = func(address string) net.Listener { return m.Listen(network.Listen(address)) }
				serverOpts = meshgrpc.ServerOptions(m)
			}
			const streams, each = 1600, 200 // streams per server
			enough := make(chan struct{}, streams)
			serve := func() (stop func()) {
				var begun atomic.Int64
				echo := func(s grpctest.BidiServer) error {
					if begun.Add(1) == each {
						enough <- struct{}{}
					}
					return grpctest.EchoStream(s)
				}
				server, ln, served := grpc.NewServer(serverOpts...), listen(at.ID()), make(chan struct{})
				grpctest.Register(server, &grpctest.Service{Bidi: echo})
				go func() {
					defer close(served)
					_ = server.Serve(ln)
				}()
				return func() {
					server.GracefulStop()
					<-served
				}
			}
			var conn *grpc.ClientConn
			if test.client {
				w.registry.Set("echo", at)
				documents := route("    retries: {attempts: 0}\n")
				if test.both {
					documents += "---" + strict
				}
				m := w.member(t, "web", documents, mesh.WithTransport(&http.Transport{DialContext: network.DialContext}))
				conn = connect(t, m, "mesh:///echo", opts...)
			} else {
				conn = grpctest.Dial(t, "passthrough:///"+at.ID(), append(opts, grpc.WithContextDialer(
					func(ctx context.Context, address string) (net.Conn, error) {
						return network.DialContext(ctx, "tcp", address)
					}))...)
			}

			stop := serve()
			done := make(chan struct{})
			var replacing sync.WaitGroup
			replacing.Go(func() {
				for {
					select {
					case <-done:
						return
					case <-enough:
						stop()
						stop = serve()
					}
				}
			})
			ends := grpctest.Streams(t, conn, streams)
			close(done)
			replacing.Wait()
			conn.Close()
			stop()
			if want := map[codes.Code]int{codes.OK: streams}; !maps.Equal(ends.Codes(), want) || ends.False > 0 {
				t.Errorf("streams ended with %v, and %d of them with io.EOF before the first message", ends.Codes(), ends.False)
			}
		})
	}
}

// A call over a ClientConn that was closed fails as without the mesh.
func TestCallOverAClosedClientConn(t *testing.T) {
	leak.Check(t)
	address := grpctest.Serve(t, echoStreams)
	for _, used := range []bool{false, true} {
		for name, dial := range bothWays(t) {
			conn := dial(address)
			client := grpctest.NewClient(conn)
			if used {
				if _, err := unaryCall(t.Context(), client); err != nil {
					t.Fatal(err)
				}
			}
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			_, unary := unaryCall(t.Context(), client)
			_, stream := streamedCall(t.Context(), client)
			for _, err := range []error{unary, stream} {
				//lint:ignore SA1019 there is no other error for it
				if status.Code(err) != codes.Canceled || !errors.Is(err, grpc.ErrClientConnClosing) {
					t.Errorf("%s: %v, want grpc.ErrClientConnClosing", name, err)
				}
			}
		}
	}
}
