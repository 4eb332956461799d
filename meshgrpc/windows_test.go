package meshgrpc_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// Windows that a program sets beside the options of the mesh are in force at both ends. Then gRPC does not measure the connection with pings.
func TestStaticWindows(t *testing.T) {
	const stream, conn = 1 << 20, 4 << 20
	for name, static := range map[string]bool{"gRPC's defaults": false, "static": true} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			var dials []grpc.DialOption
			var serves []grpc.ServerOption
			if static {
				dials = []grpc.DialOption{grpc.WithStaticStreamWindowSize(stream), grpc.WithStaticConnWindowSize(conn)}
				serves = []grpc.ServerOption{grpc.StaticStreamWindowSize(stream), grpc.StaticConnWindowSize(conn)}
			}
			listener := rawtest.Listen(t)
			watched := &watchedListener{Listener: listener}
			server := grpctest.ServeOn(t, watched, &grpctest.Service{Unary: grpctest.Echo},
				append(meshgrpc.ServerOptions(meshtest.New(t, "")), serves...)...)
			var registry discovery.Memory
			registry.Set("echo", meshtest.EndpointOf(t, listener.Addr().String()))
			cc := connect(t, meshtest.New(t, "", mesh.WithDiscovery(&registry)), "mesh:///echo", dials...)
			for range 3 {
				if _, err := grpctest.NewClient(cc).UnaryCall(bounded(t), &grpctest.Request{}); err != nil {
					t.Fatal(err)
				}
			}
			cc.Close()
			server.Stop()
			watched.mu.Lock()
			defer watched.mu.Unlock()
			for from, data := range map[string][]byte{
				"client": bytes.TrimPrefix(watched.received.Bytes(), []byte(http2.ClientPreface)), "server": watched.sent.Bytes(),
			} {
				if window, pings := windowOf(data); (window == stream) != static || (pings == 0) != static {
					t.Errorf("the %s has announced a window of %d, and has sent %d pings", from, window, pings)
				}
			}
		})
	}
}

// windowOf returns the window of streams that the first settings in data announce, 0 for none, and how many pings are not answers.
func windowOf(data []byte) (window uint32, pings int) {
	framer := http2.NewFramer(io.Discard, bytes.NewReader(data))
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			return window, pings
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if value, ok := frame.Value(http2.SettingInitialWindowSize); ok && window == 0 {
				window = value
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				pings++
			}
		}
	}
}

// watchedListener keeps what its connection receives and sends.
type watchedListener struct {
	net.Listener
	mu             sync.Mutex
	received, sent bytes.Buffer
}

func (l *watchedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{conn, l}, nil
}

func (l *watchedListener) keep(in *bytes.Buffer, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	in.Write(data)
}

type watchedConn struct {
	net.Conn
	listener *watchedListener
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.listener.keep(&c.listener.received, p[:n])
	return n, err
}

func (c *watchedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.listener.keep(&c.listener.sent, p[:n])
	return n, err
}
