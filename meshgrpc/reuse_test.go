package meshgrpc_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
)

// Unary calls are reused, also those that were cancelled at some point. Each gets its own reply, and none keeps a slot.
func TestReusedCallsAreSeparate(t *testing.T) {
	leak.Check(t)
	const callers, calls = 8, 100
	endpoints := []discovery.Endpoint{serve(t, &grpctest.Service{Unary: grpctest.Echo}), serve(t, &grpctest.Service{Unary: grpctest.Echo})}
	_, conn := one(t, threeTries+fmt.Sprintf(`---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, trafficPolicy: {connectionPool: {http: {http2MaxRequests: %d}}}}
`, callers), endpoints)
	client := grpctest.NewClient(conn)
	var running sync.WaitGroup
	for caller := range callers {
		running.Go(func() {
			for n := range calls {
				ctx, cancel := context.WithCancel(t.Context())
				if n%2 == 0 {
					time.AfterFunc(time.Duration(rand.IntN(1000))*time.Microsecond, cancel)
				}
				body := fmt.Sprintf("%d of %d", n, caller)
				reply, err := client.UnaryCall(ctx, &grpctest.Request{Payload: &grpc_testing.Payload{Body: []byte(body)}})
				cancel()
				if code := status.Code(err); code != codes.OK && (code != codes.Canceled || n%2 != 0) {
					t.Errorf("call %s: %v", body, err)
				} else if err == nil && string(reply.Payload.Body) != body {
					t.Errorf("call %s got the reply %s", body, reply.Payload.Body)
				}
			}
		})
	}
	running.Wait()
}

// An interceptor may send a try again when its call is over. That does not disturb other calls.
func TestTriesThatOutliveTheirCalls(t *testing.T) {
	leak.Check(t)
	var late sync.WaitGroup
	over := make(chan struct{}, 1)
	again := func(ctx context.Context, method string, in, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		err := invoker(ctx, method, in, reply, cc, opts...)
		late.Go(func() {
			<-over
			if err := invoker(ctx, method, in, &grpctest.Response{}, cc, opts...); status.Code(err) != codes.Canceled {
				t.Errorf("a try after its call: %v, want Canceled", err)
			}
		})
		return err
	}
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{Unary: grpctest.Echo})}, grpc.WithChainUnaryInterceptor(again))
	client := grpctest.NewClient(conn)
	for range 100 {
		if _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
			t.Error(err)
		}
		over <- struct{}{}
	}
	late.Wait()
}
