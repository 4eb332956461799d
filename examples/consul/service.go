package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery/consul"
	intentions "github.com/nosidecar/mesh/policy/consul"
	"github.com/nosidecar/mesh/policy/consulkv"
	connect "github.com/nosidecar/mesh/tlsid/consul"
)

// prefix is where the documents of all services are, in Consul's KV store.
const prefix = "mesh/shop"

// service is an instance of a service. In production each is a process of its own, with the same code.
type service struct {
	mesh         *mesh.Mesh
	server       *http.Server
	registration *consul.Registration
	served       chan struct{}
}

// start starts an instance that uses everything Consul offers.
func start(ctx context.Context, client *api.Client, name, version string, handler func(s *service) http.HandlerFunc) (*service, error) {
	resolver, err := consul.New(client, consul.Config{})
	if err != nil {
		return nil, err
	}
	s := &service{served: make(chan struct{})}
	s.mesh, err = mesh.New(ctx,
		mesh.WithDiscovery(resolver),                                               // healthy endpoints
		mesh.WithPolicyFeed(&consulkv.Store{Prefix: prefix, Client: client}),       // how calls are made
		mesh.WithPolicyFeed(&intentions.Intentions{Service: name, Client: client}), // who may call this service
		mesh.WithIdentity(connect.Source{Service: name, Client: client}),           // the certificate of Connect
	)
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(err, s.mesh.Close())
	}
	s.server = &http.Server{Handler: s.mesh.Handler(handler(s)), ReadHeaderTimeout: 5 * time.Second}
	go func() {
		defer close(s.served)
		_ = s.server.Serve(s.mesh.Listen(ln)) // until stop
	}()

	// Registered last: from now on there are calls.
	s.registration, err = consul.Register(ctx, client, api.AgentServiceRegistration{
		ID:      name + "-" + version,
		Name:    name,
		Meta:    map[string]string{"version": version}, // by which the subsets of a DestinationRule select
		Address: "127.0.0.1",
		Port:    ln.Addr().(*net.TCPAddr).Port,
		Connect: &api.AgentServiceConnect{Native: true},
	}, func(error) {}) // this example kills the agent
	if err != nil {
		return nil, errors.Join(err, s.stop(ctx))
	}
	return s, nil
}

// stop ends an instance without failing a call: first new calls stop, then those in flight end, then everything is closed.
func (s *service) stop(ctx context.Context) (err error) {
	if s == nil {
		return nil
	}
	if s.registration != nil {
		_ = s.registration.Close(ctx) // fails without an agent
	}
	err = s.server.Shutdown(ctx)
	<-s.served
	return errors.Join(err, s.mesh.Close())
}

// get calls another service and returns its answer, or why there was none.
func (s *service) get(ctx context.Context, url string) string {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := s.mesh.Client().Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	switch {
	case err != nil:
		return err.Error()
	case resp.StatusCode != http.StatusOK:
		return fmt.Sprintf("%d %s", resp.StatusCode, body)
	}
	return string(body)
}

// answer returns a handler that answers with the name of its service, and with the answer of the next one, if there is one.
func answer(name, next string) func(s *service) http.HandlerFunc {
	return func(s *service) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			text := name
			if next != "" {
				text += " -> " + s.get(r.Context(), next)
			}
			fmt.Fprint(w, text)
		}
	}
}
