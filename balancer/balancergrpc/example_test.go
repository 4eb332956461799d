package balancergrpc_test

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/balancer/balancergrpc"
	"github.com/nosidecar/mesh/discovery"
)

func ExampleClient() {
	balancergrpc.Register() // once in a program, before the first grpc.ClientConn

	c := &balancergrpc.Client{
		Resolver: discovery.Static{"user-service": {
			{Address: "10.0.0.1", Port: 50051},
			{Address: "10.0.0.2", Port: 50051, Weight: 2},
		}},
		Config: balancer.Config{Algorithm: balancer.PeakEWMA},
	}
	options := append(c.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("discovery:///user-service:8080", options...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Println(conn.CanonicalTarget())
	// Output: discovery:///user-service:8080
}
