package mesh_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy"
)

// conns has the raw connections that observers are told of: once when they begin, and once when they are over.
type conns struct{ begun, over chan *mesh.Conn }

func newConns() conns { return conns{make(chan *mesh.Conn, 10), make(chan *mesh.Conn, 10)} }

func (c conns) observer() mesh.Option {
	return mesh.WithObserver(mesh.Observer{
		ConnStart: func(conn *mesh.Conn) { c.begun <- conn },
		ConnEnd:   func(conn *mesh.Conn) { c.over <- conn },
	})
}

// echoTCP serves raw connections: each is sent back what it sends until it half-closes. It returns the endpoint.
func echoTCP(t *testing.T, listen func(net.Listener) net.Listener) discovery.Endpoint {
	t.Helper()
	ln := rawtest.Listen(t)
	rawtest.Serve(t, listen(ln), rawtest.Echo)
	return endpointOf(t, ln.Addr().String())
}

// say sends text, half-closes, and returns what comes back.
func say(t *testing.T, c net.Conn, text string) string {
	t.Helper()
	io.WriteString(c, text)
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
	back, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(back)
}

// Observers on both sides learn of a raw connection, its peer and its byte counts, even while it is open.
func TestObserversOfConnections(t *testing.T) {
	noLeaks(t)
	w, caller, callee := newTown(t), newConns(), newConns()
	server := w.member(t, "payment-service", strict, callee.observer())
	e := echoTCP(t, server.ListenTCP)
	e.ServiceAccount = "payment-service"
	w.registry.Set("payment-service", e)
	client := w.member(t, "order-service", strict, caller.observer())

	c, err := client.DialContext(t.Context(), "tcp", "payment-service:9000")
	if err != nil {
		t.Fatal(err)
	}
	if _, secure := c.(interface{ NetConn() net.Conn }).NetConn().(*tls.Conn); !secure {
		t.Error("NetConn does not return the connection with TLS")
	}
	io.WriteString(c, "abc")
	buf := make([]byte, 3)
	if _, err := io.ReadFull(c, buf); err != nil || string(buf) != "abc" {
		t.Fatalf("%q, %v", buf, err)
	}
	out, in := <-caller.begun, <-callee.begun
	if sent, received := out.Bytes(); sent != 3 || received != 3 {
		t.Errorf("of the open connection: %d bytes sent and %d received", sent, received)
	}
	if back := say(t, c, "defg"); back != "defg" {
		t.Errorf("%q came back", back)
	}
	c.Close()
	c.Close()
	if <-caller.over != out || <-callee.over != in {
		t.Fatal("the ends are those of other connections")
	}
	const id = "spiffe://cluster.local/ns/default/sa/"
	if out.Inbound || out.Outside || out.Target.Host != "payment-service.default.svc.cluster.local" || out.Target.Port != 9000 ||
		out.Endpoint == nil || out.Endpoint.ServiceAccount != "payment-service" || out.PeerID != id+"payment-service" {
		t.Errorf("outbound: %+v, endpoint %v, peer %q", out.Target, out.Endpoint, out.PeerID)
	}
	if !in.Inbound || in.Endpoint != nil || in.PeerID != id+"order-service" {
		t.Errorf("inbound: endpoint %v, peer %q", in.Endpoint, in.PeerID)
	}
	if out.Local.String() != in.Remote.String() || out.Remote.String() != in.Local.String() {
		t.Errorf("%v to %v, and %v to %v", out.Local, out.Remote, in.Remote, in.Local)
	}
	for _, conn := range []*mesh.Conn{out, in} {
		if sent, received := conn.Bytes(); sent != 7 || received != 7 || conn.Err != nil || conn.Flags != 0 || conn.Duration <= 0 {
			t.Errorf("inbound %v: %d bytes sent and %d received in %v, %v [%v]", conn.Inbound, sent, received, conn.Duration, conn.Err, conn.Flags)
		}
	}
	select {
	case <-caller.over:
		t.Error("the end was told twice")
	default:
	}
}

// A connection that cannot be made is told of too, and one to a host outside the mesh.
func TestObserversOfConnectionsThatFail(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	registry.Set("db", meshtest.Refusing(t))
	seen := newConns()
	m := newMesh(t, "", mesh.WithDiscovery(&registry), seen.observer())
	_, err := m.DialContext(t.Context(), "tcp", "db:5432")
	begun, over := <-seen.begun, <-seen.over
	if err == nil || begun != over || !errors.Is(over.Err, err) || over.Flags != mesh.FlagConnectFailure || over.Endpoint == nil || over.Local != nil {
		t.Errorf("%v: %+v [%v]", err, over.Err, over.Flags)
	}

	out := echoTCP(t, func(l net.Listener) net.Listener { return l })
	c, err := m.DialContext(t.Context(), "tcp", addressOf(out))
	if err != nil {
		t.Fatal(err)
	}
	if back := say(t, c, "hello"); back != "hello" {
		t.Errorf("%q came back", back)
	}
	c.Close()
	<-seen.begun
	if over = <-seen.over; !over.Outside || over.Endpoint != nil || over.Err != nil || over.Target.Host == "" {
		t.Errorf("outside %v, endpoint %v, %v to %v", over.Outside, over.Endpoint, over.Err, over.Target)
	}
	if _, err := m.DialContext(t.Context(), "udp", "db:53"); err == nil || len(seen.begun) > 0 {
		t.Errorf("a dial that makes no sense: %v, and observers are told of %d connections", err, len(seen.begun))
	}
}

// If an observer panics when a connection begins, nobody gets the connection, so it is closed.
func TestConnectionWhoseObserverPanics(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	m := newMesh(t, "", mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{ConnStart: func(*mesh.Conn) { panic("observer") }}))
	panics := func(f func()) {
		defer func() {
			if recover() == nil {
				t.Error("the panic of the observer did not pass through")
			}
		}()
		f()
	}
	gone := func(conn net.Conn) {
		if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
			t.Errorf("read %d bytes, %v", n, err)
		}
		conn.Close()
	}

	server := rawtest.Listen(t)
	defer server.Close()
	registry.Set("db", endpointOf(t, server.Addr().String()))
	panics(func() { m.DialContext(t.Context(), "tcp", "db:5432") })
	accepted, err := server.Accept()
	if err != nil {
		t.Fatal(err)
	}
	gone(accepted)

	ours := m.ListenTCP(rawtest.Listen(t))
	defer ours.Close()
	client, err := net.Dial("tcp", ours.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(client, "x") // PERMISSIVE waits for it
	panics(func() { ours.Accept() })
	gone(client)
}

// Where a change of documents closes a connection, that is why it ended.
func TestObserversOfAConnectionThatIsClosedByDocuments(t *testing.T) {
	noLeaks(t)
	w, callee := newTown(t), newConns()
	server := w.member(t, "payment-service", strict, callee.observer())
	e := echoTCP(t, server.ListenTCP)
	e.ServiceAccount = "payment-service"
	w.registry.Set("payment-service", e)
	client := w.member(t, "order-service", strict)
	c, err := client.DialContext(t.Context(), "tcp", "payment-service:9000")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	<-callee.begun
	if err := server.Apply(policy.Source{Name: "test.yaml", Data: []byte(strict + "---" + denyOrders)}); err != nil {
		t.Fatal(err)
	}
	if over := <-callee.over; over.Err == nil {
		t.Error("the connection was closed because documents deny it, and its end does not say so")
	}
}

// hurried is a connection that wants to be read and written at once, as a TCP connection does.
type hurried struct {
	net.Conn
	reads, writes int
}

func (h *hurried) ReadFrom(src io.Reader) (int64, error) {
	h.reads++
	return io.Copy(struct{ io.Writer }{h.Conn}, src)
}

func (h *hurried) WriteTo(w io.Writer) (int64, error) {
	h.writes++
	return io.Copy(w, struct{ io.Reader }{h.Conn})
}

// Without observers the kernel may copy from one connection to another.
func TestConnectionsCopyAsTheyCan(t *testing.T) {
	noLeaks(t)
	var registry discovery.Memory
	var made *hurried
	transport := speaking("HTTP/1.1")
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		made = &hurried{Conn: c}
		return made, err
	}
	m := newMesh(t, "", mesh.WithDiscovery(&registry), mesh.WithTransport(transport))
	registry.Set("db", echoTCP(t, func(l net.Listener) net.Listener { return l }))
	c, err := m.DialContext(t.Context(), "tcp", "db:5432")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.Copy(c, struct{ io.Reader }{bytes.NewReader([]byte("abc"))})
	made.Conn.(*net.TCPConn).CloseWrite()
	var back bytes.Buffer
	io.Copy(&back, c)
	if back.String() != "abc" || made.reads != 1 || made.writes != 1 {
		t.Errorf("%q came back: %d and %d copies by the connection itself, want 1 and 1", back.String(), made.reads, made.writes)
	}
}
