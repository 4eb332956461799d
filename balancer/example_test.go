package balancer_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
)

func ExampleBalancer() {
	b, err := balancer.New(balancer.Config{Algorithm: balancer.RingHash}, balancer.Hooks{})
	if err != nil {
		fmt.Println(err)
		return
	}
	b.Update([]discovery.Endpoint{
		{Address: "10.0.0.1", Port: 80},
		{Address: "10.0.0.2", Port: 80},
		{Address: "10.0.0.3", Port: 80},
	})
	for _, user := range []string{"alice", "bob", "alice"} {
		host, err := b.Pick(balancer.PickInfo{Hash: balancer.Hash(user), HasHash: true})
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(user, host.ID())
		host.Release(time.Millisecond, false) // when the call is over
	}
	// Output:
	// alice 10.0.0.2:80
	// bob 10.0.0.1:80
	// alice 10.0.0.2:80
}

func ExampleTransport() {
	tr := &balancer.Transport{
		Resolver: discovery.Static{"orders": {{Address: "10.0.0.1", Port: 8080}, {Address: "10.0.0.2", Port: 8080}}},
		Config:   balancer.Config{Algorithm: balancer.RoundRobin},
		Base:     &http.Transport{DialContext: dialExample},
	}
	defer tr.Close()
	client := &http.Client{Transport: tr}

	places := map[string]int{}
	for range 4 {
		resp, err := client.Get("http://orders/42")
		if err != nil {
			fmt.Println(err)
			return
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		places[string(text)]++
	}
	fmt.Println(places)
	// Output: map[orders served by 10.0.0.1:8080:2 orders served by 10.0.0.2:8080:2]
}

// dialExample connects to a server in the process, so that the example needs no network.
func dialExample(_ context.Context, _, address string) (net.Conn, error) {
	client, server := net.Pipe()
	listener := &oneConn{conn: make(chan net.Conn, 1), addr: server.LocalAddr()}
	listener.conn <- server
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s served by %s", r.Host, address)
	}))
	return client, nil
}

// oneConn is a listener with one connection.
type oneConn struct {
	conn chan net.Conn
	addr net.Addr
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	default:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return l.addr }
