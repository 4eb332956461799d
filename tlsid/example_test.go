package tlsid_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/nosidecar/mesh/tlsid"
)

// Two services of one trust domain. In production the source is tlsid.Files or the Workload API.
func Example() {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		fmt.Println(err)
		return
	}
	users := tlsid.Keep(ca.Source("default", "user-service"), tlsid.Hooks{})
	defer users.Close()
	orders := tlsid.Keep(ca.Source("default", "order-service"), tlsid.Hooks{})
	defer orders.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := errors.Join(users.Wait(ctx), orders.Wait(ctx)); err != nil {
		fmt.Println(err)
		return
	}

	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go func() {
		server := tls.Server(far, users.Server())
		if err := server.Handshake(); err != nil {
			return
		}
		state := server.ConnectionState()
		peer, err := users.Peer(&state, time.Now()) // for each request
		if err != nil {
			return
		}
		fmt.Fprintf(server, "you are %s", peer.ID)
	}()
	expect := tlsid.Expect(spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/user-service"))
	client := tls.Client(near, orders.Client(expect))
	answer := make([]byte, 100)
	n, err := client.Read(answer)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s\n", answer[:n])
	// Output:
	// you are spiffe://cluster.local/ns/default/sa/order-service
}

// A set of IDs holds those it was made of, and no others.
func ExampleExpect() {
	order := spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/order-service")
	user := spiffeid.RequireFromString("spiffe://cluster.local/ns/default/sa/user-service")
	fmt.Println(tlsid.Expect(order).Check(order))
	fmt.Println(tlsid.Expect(order).Check(user))
	fmt.Println(tlsid.Expect().Check(user))
	// Output:
	// <nil>
	// tlsid: peer is spiffe://cluster.local/ns/default/sa/user-service, expected spiffe://cluster.local/ns/default/sa/order-service
	// tlsid: peer is spiffe://cluster.local/ns/default/sa/user-service, expected nobody
}

// The owner of the connections is told when to retire them.
func ExampleKeep() {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		fmt.Println(err)
		return
	}
	told := make(chan string)
	keeper := tlsid.Keep(ca.Source("default", "order-service"), tlsid.Hooks{
		Rotated: func(old, new *tlsid.Identity) {
			if old == nil {
				told <- "ready as " + new.ID().String()
				return
			}
			told <- "close idle connections"
		},
	})
	defer keeper.Close()
	fmt.Println(<-told)
	ca.Rotate()
	fmt.Println(<-told)
	// Output:
	// ready as spiffe://cluster.local/ns/default/sa/order-service
	// close idle connections
}

// Until there is an identity, Wait says why not.
func ExampleKeeper_Wait() {
	keeper := tlsid.Keep(tlsid.Files{Dir: "testdata/nowhere"}, tlsid.Hooks{})
	defer keeper.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	err := keeper.Wait(ctx)
	fmt.Println(errors.Is(err, tlsid.ErrNoIdentity), errors.Is(err, context.DeadlineExceeded))
	// Output:
	// true true
}
