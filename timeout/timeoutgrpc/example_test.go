package timeoutgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/timeout"
	"github.com/nosidecar/mesh/timeout/timeoutgrpc"
)

func ExampleClient() {
	limits := &timeoutgrpc.Client{Config: timeout.Config{Request: 10 * time.Millisecond}}
	// In real life the options end here. This one stands for a server that does not answer.
	hang := func(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
		<-ctx.Done()
		return ctx.Err()
	}
	options := append(limits.DialOptions(), grpc.WithChainUnaryInterceptor(hang),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("dns:///user-service:8080", options...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	err = conn.Invoke(context.Background(), "/users.Users/Get", nil, nil)
	fmt.Println(status.Code(err), errors.Is(err, context.DeadlineExceeded))
	fmt.Println(err)
	// Output:
	// DeadlineExceeded true
	// rpc error: code = DeadlineExceeded desc = request timeout: call not complete after 10ms
}
