package tracinggrpc_test

import (
	"context"
	"fmt"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/nosidecar/mesh/tracing"
	"github.com/nosidecar/mesh/tracing/tracinggrpc"
)

func ExampleClient() {
	spans := tracetest.NewSpanRecorder() // in real life an exporter
	traced := &tracinggrpc.Client{Config: tracing.Config{Provider: sdk.NewTracerProvider(sdk.WithSpanProcessor(spans))}}
	// In real life the options end here. This one stands for a server.
	options := append(traced.DialOptions(), grpc.WithChainUnaryInterceptor(served),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	conn, err := grpc.NewClient("dns:///user-service:8080", options...)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	if err := conn.Invoke(context.Background(), "/users.Users/Get", "request", "reply"); err != nil {
		panic(err)
	}
	for _, s := range spans.Ended() {
		fmt.Println(s.SpanKind(), s.Name())
	}
	// Output:
	// the server gets a trace: true
	// client users.Users/Get
}

func served(ctx context.Context, _ string, _, _ any, _ *grpc.ClientConn, _ grpc.UnaryInvoker, _ ...grpc.CallOption) error {
	md, _ := metadata.FromOutgoingContext(ctx)
	fmt.Println("the server gets a trace:", len(md["traceparent"]) == 1)
	return nil
}
