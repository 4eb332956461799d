package breakergrpc_test

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/breaker/breakergrpc"
)

func ExampleClient() {
	circuits := &breakergrpc.Client{
		Config:   breaker.Config{ConsecutiveFailures: 2},
		OnChange: func(key string, c breaker.Change) { fmt.Println(key, "is", c.To) },
	}
	// In real life the options end here. This one stands for a server that is out of order.
	options := append(circuits.DialOptions(), grpc.WithChainUnaryInterceptor(broken),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("dns:///user-service:8080", options...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	for range 3 {
		err := conn.Invoke(context.Background(), "/users.Users/Get", "request", "reply")
		fmt.Println(status.Code(err), errors.Is(err, breaker.ErrOpen))
	}
	// Output:
	// Internal false
	// dns:///user-service:8080 is open
	// Internal false
	// Unavailable true
}

func broken(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
	return status.Error(codes.Internal, "no database")
}
