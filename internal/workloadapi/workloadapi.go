// Package workloadapi is a SPIFFE Workload API on a unix socket, for tests.
package workloadapi

import (
	"bytes"
	"context"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/tlsid"
)

// Server is a running Workload API. Its methods are for the goroutine of the test.
type Server struct {
	t       testing.TB
	socket  string
	sources []tlsid.Source
	server  *grpc.Server // nil if stopped
	serving sync.WaitGroup

	mu      sync.Mutex
	edit    func(*workload.X509SVIDResponse) // edits responses, if not nil
	failure error                            // the error that ends all streams, if not nil
	changed chan struct{}                    // closed when edit or failure changes
}

// Start starts a Workload API, which stops at the end of the test. Each client gets the identities of the sources, again whenever one of
// them yields. The first source has the default identity.
func Start(t testing.TB, sources ...tlsid.Source) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "spiffe") // t.TempDir is too long for the address of a socket
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, socket: filepath.Join(dir, "api.sock"), sources: sources, changed: make(chan struct{})}
	t.Cleanup(func() {
		s.Stop()
		os.RemoveAll(dir)
	})
	s.Restart()
	return s
}

// Addr returns the address for SPIFFE_ENDPOINT_SOCKET.
func (s *Server) Addr() string { return "unix://" + s.socket }

// Stop ends all streams and removes the socket.
func (s *Server) Stop() {
	if s.server != nil {
		s.server.Stop()
		s.serving.Wait()
		s.server = nil
	}
}

// Restart starts a server that was stopped.
func (s *Server) Restart() {
	s.t.Helper()
	l, err := net.Listen("unix", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	s.server = grpc.NewServer(grpc.WaitForHandlers(true))
	workload.RegisterSpiffeWorkloadAPIServer(s.server, &service{Server: s})
	server := s.server
	s.serving.Go(func() { server.Serve(l) })
}

// Fail ends all streams with err, including new ones, until it is called with nil.
func (s *Server) Fail(err error) {
	s.change(func() { s.failure = err })
}

// Deny is Fail with the error that an agent returns to a workload without an identity.
func (s *Server) Deny() {
	s.Fail(status.Error(codes.PermissionDenied, "no identity issued"))
}

// Edit makes f edit each response before it is sent, and sends the latest response again. f is called from several goroutines.
func (s *Server) Edit(f func(*workload.X509SVIDResponse)) {
	s.change(func() { s.edit = f })
}

func (s *Server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Server) state() (edit func(*workload.X509SVIDResponse), changed <-chan struct{}, failure error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.edit, s.changed, s.failure
}

// service implements the X.509-SVID part of the Workload API.
type service struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	*Server
}

// FetchX509SVID implements section 5.2.1 of the SPIFFE Workload API.
func (s *service) FetchX509SVID(_ *workload.X509SVIDRequest, stream grpc.ServerStreamingServer[workload.X509SVIDResponse]) error {
	// SPIFFE Workload Endpoint, section 3: a server that is tricked into sending requests for others does not send this header.
	header, _ := metadata.FromIncomingContext(stream.Context())
	if !slices.Equal(header.Get("workload.spiffe.io"), []string{"true"}) {
		return status.Error(codes.InvalidArgument, "security header missing from request")
	}

	ctx, cancel := context.WithCancel(stream.Context())
	var watching sync.WaitGroup
	defer watching.Wait()
	defer cancel()
	type update struct {
		of       int
		identity *tlsid.Identity
		err      error
	}
	updates := make(chan update)
	for i, source := range s.sources {
		watching.Go(func() {
			for identity, err := range source.Watch(ctx) {
				select {
				case updates <- update{i, identity, err}:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	identities, missing := make([]*tlsid.Identity, len(s.sources)), len(s.sources)
	for {
		edit, changed, failure := s.state()
		if failure != nil {
			return failure
		}
		if missing == 0 {
			response, err := respond(identities)
			if err != nil {
				return err
			}
			if edit != nil {
				edit(response)
			}
			if err := stream.Send(response); err != nil {
				return err
			}
		}
		select {
		case u := <-updates:
			if u.err != nil {
				return u.err
			}
			if identities[u.of] == nil {
				missing--
			}
			identities[u.of] = u.identity
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func respond(identities []*tlsid.Identity) (*workload.X509SVIDResponse, error) {
	response := &workload.X509SVIDResponse{FederatedBundles: make(map[string][]byte)}
	for _, identity := range identities {
		key, err := x509.MarshalPKCS8PrivateKey(identity.Certificate().PrivateKey)
		if err != nil {
			return nil, err
		}
		svid := &workload.X509SVID{
			SpiffeId: identity.ID().String(), X509SvidKey: key,
			X509Svid: bytes.Join(identity.Certificate().Certificate, nil),
		}
		for _, bundle := range identity.Bundles() {
			var authorities []byte
			for _, c := range bundle.X509Authorities() {
				authorities = append(authorities, c.Raw...)
			}
			if bundle.TrustDomain() == identity.TrustDomain() {
				svid.Bundle = authorities
			} else {
				response.FederatedBundles[bundle.TrustDomain().IDString()] = authorities
			}
		}
		response.Svids = append(response.Svids, svid)
	}
	return response, nil
}
