package meshgrpc_test

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// TestLinkerd_ServiceAnnotations: how often a call is sent to a server that fails with a status, and what the caller gets of one that hangs. After the
// statuses, the server is taken out by failure accrual.
func TestLinkerd_ServiceAnnotations(t *testing.T) {
	const (
		retried = "retry.linkerd.io/grpc: 'unavailable,internal', retry.linkerd.io/limit: '2'"
		web     = "retry.linkerd.io/http: 5xx, retry.linkerd.io/limit: '2'"
		timed   = "timeout.linkerd.io/request: 2s"
		accrues = "balancer.linkerd.io/failure-accrual: consecutive, balancer.linkerd.io/failure-accrual-consecutive-max-failures: '3', " +
			"balancer.linkerd.io/failure-accrual-consecutive-min-penalty: 10s, balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio: '0'"
	)
	of := func(annotations string) string {
		return "---\napiVersion: v1\nkind: Service\nmetadata: {name: echo, namespace: default, annotations: {" + annotations + "}}\nspec: {ports: [{port: 80, name: grpc}]}\n"
	}
	route := "---\n" + grpcRoute("  - backendRefs: [{name: echo, port: 80}]\n")
	for _, tt := range []struct {
		name, documents string
		tries           string        // with the statuses Unavailable, Internal and NotFound
		wait            time.Duration // for a call that hangs; 0: until the caller gives up
	}{
		{"no annotations", of(""), "3 1 1", 0},
		{"retries", of(retried), "3 3 1", 0},
		{"for HTTP and gRPC", of(retried + ", retry.linkerd.io/http: '429'"), "3 3 1", 0},
		{"a timeout", of(timed), "3 1 1", 2 * time.Second},
		{"a GRPCRoute", of(retried+", "+timed) + route, "3 3 1", 2 * time.Second},
		{"one that retries", of(retried+", "+timed) + strings.Replace(route, "name: echo}", "name: echo, annotations: {retry.linkerd.io/grpc: internal}}", 1), "1 2 1", 2 * time.Second},
		{"a GRPCRoute, and retries for HTTP", of(web) + route, "3 1 1", 0},
		{"failure accrual", of(accrues + ", retry.linkerd.io/grpc: internal"), "1 2 0", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries, code atomic.Int64
				_, at, transport := inMemory(t, &grpctest.Service{Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
					tries.Add(1)
					if code.Load() == 0 {
						<-ctx.Done()
						return nil, status.FromContextError(ctx.Err()).Err() // at the same moment as the caller's own timer
					}
					return nil, status.Error(codes.Code(code.Load()), "")
				}})
				conn := connect(t, meshtest.New(t, tt.documents, echoAt(at), transport), "mesh:///echo:80")
				call := func(ctx context.Context) error {
					return conn.Invoke(ctx, grpctest.UnaryMethod, &grpctest.Request{}, &grpctest.Response{})
				}
				var got []string
				for _, c := range []codes.Code{codes.Unavailable, codes.Internal, codes.NotFound} {
					code.Store(int64(c))
					tries.Store(0)
					if err := call(t.Context()); status.Code(err) != c && tries.Load() > 0 {
						t.Errorf("%v: %v", c, err)
					}
					got = append(got, fmt.Sprint(tries.Load()))
				}
				if got := strings.Join(got, " "); got != tt.tries {
					t.Errorf("tries %s, want %s", got, tt.tries)
				}
				time.Sleep(10 * time.Second)
				code.Store(0)
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				began := time.Now()
				if err := call(ctx); status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("a call that hangs: %v", err)
				}
				if wait := time.Since(began); tt.wait != 0 && wait != tt.wait || tt.wait == 0 && wait != time.Minute {
					t.Errorf("waited %v, want %v", wait, tt.wait)
				}
			})
		})
	}
}
