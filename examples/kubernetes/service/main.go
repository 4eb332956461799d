// Command service is a service of the example: it answers requests below /api/, and calls another service if -call names one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/kubernetes"
	"github.com/nosidecar/mesh/tlsid"
)

func main() {
	name := flag.String("name", "service", "the `name` to answer with")
	listen := flag.String("listen", ":8080", "the `address` to listen on")
	call := flag.String("call", "", "the `URL` to call once a second")
	admin := flag.String("admin", ":15000", "the `address` of the readiness probe")
	identity := flag.String("identity", "/var/run/secrets/spiffe.io", "the `folder` with tls.crt, tls.key and ca.crt")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, *name, *listen, *call, *admin, *identity); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, name, listen, call, admin, identity string) error {
	m, err := mesh.New(ctx,
		kubernetes.InCluster(), // documents, endpoints, namespace and labels
		mesh.WithIdentity(tlsid.Files{Dir: identity}),
	)
	if err != nil {
		return err
	}
	defer m.Close()

	ready := http.NewServeMux()
	ready.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if !m.Status().Ready {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	mux := http.NewServeMux()
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s: %s for %s\n", name, r.URL.Path, mesh.PeerID(r.Context()))
	})
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	servers := []*http.Server{
		{Handler: m.Handler(mux), ReadHeaderTimeout: 5 * time.Second},
		{Addr: admin, Handler: ready, ReadHeaderTimeout: 5 * time.Second},
	}
	ended := make(chan error, len(servers))
	go func() { ended <- servers[0].Serve(m.Listen(ln)) }()
	go func() { ended <- servers[1].ListenAndServe() }()
	if call != "" {
		go callEverySecond(ctx, m.Client(), call)
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
	}
	// Callers learn within a moment that this endpoint terminates. Shutdown lets requests in flight end.
	patience, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, s := range servers {
		err = errors.Join(err, s.Shutdown(patience))
	}
	return err
}

func callEverySecond(ctx context.Context, client *http.Client, url string) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		resp, err := client.Get(url)
		if err != nil {
			log.Print(err)
			continue
		}
		log.Print(resp.Status)
		resp.Body.Close()
	}
}
