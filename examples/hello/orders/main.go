// Command orders is a server in the mesh: it takes mTLS only, and only the requests that the documents allow.
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/file"
	"github.com/nosidecar/mesh/tlsid"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8081", "the `address` to listen on")
	flag.Parse()

	m, err := mesh.New(context.Background(),
		mesh.WithPolicyFeed(file.New("mesh.d")),
		mesh.WithIdentity(tlsid.Files{Dir: "certs/shop/orders"}),
		mesh.WithWorkload(policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "orders"}}),
	)
	if err != nil {
		log.Fatal(err) // every finding, with file, line, field and remedy
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /orders/{id}", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "order %s for %s\n", r.PathValue("id"), mesh.PeerID(r.Context()))
	})
	ln, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("listening on %s", ln.Addr())
	srv := &http.Server{Handler: m.Handler(mux), ReadHeaderTimeout: 5 * time.Second}
	log.Fatal(srv.Serve(m.Listen(ln))) // to end gracefully: srv.Shutdown, then m.Close
}
