package rawtest_test

import (
	"errors"
	"net"
	"syscall"
	"testing"

	"github.com/nosidecar/mesh/internal/rawtest"
)

func TestRefusing(t *testing.T) {
	address := rawtest.Refusing(t)
	if _, err := net.Dial("tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("Dial: %v, want ECONNREFUSED", err)
	}
	if _, err := net.Listen("tcp", address); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen: %v, want EADDRINUSE: somebody else gets the port", err)
	}
}
