package retrygrpc_test

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

func ExampleClient() {
	on, err := retry.ParseOn("connect-failure,refused-stream,unavailable,cancelled")
	if err != nil {
		panic(err)
	}
	retries := &retrygrpc.Client{
		Config: retry.Config{Retries: 2, On: on},
		Observe: func(_ context.Context, method string, s retry.Summary) {
			fmt.Println(method, "took", s.Attempts, "tries:", s.Stopped)
		},
	}
	// In real life the options end here. This one stands for a server that is there only at the second try.
	options := append(retries.DialOptions(), grpc.WithChainUnaryInterceptor(flaky(1)),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("dns:///user-service:8080", options...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()

	err = conn.Invoke(context.Background(), "/users.Users/Get", "request", "reply")
	fmt.Println(err)
	// Output:
	// /users.Users/Get took 2 tries: succeeded
	// <nil>
}

// flaky is a server without a network: it refuses the first calls.
func flaky(refusals int) grpc.UnaryClientInterceptor {
	return func(context.Context, string, any, any, *grpc.ClientConn, grpc.UnaryInvoker, ...grpc.CallOption) error {
		if refusals--; refusals >= 0 {
			return status.Error(codes.Unavailable, "starting up")
		}
		return nil
	}
}
