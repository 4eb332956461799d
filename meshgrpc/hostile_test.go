package meshgrpc_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// ask sends one whole call with odd headers to a server, and waits until it has ended.
func ask(t *testing.T, address string, fields ...string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx := bounded(t)
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	c := &oddClient{http2.NewFramer(conn, conn)}
	_ = c.WriteSettings()
	c.begin(1, http2.HeadersFrameParam{EndHeaders: true}, fields...)
	_ = c.WriteData(1, true, make([]byte, 5))
	for {
		frame, err := c.ReadFrame()
		if err != nil {
			if ctx.Err() != nil {
				t.Fatal("the call has not ended")
			}
			return
		}
		switch frame := frame.(type) {
		case *http2.RSTStreamFrame:
			return
		case *http2.HeadersFrame:
			if frame.StreamEnded() {
				return
			}
		case *http2.DataFrame:
			if frame.StreamEnded() {
				return
			}
		}
	}
}

// However a peer writes the head of a call, as gRPC-Web or with another spelling of the path, it does not get past a DENY: gRPC refuses the call, or
// takes it for another method, or the mesh denies it.
func TestOddHeadsOfDeniedCalls(t *testing.T) {
	const path = grpctest.UnaryMethod
	heads := [][]string{
		{"content-type", "application/grpc-web"}, {"content-type", "application/grpc-web+proto"}, {"content-type", "application/grpc-web-text"},
		{"content-type", "application/grpc-web-text+proto"}, {"content-type", "application/grpc+proto"}, {"content-type", "application/grpc+PROTO"},
		{"content-type", "application/grpc; charset=x"}, {"content-type", "application/grpc+proto, application/grpc-web"},
		{"content-type", "application/connect+proto"}, {"content-type", "application/proto", "connect-protocol-version", "1"},
		{"content-type", "application/grpc-web", "x-grpc-web", "1", "te", ""}, {"x-grpc-web", "1"},
		{":path", path[1:]}, {":path", "/" + path}, {":path", path + "/"}, {":path", path + "?x=1"}, {":path", path + "#x"}, {":path", path + ";x"},
		{":path", "/grpc.testing.TestService//UnaryCall"}, {":path", "/grpc.testing.TestService/./UnaryCall"}, {":path", "/x/.." + path},
		{":path", "/grpc.testing.TestService/%55naryCall"}, {":path", "/grpc.testing.TestService%2FUnaryCall"}, {":path", "/grpc.testing.TestService\\UnaryCall"},
		{":path", "/GRPC.testing.TestService/UnaryCall"}, {":path", "/grpc.testing.TestService/UnaryCall\x00"}, {":path", " " + path}, {":path", "http://echo" + path},
		{":method", "GET"}, {":method", "PUT"}, {":method", "post"}, {":method", "CONNECT"}, {":method", "POST", "x-http-method-override", "GET"},
		{":authority", "other"}, {":authority", "", "host", "other"}, {":scheme", "https"},
		{"x-envoy-original-path", "/other"}, {"x-original-url", "/other"}, {"x-forwarded-for", "127.0.0.1"}, {"x-forwarded-client-cert", "URI=spiffe://a/b"},
	}
	plain := []string{"x-plain", "1"}
	denies, allows := meshtest.New(t, deny("UnaryCall")), meshtest.New(t, "")
	for over, serve := range map[string]func(*mesh.Mesh, *grpctest.Service) string{
		"grpc.Server": func(m *mesh.Mesh, s *grpctest.Service) string {
			return grpctest.Serve(t, s, meshgrpc.ServerOptions(m)...)
		},
		"ServeHTTP": func(m *mesh.Mesh, s *grpctest.Service) string { return overServeHTTP(t, m, s) },
	} {
		var served atomic.Int32
		service := &grpctest.Service{Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
			served.Add(1)
			return &grpctest.Response{}, nil
		}}
		if ask(t, serve(allows, service), plain...); served.Swap(0) != 1 {
			t.Fatalf("%s: a plain call did not reach the handler", over)
		}
		address := serve(denies, service)
		for _, head := range append(heads, plain) {
			if ask(t, address, head...); served.Swap(0) != 0 {
				t.Errorf("%s: a denied call with %q reached the handler", over, head)
			}
		}
	}
}

// A caller's metadata arrives as without the mesh, or is refused with the same code.
func TestOddMetadata(t *testing.T) {
	leak.Check(t)
	var got atomic.Pointer[metadata.MD]
	service := &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			got.Store(&md)
			return &grpctest.Response{}, nil
		},
		Output: func(_ *grpctest.In, stream grpctest.OutServer) error {
			md, _ := metadata.FromIncomingContext(stream.Context())
			got.Store(&md)
			return nil
		},
	}
	address := grpctest.Serve(t, service)
	_, ours := one(t, "", []discovery.Endpoint{meshtest.EndpointOf(t, address)})
	behind := grpctest.Dial(t, grpctest.Serve(t, service, meshgrpc.ServerOptions(meshtest.New(t, ""))...))
	bare := grpctest.Dial(t, address)
	for _, pair := range [][2]string{
		{"x-odd-bin", "\x00\xff\n"}, {"x-odd-bin", "!"}, {"x-odd-bin", ""}, {"x-odd-bin", "YQ=="}, {"x-odd-bin", "a,b"}, {"-bin", "\x01"}, {"x-bin-bin", "a"},
		{"x-odd", "a,b"}, {"x-odd", " a "}, {"x-odd", ""}, {"x-odd", "a\nb"}, {"x-odd", "é"}, {"x-odd", "\x7f"}, {"x odd", "a"}, {"x\nodd", "a"}, {"é", "a"}, {"", "a"},
		{"X-Upper", "a"}, {"x_odd", "a"}, {"x.odd", "a"}, {"grpc-odd", "a"}, {"grpc-timeout", "1n"}, {"grpc-status", "0"}, {"grpc-tags-bin", "a"}, {"grpc-trace-bin", "a"},
		{"content-type", "text/html"}, {"te", "gzip"}, {"host", "other"}, {"connection", "x-odd"}, {"user-agent", "odd"}, {"content-length", "7"},
		{"transfer-encoding", "chunked"}, {"cookie", "a=b; c=d"}, {":path", "/other"}, {":odd", "a"}, {"authorization", "Bearer x"},
	} {
		ctx := metadata.NewOutgoingContext(bounded(t), metadata.MD{pair[0]: {pair[1], "second"}})
		call := func(conn *grpc.ClientConn, call func(context.Context, grpctest.Client) (int, error)) (codes.Code, string) {
			got.Store(nil)
			_, err := call(ctx, grpctest.NewClient(conn))
			seen := "nothing"
			if md := got.Load(); md != nil {
				seen = fmt.Sprintf("%q", (*md)[pair[0]])
			}
			return status.Code(err), seen
		}
		for kind, made := range map[string]func(context.Context, grpctest.Client) (int, error){"unary": unaryCall, "stream": streamedCall} {
			want, wantSeen := call(bare, made)
			for through, conn := range map[string]*grpc.ClientConn{"client": ours, "server": behind} {
				if code, seen := call(conn, made); code != want || seen != wantSeen {
					t.Errorf("%s, %s, %q: %v, and the handler got %s; without the mesh %v, %s", through, kind, pair, code, seen, want, wantSeen)
				}
			}
		}
	}
}

// A server that never reads holds a call only as long as its caller waits. Nothing stays behind: each call finds the only slot free.
func TestServerThatNeverReads(t *testing.T) {
	leak.Check(t)
	listener := rawtest.Listen(t)
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { conn.Close() })
			_ = http2.NewFramer(conn, nil).WriteSettings()
		}
	})
	t.Cleanup(func() {
		listener.Close()
		accepting.Wait()
	})
	_, conn := one(t, oneRequest, []discovery.Endpoint{meshtest.EndpointOf(t, listener.Addr().String())})
	client, large := grpctest.NewClient(conn), &grpc_testing.Payload{Body: make([]byte, 1<<20)}
	for range 2 {
		for kind, call := range map[string]func(context.Context) error{
			"unary": func(ctx context.Context) error {
				_, err := client.UnaryCall(ctx, &grpctest.Request{Payload: large})
				return err
			},
			"stream": func(ctx context.Context) error {
				stream, err := client.FullDuplexCall(ctx)
				for err == nil {
					err = stream.Send(&grpctest.In{Payload: large})
				}
				if err == io.EOF {
					_, err = stream.Recv()
				}
				return err
			},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("%s: %v, want DeadlineExceeded", kind, err)
			}
			cancel()
		}
	}
}

// panicky is a load balancer of an application around that of the mesh. Its picker panics once.
type panicky struct{ balancer.Builder }

const panickyName = "panicky_mesh"

var picks atomic.Int32

func init() { balancer.Register(panicky{balancer.Get(meshgrpc.BalancerName)}) }

func (panicky) Name() string { return panickyName }

func (p panicky) Build(cc balancer.ClientConn, opts balancer.BuildOptions) balancer.Balancer {
	return p.Builder.Build(panickyConn{cc}, opts)
}

type panickyConn struct{ balancer.ClientConn }

func (c panickyConn) UpdateState(s balancer.State) {
	s.Picker = panickyPicker{s.Picker}
	c.ClientConn.UpdateState(s)
}

type panickyPicker struct{ balancer.Picker }

func (p panickyPicker) Pick(info balancer.PickInfo) (balancer.PickResult, error) {
	if picks.Add(1) == 1 {
		panic("pick")
	}
	return p.Picker.Pick(info)
}

// A panic of an application's picker reaches the caller, and the next call finds the only slot free.
func TestPanicOfAPicker(t *testing.T) {
	leak.Check(t)
	_, conn := one(t, oneRequest, []discovery.Endpoint{serve(t, echoStreams)},
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"`+panickyName+`":{}}]}`))
	for kind, call := range map[string]func(context.Context, grpctest.Client) (int, error){"unary": unaryCall, "stream": streamedCall} {
		picks.Store(0)
		func() {
			defer func() {
				if p := recover(); p != "pick" {
					t.Errorf("%s: panic %v, want that of the picker", kind, p)
				}
			}()
			_, err := call(bounded(t), grpctest.NewClient(conn))
			t.Errorf("%s: %v, want a panic", kind, err)
		}()
		if _, err := call(bounded(t), grpctest.NewClient(conn)); err != nil {
			t.Errorf("%s: the next call: %v", kind, err)
		}
	}
}
