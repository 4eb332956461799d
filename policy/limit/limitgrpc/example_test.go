package limitgrpc_test

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/limit/limitgrpc"
)

func ExampleClient() {
	limits := &limitgrpc.Client{
		Pool: limit.PoolConfig{MaxRequests: 100},
		Rate: limit.RateConfig{PerSecond: 1, Burst: 1},
	}
	// In real life the options end here. This one stands for a server.
	answer := func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
		return nil
	}
	options := append(limits.DialOptions(), grpc.WithChainUnaryInterceptor(answer),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("dns:///user-service:8080", options...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	for range 2 {
		err := conn.Invoke(context.Background(), "/users.Users/Get", nil, nil)
		fmt.Println(err, errors.Is(err, limit.ErrRateLimited))
	}
	// Output:
	// <nil> false
	// rpc error: code = ResourceExhausted desc = limit: rate limited true
}
