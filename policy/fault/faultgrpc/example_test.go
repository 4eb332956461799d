package faultgrpc_test

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/fault/faultgrpc"
)

func ExampleClient() {
	faults := &faultgrpc.Client{Config: fault.Config{
		Abort: fault.Abort{Fraction: 1, IsGRPC: true, GRPCStatus: uint32(codes.Unavailable)},
	}}
	options := append(faults.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("dns:///user-service:8080", options...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	fmt.Println(conn.Invoke(context.Background(), "/users.Users/Get", nil, nil))
	// Output: rpc error: code = Unavailable desc = fault filter abort
}
