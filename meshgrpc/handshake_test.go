package meshgrpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// presenting returns a TLS configuration with the certificate of an account, which verifies nothing.
func presenting(t *testing.T, w *town, account string, protocols ...string) *tls.Config {
	t.Helper()
	id, err := w.Identity("default", account)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{*id.Certificate()}, ClientAuth: tls.RequireAnyClientCert, InsecureSkipVerify: true, NextProtos: protocols,
	}
}

// An endpoint over TLS must choose HTTP/2.
func TestEndpointThatDoesNotChooseHTTP2(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	ln := rawtest.Listen(t)
	rawtest.Serve(t, ln, func(conn net.Conn) { _ = tls.Server(conn, presenting(t, w, "echo")).HandshakeContext(t.Context()) })
	at := meshtest.EndpointOf(t, ln.Addr().String())
	at.ServiceAccount = "echo"
	w.registry.Set("echo", at)
	_, err := unaryCall(bounded(t), grpctest.NewClient(connect(t, w.member(t, "web", strict), "mesh:///echo")))
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), `did not choose "h2"`) {
		t.Errorf("%v, want Unavailable, and why", err)
	}
}

// A client over TLS must have negotiated HTTP/2: the server sends nothing to another.
func TestClientThatDoesNotChooseHTTP2(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	_, at := w.serve(t, w.member(t, "echo", strict), "echo", echoStreams)
	for protocol, served := range map[string]bool{"h2": true, "http/1.1": false, "": false} {
		protocols := slices.DeleteFunc([]string{protocol}, func(p string) bool { return p == "" })
		conn, err := tls.Dial("tcp", fmt.Sprintf("%s:%d", at.Address, at.Port), presenting(t, w, "web", protocols...))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		defer context.AfterFunc(bounded(t), func() { conn.Close() })()
		if n, err := conn.Read(make([]byte, 1)); (n > 0) != served {
			t.Errorf("%q: the client got %d bytes, and %v", protocol, n, err)
		}
	}
}

// A connection over TLS of another listener is closed if mTLS is required and nobody can tell who the peer is.
func TestStrictWithoutIdentity(t *testing.T) {
	leak.Check(t)
	w := newTown(t)
	ln := rawtest.Listen(t)
	m := meshtest.New(t, strict)
	grpctest.ServeOn(t, tls.NewListener(ln, presenting(t, w, "echo", "h2")), whoCalls, meshgrpc.ServerOptions(m)...)
	conn := grpctest.Dial(t, ln.Addr().String(), grpc.WithTransportCredentials(credentials.NewTLS(presenting(t, w, "web"))))
	if _, err := unaryCall(bounded(t), grpctest.NewClient(conn)); status.Code(err) != codes.Unavailable {
		t.Errorf("%v, want Unavailable", err)
	}
	await.True(t, "the connection to be closed", func() bool { return conn.GetState() != connectivity.Ready })
}

// The addresses of a connection are those of its calls, for policies and for observers.
func TestAddressesOfInboundCalls(t *testing.T) {
	leak.Check(t)
	for _, over := range []string{"mTLS", "plaintext", "ServeHTTP"} {
		for _, right := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, right port %t", over, right), func(t *testing.T) {
				w := newTown(t)
				ends := make(chan mesh.Inbound, 1)
				m := w.member(t, "echo", denyAll, mesh.WithObserver(mesh.Observer{
					InboundEnd: func(_ context.Context, in *mesh.Inbound) { ends <- *in },
				}))
				var from string
				service := &grpctest.Service{Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
					p, _ := peer.FromContext(ctx)
					from = p.Addr.String()
					return &grpctest.Response{}, nil
				}}
				var at discovery.Endpoint
				if over == "ServeHTTP" {
					at = meshtest.EndpointOf(t, overServeHTTP(t, m, service))
				} else {
					_, at = w.serve(t, m, "echo", service)
				}
				port := at.Port
				if !right {
					port++
				}
				apply(t, m, strings.Replace(denyAll, "spec: {}", fmt.Sprintf(`spec: {rules: [{to: [{operation: {ports: ["%d"]}}]}]}`, port), 1))
				conn := grpctest.Dial(t, fmt.Sprintf("%s:%d", at.Address, at.Port))
				if over == "mTLS" {
					conn = connect(t, w.member(t, "web", strict), "mesh:///echo")
				}
				want := codes.OK
				if !right {
					want = codes.PermissionDenied
				}
				if _, err := unaryCall(bounded(t), grpctest.NewClient(conn)); status.Code(err) != want {
					t.Fatalf("%v, want %v", err, want)
				}
				r := await.Receive(t, "observers to be told", ends).Request
				if right && r.RemoteAddr != from || r.Proto != "HTTP/2.0" || r.ProtoMajor != 2 || r.Method != "POST" || (r.TLS != nil) != (over == "mTLS") {
					t.Errorf("observers saw a call from %q by %s, %s, with TLS: %t; the handler from %q", r.RemoteAddr, r.Method, r.Proto, r.TLS != nil, from)
				}
			})
		}
	}
}

// settings is a listener whose connections change how the first frame of the server is sent, which is SETTINGS.
type settings struct {
	net.Listener
	send func(to net.Conn, frame []byte) error
}

func (l *settings) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return &settingsConn{Conn: conn, send: l.send}, err
}

type settingsConn struct {
	net.Conn
	send func(to net.Conn, frame []byte) error
	sent bool // used only by the goroutine that writes
}

func (c *settingsConn) Write(p []byte) (int, error) {
	if c.sent {
		return c.Conn.Write(p)
	}
	c.sent = true
	size := 9 + int(binary.BigEndian.Uint32(p)>>8)
	if err := c.send(c.Conn, p[:size]); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p[size:])
	return size + n, err
}

// However the settings of a server arrive, a call for which there is no stream gets a connection of its own.
func TestSettingsOfAServer(t *testing.T) {
	for name, send := range map[string]func(net.Conn, []byte) error{
		"byte by byte": func(to net.Conn, frame []byte) (err error) {
			for i := range frame {
				if err == nil {
					_, err = to.Write(frame[i : i+1])
				}
			}
			return err
		},
		"with many more": func(to net.Conn, frame []byte) error {
			const more = 100
			frame = append(slices.Clone(frame), bytes.Repeat([]byte{0, 0x99, 0, 0, 0, 0}, more)...)
			binary.BigEndian.PutUint16(frame[1:], uint16(len(frame)-9))
			_, err := to.Write(frame)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answer := make(chan struct{})
				network, at, transport := inMemory(t, echoStreams)
				at.Address = "10.0.0.2"
				grpctest.ServeOn(t, &settings{network.Listen(at.ID()), send}, &grpctest.Service{
					Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
						<-answer
						return &grpctest.Response{}, nil
					},
				}, grpc.MaxConcurrentStreams(1))
				client := grpctest.NewClient(connect(t, meshtest.New(t, "", transport, echoAt(at)), "mesh:///echo"))
				var calls sync.WaitGroup
				for range 2 {
					calls.Go(func() {
						if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
							t.Error(err)
						}
					})
					synctest.Wait()
				}
				time.Sleep(time.Minute) // longer than connectTimeout
				if n := network.Dials(); n != 2 {
					t.Errorf("%d connections, want 2", n)
				}
				close(answer)
				calls.Wait()
			})
		})
	}
}

// A handler that waits for a message is told that its caller is gone, with the status of gRPC.
func TestCallerThatIsGoneWhileItsHandlerReceives(t *testing.T) {
	leak.Check(t)
	m := meshtest.New(t, "")
	begun, ended := make(chan struct{}, 1), make(chan error, 1)
	service := &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
		begun <- struct{}{}
		_, err := s.Recv()
		ended <- err
		return err
	}}
	for over, address := range map[string]func() string{
		"grpc.Server": func() string { return grpctest.Serve(t, service, meshgrpc.ServerOptions(m)...) },
		"ServeHTTP":   func() string { return overServeHTTP(t, m, service) },
	} {
		ctx, cancel := context.WithCancel(bounded(t))
		defer cancel()
		if _, err := grpctest.NewClient(grpctest.Dial(t, address())).FullDuplexCall(ctx); err != nil {
			t.Fatal(err)
		}
		await.Receive(t, "the handler to begin", begun)
		cancel()
		if err := await.Receive(t, "the handler to end", ended); status.Code(err) != codes.Canceled {
			t.Errorf("%s: %v, want Canceled", over, err)
		}
	}
}

// What an interceptor makes of a try that the server has reset is the result of the try, and none of the server.
func TestInterceptorThatChangesTheErrorOfATry(t *testing.T) {
	leak.Check(t)
	at := meshtest.EndpointOf(t, grpctest.ServeFrames(t, func(_ int, f *grpctest.Frames, stream uint32) bool {
		f.Reset(stream, 2)
		return true
	}))
	for code, ours := range map[codes.Code]bool{codes.Unavailable: true, codes.NotFound: false} {
		_, conn := one(t, route("    retries: {attempts: 0}\n"), []discovery.Endpoint{at}, grpc.WithChainUnaryInterceptor(
			func(ctx context.Context, method string, in, out any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				_ = invoker(ctx, method, in, out, cc, opts...)
				return status.Error(code, "changed")
			}))
		_, err := unaryCall(bounded(t), grpctest.NewClient(conn))
		var failed *mesh.Error
		if isOurs := errors.As(err, &failed); status.Code(err) != code || !strings.Contains(err.Error(), "changed") || isOurs != ours {
			t.Errorf("%v, an error of the mesh: %t; want %v, %t", err, isOurs, code, ours)
		}
	}
}
