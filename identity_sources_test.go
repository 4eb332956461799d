package mesh_test

import (
	"context"
	"encoding/pem"
	"errors"
	"iter"
	"net"
	"os"
	"testing"

	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/tlsid"
)

// Sources of identities for tests, and files.

// silent never has an identity.
type silent struct{}

func (silent) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		if yield(nil, errors.New("the agent is away")) {
			<-ctx.Done()
		}
	}
}

// lateSource has the identities that are sent to it.
type lateSource = meshtest.Identities

// once has one identity, of order-service, and then dies.
type once struct{ ca *tlsid.DevCA }

func (s once) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		if yield(s.ca.Identity("default", "order-service")) {
			<-ctx.Done()
		}
	}
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// unusedPort returns a port of the loopback that nobody listens on.
func unusedPort(t testing.TB) int {
	t.Helper()
	ln := rawtest.Listen(t)
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}
