package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/file"
	"github.com/nosidecar/mesh/tlsid"
)

// run runs a service: a server that also calls other services. The folder has the documents of all services in mesh.d, and
// the certificate, key and authorities of this service in a folder with its name. others are the addresses of other
// services, as name=address.
//
// Everything about the mesh is in this function. Your program would do the same.
func run(name, folder string, others ...string) error {
	services, err := table(others)
	if err != nil {
		return err
	}
	m, err := mesh.New(context.Background(),
		// Both are followed: new certificates and changed documents apply from the next call on.
		mesh.WithIdentity(tlsid.Files{Dir: filepath.Join(folder, name), Interval: 100 * time.Millisecond}),
		mesh.WithPolicyFeed(file.New(filepath.Join(folder, "mesh.d"))),
		// The namespace and the labels by which documents select this process. In a pod they come from its environment.
		mesh.WithWorkload(policy.Workload{Namespace: "default", Labels: map[string]string{"app": name}}),
		mesh.WithDiscovery(services),
	)
	if err != nil {
		return err
	}
	defer m.Close()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	server := &http.Server{Handler: m.Handler(http.HandlerFunc(welcome)), ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(m.Listen(listener)) // the listener decides who may connect, the handler who may do what
	defer server.Close()

	return obey(&Service{address: listener.Addr().String(), client: m.Client()})
}

// table returns the services that are given as name=address.
func table(others []string) (discovery.Static, error) {
	services := make(discovery.Static)
	for _, other := range others {
		name, address, _ := strings.Cut(other, "=")
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return nil, err
		}
		services[name] = []discovery.Endpoint{{
			Address: at.Addr().String(),
			Port:    int(at.Port()),
			// Whoever answers there must prove that it runs as this account: spiffe://cluster.local/ns/default/sa/<name>.
			ServiceAccount: name,
		}}
	}
	return services, nil
}

// welcome answers with the serial number of the caller's certificate.
func welcome(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, r.TLS.PeerCertificates[0].SerialNumber)
}

// Service has the methods that the parent process calls, over net/rpc.
type Service struct {
	address string
	client  *http.Client
}

// Address returns the address at which the service listens.
func (s *Service) Address(_ struct{}, address *string) error {
	*address = s.address
	return nil
}

// Request is a request for a service to send.
type Request struct{ Method, URL string }

// Send sends a request and returns its result, such as "200" or "403 RBAC: access denied".
func (s *Service) Send(r Request, measured *string) error {
	resp, body, err := s.send(r)
	if err != nil {
		*measured = err.Error()
		return nil
	}
	*measured = told(resp.StatusCode, body)
	return nil
}

func (s *Service) send(r Request) (*http.Response, string, error) {
	req, err := http.NewRequest(r.Method, r.URL, nil)
	if err != nil {
		return nil, "", err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

// told returns a response in one line.
func told(status int, body string) string {
	if status == http.StatusOK {
		return "200"
	}
	return fmt.Sprint(status, " ", strings.TrimSpace(body))
}

// Load is the result of many calls.
type Load struct {
	Calls, Failed int
	Failure       string // the first one

	Own, Peers int // how many certificates the peer saw of this service, and this service of the peer
	Expired    int // responses under a certificate that had expired
}

// Work sends a request repeatedly for some time, several at a time.
func (s *Service) Work(w Working, load *Load) error {
	own, peers := make(map[string]bool), make(map[string]bool)
	end := time.Now().Add(w.For)
	var mu sync.Mutex
	var callers sync.WaitGroup
	for range 4 {
		callers.Go(func() {
			for time.Now().Before(end) {
				resp, body, err := s.send(w.Request)
				if err == nil && resp.StatusCode != http.StatusOK {
					err = errors.New(told(resp.StatusCode, body))
				}
				mu.Lock()
				load.Calls++
				if err == nil {
					certificate := resp.TLS.PeerCertificates[0]
					own[body], peers[certificate.SerialNumber.String()] = true, true
					if time.Now().After(certificate.NotAfter) {
						load.Expired++
					}
				} else if load.Failed++; load.Failed == 1 {
					load.Failure = err.Error()
				}
				mu.Unlock()
				time.Sleep(time.Millisecond) // four services share this machine
			}
		})
	}
	callers.Wait()
	load.Own, load.Peers = len(own), len(peers)
	return nil
}

// Working is a request to send repeatedly for some time.
type Working struct {
	Request
	For time.Duration
}
