package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
)

// server is an HTTP server on a port of 127.0.0.1: one endpoint of a service.
type server struct {
	version string // which it answers with
	handler http.HandlerFunc
	http    *http.Server
	mesh    *mesh.Mesh // behind which it serves; nil for none
	account string     // whose identity it has then

	listening string       // its address
	requests  atomic.Int64 // that have arrived
}

// serving returns a server that answers with its version.
func serving(version string) *server {
	return handling(version, func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, version) })
}

// failing returns a server that answers every request with 503.
func failing(version string) *server {
	return handling(version, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
}

// hanging returns a server that never answers.
func hanging(version string) *server {
	return handling(version, func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
}

// handling returns a server that does as handler does.
func handling(version string, handler http.HandlerFunc) *server {
	return &server{version: version, handler: handler}
}

// start makes the server listen on a free port, and returns it as an endpoint that subsets can select by version.
func (s *server) start() discovery.Endpoint {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	var handler http.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.requests.Add(1)
		s.handler(w, r)
	})
	address := listener.Addr().(*net.TCPAddr)
	s.listening = address.String()
	if s.mesh != nil { // this is all that a server needs to be one of the mesh
		handler, listener = s.mesh.Handler(handler), s.mesh.Listen(listener)
	}
	s.http = &http.Server{Handler: handler}
	go s.http.Serve(listener)

	return discovery.Endpoint{
		Address: address.IP.String(),
		Port:    address.Port,
		Labels:  map[string]string{"version": s.version},

		ServiceAccount: s.account,
	}
}

func (s *server) close() {
	s.http.Close()
}
