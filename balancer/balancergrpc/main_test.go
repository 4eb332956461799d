package balancergrpc_test

import (
	"fmt"
	"os"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/nosidecar/mesh/balancer/balancergrpc"
	"github.com/nosidecar/mesh/discovery"
)

func TestMain(m *testing.M) {
	// Before anything reads it: it is read once. Whatever asks for a proxy in this package gets one that is not there.
	os.Setenv("HTTPS_PROXY", "http://proxy.invalid:3128")

	// The balancer is there only for programs that ask for it.
	c := &balancergrpc.Client{Resolver: discovery.Static{}}
	insecure := grpc.WithTransportCredentials(insecure.NewCredentials())
	if conn, err := grpc.NewClient("discovery:///orders:80", append(c.DialOptions(), insecure)...); err == nil {
		conn.Close()
		fmt.Println("grpc.NewClient works without Register")
		os.Exit(1)
	}
	balancergrpc.Register()
	os.Exit(m.Run())
}
