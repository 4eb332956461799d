package spiffe_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/nosidecar/mesh/tlsid"
	"github.com/nosidecar/mesh/tlsid/spiffe"
)

// A server with an identity from the SPIRE agent of its machine. It needs one to run.
func Example() {
	keeper := tlsid.Keep(spiffe.Source{Addr: "unix:///run/spire/agent/public/api.sock"}, tlsid.Hooks{
		Failed: func(err error) { log.Print(err) },
	})
	defer keeper.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := keeper.Wait(ctx); err != nil {
		log.Fatal(err) // says why there is no identity
	}

	inner, err := net.Listen("tcp", ":8443")
	if err != nil {
		log.Fatal(err)
	}
	listener := tlsid.NewListener(inner, tlsid.ListenerConfig{TLS: keeper.Server()})
	log.Fatal(http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if listener.Retiring(r) {
			w.Header().Set("Connection", "close")
		}
		peer, err := keeper.Peer(r.TLS, time.Now())
		if err != nil {
			http.Error(w, "forbidden", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, "hello %s", peer.ID)
	})))
}
