package meshgrpc_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/tlsid"
)

// A stream ends when the authority of its endpoint's certificate leaves the bundle.
func TestStreamEndsWhenItsEndpointIsNotTrusted(t *testing.T) {
	leak.Check(t)
	w, other := newTown(t), newTown(t)
	theirs, err := other.Identity("default", "payment")
	if err != nil {
		t.Fatal(err)
	}
	trusting := func(authorities ...*x509.Certificate) *tlsid.Identity {
		own, err := w.Identity("default", "order")
		if err != nil {
			t.Fatal(err)
		}
		c := own.Certificate()
		svid := &x509svid.SVID{ID: own.ID(), Certificates: []*x509.Certificate{c.Leaf}, PrivateKey: c.PrivateKey.(crypto.Signer)}
		id, err := tlsid.NewIdentity(svid, x509bundle.FromX509Authorities(own.TrustDomain(), append(authorities, w.Bundle().X509Authorities()...)))
		if err != nil {
			t.Fatal(err)
		}
		return id
	}

	ln := rawtest.Listen(t)
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{
		ClientAuth: tls.RequireAnyClientCert, Certificates: []tls.Certificate{*theirs.Certificate()},
	})))
	grpc_testing.RegisterTestServiceServer(srv, echoStreams)
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) })
	t.Cleanup(func() {
		srv.Stop()
		serving.Wait()
	})
	e := meshtest.EndpointOf(t, ln.Addr().String())
	e.ServiceAccount = "payment"
	w.registry.Set("payment", e)

	source, inForce := make(meshtest.Identities, 1), make(chan *tlsid.Identity, 2)
	source <- trusting(other.Bundle().X509Authorities()...)
	m := w.member(t, "order", strict, mesh.WithIdentity(source), mesh.WithObserver(mesh.Observer{
		Identity: func(id *tlsid.Identity, _ error) { inForce <- id },
	}))
	<-inForce
	stream, err := grpctest.NewClient(connect(t, m, "mesh:///payment")).FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	exchange := func() error {
		if err := stream.Send(&grpctest.In{}); err != nil {
			return err
		}
		_, err := stream.Recv()
		return err
	}
	if err := exchange(); err != nil {
		t.Fatal(err)
	}
	source <- trusting()
	<-inForce
	_ = stream.Send(&grpctest.In{})
	if _, err = stream.Recv(); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "not trusted any more") {
		t.Errorf("the stream ended with %v", err)
	}
}
