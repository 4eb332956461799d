package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"sync/atomic"
	"time"
)

// Protocol is what is spoken on the loopback interface.
type Protocol string

// The protocols.
const (
	HTTP  Protocol = "http"  // HTTP/1.1
	HTTPS Protocol = "https" // HTTP/1.1 over TLS
	HTTP2 Protocol = "h2"    // HTTP/2 over TLS
)

// Protocols lists all protocols.
var Protocols = []Protocol{HTTP, HTTPS, HTTP2}

// endpoints is the number of instances of the service.
const endpoints = 3

// answer is what a small service says.
const answer = `{"id":42,"name":"Ada Lovelace","email":"ada@example.com","roles":["admin","author"],"active":true,` +
	`"created":"2024-02-29T12:00:00Z","quota":{"used":1201,"limit":5000}}`

// Server is a service with several instances on 127.0.0.1.
type Server struct {
	protocol  Protocol
	addresses []string
	roots     *x509.CertPool
	close     func()
}

// greeting is what a server process tells the process that started it.
type greeting struct {
	Addresses   []string
	Certificate []byte // DER; empty without TLS
}

// NewServer starts a service in this process: its part in the CPU time of a call is measured, too.
func NewServer(protocol Protocol) (*Server, error) {
	instances, hello := listen(protocol)
	return newServer(protocol, hello, func() {
		for _, instance := range instances {
			instance.Close()
		}
	})
}

// serve is the handler of a small service.
var serve = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, answer) // a client that is gone needs no answer
})

func listen(protocol Protocol) ([]*httptest.Server, greeting) {
	var hello greeting
	instances := make([]*httptest.Server, endpoints)
	for i := range instances {
		s := httptest.NewUnstartedServer(serve)
		if protocol == HTTP {
			s.Start()
		} else {
			s.EnableHTTP2 = protocol == HTTP2
			s.StartTLS()
			hello.Certificate = s.Certificate().Raw
		}
		instances[i] = s
		hello.Addresses = append(hello.Addresses, s.Listener.Addr().String())
	}
	return instances, hello
}

func newServer(protocol Protocol, hello greeting, close func()) (*Server, error) {
	s := &Server{protocol: protocol, addresses: hello.Addresses, close: close}
	if len(hello.Certificate) > 0 {
		cert, err := x509.ParseCertificate(hello.Certificate)
		if err != nil {
			close()
			return nil, err
		}
		s.roots = x509.NewCertPool()
		s.roots.AddCert(cert)
	}
	return s, nil
}

// Close stops the service.
func (s *Server) Close() { s.close() }

// Transport returns a transport that trusts the service. Like the mesh, and other than net/http's default, it keeps every
// connection for the next call.
func (s *Server) Transport() *http.Transport {
	t := &http.Transport{
		MaxIdleConnsPerHost: 4096,
		IdleConnTimeout:     90 * time.Second,
		ForceAttemptHTTP2:   s.protocol == HTTP2,
	}
	if s.roots != nil {
		t.TLSClientConfig = &tls.Config{RootCAs: s.roots, ServerName: "example.com"}
	}
	return t
}

// Spread returns a transport that knows the service by one address, behind which every new connection goes to the next
// instance, as with a Kubernetes Service: without a mesh that is what a client has. It also knows each instance by a name of its own.
func (s *Server) Spread() *http.Transport {
	t := s.Transport()
	var dials atomic.Uint64
	t.DialContext = func(ctx context.Context, network, named string) (net.Conn, error) {
		for i, address := range s.addresses {
			if host, _, err := net.SplitHostPort(named); err == nil && host == instance(i) {
				return new(net.Dialer).DialContext(ctx, network, address)
			}
		}
		return new(net.Dialer).DialContext(ctx, network, s.addresses[dials.Add(1)%uint64(len(s.addresses))])
	}
	return t
}

// instance returns the name of an instance.
func instance(i int) string { return fmt.Sprintf("%d.user-service", i) }

// URL is what is called.
func (s *Server) URL() string { return s.url("user-service") }

// Instances returns a URL for each instance.
func (s *Server) Instances() []string {
	urls := make([]string, len(s.addresses))
	for i := range urls {
		urls[i] = s.url(instance(i))
	}
	return urls
}

func (s *Server) url(host string) string {
	scheme := "https"
	if s.protocol == HTTP {
		scheme = "http"
	}
	return scheme + "://" + host + "/users/42"
}

// held is live memory that nobody reads or writes.
var held []byte

// Hold makes the live heap of this process, and of the server processes that it starts from then on, larger by so many MiB. The garbage
// collector runs whenever the heap has doubled. With the 1 MB of a program that does nothing but call, that is every 200 calls, and each
// run costs what it costs for the first time, and takes the stacks of idle goroutines. No service has a heap that small.
func Hold(mib int) { held = make([]byte, mib<<20) }

// processVariable makes a program that calls ServeProcess a server. Its value is a protocol and what to hold, in MiB.
const processVariable = "MESH_BENCH_SERVER"

// StartServer starts a service in a process of its own, which ends with [Server.Close] or with this process. The
// program must call [ServeProcess] first of all.
func StartServer(protocol Protocol) (_ *Server, err error) {
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", processVariable, protocol, len(held)>>20))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop := func() {
		stdin.Close()
		_ = cmd.Wait() // how it ended changes nothing
	}
	var hello greeting
	if err := json.NewDecoder(stdout).Decode(&hello); err != nil {
		stop()
		return nil, fmt.Errorf("the server process does not say where it listens: %w", err)
	}
	return newServer(protocol, hello, stop)
}

// ServeProcess returns at once, unless the process was started by [StartServer]: then it serves until its standard input
// ends, and exits.
func ServeProcess() {
	said := os.Getenv(processVariable)
	if said == "" {
		return
	}
	var protocol Protocol
	var mib int
	_, err := fmt.Sscan(said, &protocol, &mib)
	if err == nil {
		Hold(mib)
		_, hello := listen(protocol)
		err = json.NewEncoder(os.Stdout).Encode(hello)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}
