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

// run is a service: a process that serves, and calls other services. The folder has the documents of all services in
// mesh.d, and the service's own certificate, key and authorities in a folder that is named like it. Others says where
// other services are.
//
// All that has to do with the mesh is in this function. It is what a program of yours would do.
func run(name, folder string, others ...string) error {
	services, err := table(others)
	if err != nil {
		return err
	}
	m, err := mesh.New(context.Background(),
		// Both are followed: a new certificate and a changed document count from the next call on.
		mesh.WithIdentity(tlsid.Files{Dir: filepath.Join(folder, name), Interval: 100 * time.Millisecond}),
		mesh.WithPolicyFeed(file.New(filepath.Join(folder, "mesh.d"))),
		// The namespace and the labels by which documents select this process. In a pod they are known without this.
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
	server := &http.Server{Handler: m.Handler(http.HandlerFunc(welcome))}
	go server.Serve(m.Listen(listener)) // who may connect is for the listener, who may do what is for the handler
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

// Service is what the parent process may ask of a service, by net/rpc.
type Service struct {
	address string
	client  *http.Client
}

// Address tells where the service listens.
func (s *Service) Address(_ struct{}, address *string) error {
	*address = s.address
	return nil
}

// Request is one that a service is to send.
type Request struct{ Method, URL string }

// Send sends a request and tells what came of it, such as "200" or "403 RBAC: access denied".
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

// told returns a response in short.
func told(status int, body string) string {
	if status == http.StatusOK {
		return "200"
	}
	return fmt.Sprint(status, " ", strings.TrimSpace(body))
}

// Load is what became of many calls.
type Load struct {
	Calls, Failed int
	Failure       string // the first

	Own, Peers int // certificates that were met: those that the peer saw of us, and those that we saw of the peer
	Expired    int // of the answers, those under a certificate that had expired
}

// Work sends a request again and again for as long as is said, several at a time.
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

// Working is a request to send for some time.
type Working struct {
	Request
	For time.Duration
}
