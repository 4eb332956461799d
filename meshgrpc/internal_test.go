package meshgrpc

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"runtime"
	"sync"
	"testing"
	"unsafe"
	"weak"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/admission"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/tlsid"
)

// groupsOf is an option that records the groups of connections that calls use.
func groupsOf(groups *sync.Map) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, in, out any, cc *grpc.ClientConn,
		invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		t := ctx.Value(tryKey{}).(*try)
		err := invoker(ctx, method, in, out, cc, opts...)
		if t.conn != nil {
			groups.Store(t.conn.group, true)
		}
		return err
	})
}

// used returns the group of connections of a ClientConn that has made one call.
func used(t *testing.T) *group {
	t.Helper()
	_, endpoints := loopback(t, 1)
	var groups sync.Map
	conn := through(t, endpoints, mesh.Observer{}, groupsOf(&groups))
	if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	for g := range groups.Range {
		return g.(*group)
	}
	t.Fatal("the call used no group")
	return nil
}

func (g *group) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.all)
}

// dial makes no connection if one has become ready since the call looked.
func TestDialWhereReady(t *testing.T) {
	g := used(t)
	if c, err := g.dial(nil); c != nil || err != nil || g.size() != 1 {
		t.Errorf("dial = %v, %v, and there are %d connections; want none, and 1", c != nil, err, g.size())
	}
}

// dial makes no additional connection if one with room has become ready since the call looked.
func TestDialWhereThereIsRoom(t *testing.T) {
	g := used(t)
	full, _ := g.pick()
	full.streams.Store(1)
	defer full.release()
	full.Enter() // one call too many
	defer full.release()
	second, err := g.dial(full)
	if err != nil || second == nil {
		t.Fatalf("dial = %v, %v; want a connection", second != nil, err)
	}
	await.True(t, "the second connection to be ready", func() bool {
		c, _ := g.pick()
		if c != nil {
			c.release()
		}
		return c == second
	})
	if c, err := g.dial(full); c != nil || err != errRoom || g.size() != 2 {
		t.Errorf("dial = %v, %v, and there are %d connections; want none, %v, and 2", c != nil, err, g.size(), errRoom)
	}
	second.streams.Store(1)
	second.Enter()
	defer second.release()
	if c, err := g.dial(full); c == nil || err != nil || g.size() != 3 {
		t.Errorf("dial = %v, %v, and there are %d connections; want one, and 3", c != nil, err, g.size())
	}
}

// A connection that may serve no more calls is closed when its last call ends, even if only a later pick notices that.
func TestRetiredConnectionCloses(t *testing.T) {
	g := used(t)
	g.limits.calls = 1
	c, _ := g.pick()
	c.served.Store(1)
	last, _ := g.pick() // c may serve no more calls
	if last == c || c.Enter() != 0 {
		t.Error("a connection was picked that takes no more calls")
	}
	if n := g.size(); n != 1 {
		t.Errorf("%d connections while a call goes on, want 1", n)
	}
	c.release()
	if n := g.size(); n != 0 {
		t.Errorf("%d connections are left, want none", n)
	}
}

// A link does not keep a group whose ClientConn closed it before it was watched.
func TestWatchClosed(t *testing.T) {
	tries, _ := picks(t, 1)
	link := tries[0].link
	g := &group{owner: new(connections), link: link}
	g.close()
	g.watch()
	kept := weak.Make(g)
	g = nil
	runtime.GC()
	if kept.Value() != nil {
		t.Error("the group is kept")
	}
	runtime.KeepAlive(link)
}

// A link knows the group of one ClientConn. Other ClientConns find their own groups elsewhere, and take its place when it is closed. A
// closed group is not kept.
func TestGroupsOfSeveralClientConns(t *testing.T) {
	_, endpoints := loopback(t, 1)
	var registry discovery.Memory
	registry.Set("echo", endpoints...)
	m, err := mesh.New(t.Context(), mesh.WithDiscovery(&registry))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	use := func() (conn *grpc.ClientConn, used func() *group) {
		var groups sync.Map
		conn, err := grpc.NewClient("mesh:///echo", append(DialOptions(m), groupsOf(&groups))...)
		if err != nil {
			t.Fatal(err)
		}
		return conn, func() (g *group) {
			t.Helper()
			groups.Clear()
			if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
				t.Fatal(err)
			}
			for key := range groups.Range {
				g = key.(*group)
			}
			return g
		}
	}
	first, firstUsed := use()
	defer first.Close()
	second, secondUsed := use()
	defer second.Close()
	for range 2 { // the groups are made first, and then found
		if a, b := firstUsed(), secondUsed(); a.owner == b.owner || a.link != b.link || a.link.Kept.Load() != any(a) && a.link.Kept.Load() != nil {
			t.Fatalf("groups %p of %p and %p of %p with one link: %v", a, a.owner, b, b.owner, a.link == b.link)
		}
	}
	first.Close()
	own := secondUsed()
	if own.link.Kept.Load() != any(own) {
		t.Error("the place of a closed ClientConn was not taken")
	}
	second.Close()
	if own.link.Kept.Load() != any((*group)(nil)) {
		t.Error("a closed ClientConn is kept with the link")
	}
}

// Handlers do not see metadata that a peer may not assert, whether or not gRPC shows them the changes that a tap makes.
func TestTapMayGetCopyOfMetadata(t *testing.T) {
	m, err := mesh.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, header := range []func(metadata.MD) metadata.MD{
		func(md metadata.MD) metadata.MD { return md },
		func(md metadata.MD) metadata.MD { return md.Copy() },
		func(md metadata.MD) metadata.MD { return nil }, // no tap
	} {
		s := &server{gate: m.Handler(http.NotFoundHandler()).(admission.Gate)}
		for range 2 {
			md := metadata.Pairs("x-envoy-internal", "true", "x-mine", "1")
			ctx, in, err := s.admit(metadata.NewIncomingContext(t.Context(), md), "/a/b", header(md))
			if err != nil {
				t.Fatal(err)
			}
			seen, _ := metadata.FromIncomingContext(ctx)
			if len(seen) != 1 || seen["x-mine"] == nil {
				t.Errorf("the handler sees %v", seen)
			}
			in.abandon()
		}
	}
}

// waiting returns a function that admits a call without a message. Its peer says how long it waits, in milliseconds.
func waiting(t *testing.T, config mesh.ServerConfig) (admit func(ctx context.Context, ms string) (context.Context, error)) {
	t.Helper()
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.New(t.Context(), mesh.WithIdentity(ca.Source("default", "payment")), mesh.WithServer(config))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	caller, err := ca.Identity("default", "order")
	if err != nil {
		t.Fatal(err)
	}
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{caller.Certificate().Leaf}}
	from := &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}}
	s := &server{gate: m.Handler(http.NotFoundHandler()).(admission.Gate)}
	return func(ctx context.Context, ms string) (context.Context, error) {
		md := metadata.Pairs("x-envoy-expected-rq-timeout-ms", ms)
		ctx, err := s.tap(metadata.NewIncomingContext(peer.NewContext(ctx, from), md), &tap.Info{FullMethodName: "/a/b", Header: md})
		if err != nil {
			return nil, err
		}
		if _, limited := ctx.Deadline(); !limited {
			t.Error("the time of the caller was not heard")
		}
		ctx.Done() // as gRPC asks for it
		return ctx, nil
	}
}

// A call whose peer says how long it waits is not kept in memory once it is over, even if no handler has run.
func TestCallWithoutAMessageIsForgottenOnceItIsOver(t *testing.T) {
	admit := waiting(t, mesh.ServerConfig{})
	type key struct{}
	ctx, end := context.WithCancel(t.Context())
	const calls = 100
	var held [calls]weak.Pointer[[1 << 10]byte]
	for i := range held {
		value := new([1 << 10]byte)
		if _, err := admit(context.WithValue(ctx, key{}, value), "86400000"); err != nil {
			t.Fatal(err)
		}
		held[i] = weak.Make(value)
	}
	end()
	// The runtime may keep timers that were stopped, as long as they are few among those that it has.
	await.True(t, "memory of most calls to be free", func() bool {
		runtime.GC()
		free := 0
		for _, p := range held {
			if p.Value() == nil {
				free++
			}
		}
		return free > calls/2
	})
}

// A call whose time is up before its message comes makes room for others, even though gRPC does not end it.
func TestCallWithoutAMessageMakesRoomWhenItsTimeIsUp(t *testing.T) {
	admit := waiting(t, mesh.ServerConfig{MaxRequests: 1})
	ctx, err := admit(t.Context(), "1")
	if err != nil {
		t.Fatal(err)
	}
	await.True(t, "room for another call", func() bool {
		ctx, err := admit(t.Context(), "86400000")
		if err == nil {
			ctx.Value(inboundKey{}).(*inbound).abandon()
		}
		return err == nil
	})
	if _, _, err := new(server).take(ctx, "/a/b"); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a handler that begins then gets %v, want DeadlineExceeded", err)
	}
}

// gRPC does not close a connection if it cannot write its first frame. The connection is forgotten all the same, as one that is closed.
func TestConnectionThatEndsIsForgotten(t *testing.T) {
	for name, end := range map[string]func(t *testing.T, conn net.Conn){
		"it cannot be written to": func(t *testing.T, conn net.Conn) {
			if _, err := conn.Write([]byte("settings")); err == nil {
				t.Fatal("the peer is gone, but something was written")
			}
		},
		"it is closed": func(_ *testing.T, conn net.Conn) { conn.Close() },
	} {
		t.Run(name, func(t *testing.T) { testForgotten(t, end) })
	}
}

func testForgotten(t *testing.T, end func(t *testing.T, conn net.Conn)) {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	id, err := ca.Identity("default", "web")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{*id.Certificate()}, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		ClientAuth: tls.RequireAnyClientCert}
	near, far := net.Pipe()
	secure, peer := tls.Server(near, config), tls.Client(far, config)
	handshake := make(chan error, 1)
	go func() {
		handshake <- peer.Handshake()
		far.Close()
	}()
	m, err := mesh.New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	s := &server{gate: m.Handler(http.NotFoundHandler()).(admission.Gate)}
	conn, _, err := serverCredentials{server: s}.ServerHandshake(secure)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-handshake; err != nil {
		t.Fatal(err)
	}
	state := secure.ConnectionState()
	if s.connOf(&state) == nil {
		t.Fatal("the connection is not known")
	}
	end(t, conn)
	near.Close()
	if s.connOf(&state) != nil {
		t.Error("the connection is kept")
	}
}

// The authority that gRPC makes of a target without a host is not one of grpc.WithAuthority.
func TestAuthorityOfATargetWithoutAHost(t *testing.T) {
	target := resolver.Target{URL: url.URL{Scheme: scheme, Path: "/:80"}}
	for authority, refused := range map[string]bool{"localhost:80": false, "closed.example.com": true, "localhost%zz:80": true, "local%68ost:80": true} {
		if err := checkAuthority(balancer.BuildOptions{Target: target, Authority: authority}); (err != nil) != refused {
			t.Errorf("the authority %q: %v, refused should be %v", authority, err, refused)
		}
	}
}

// What is allocated for each call fits a size class of Go's allocator, with the word that this adds to objects over 512 bytes. Another word
// could cost 128 bytes per call.
func TestSizes(t *testing.T) {
	for _, test := range []struct {
		name       string
		size, most uintptr
	}{
		{"unary call", unsafe.Sizeof(unary{}), 768 - 8}, // reused, unless it is observed
		{"stream", unsafe.Sizeof(stream{}), 1280 - 8},
		{"inbound call", unsafe.Sizeof(inbound{}), 192},
	} {
		if test.size > test.most {
			t.Errorf("%s: %d bytes, want at most %d", test.name, test.size, test.most)
		}
	}
}
