package limitgrpc_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/limit/limitgrpc"
)

// service holds calls until they are let go or cancelled.
func service(hold chan struct{}) *grpctest.Service {
	wait := func(ctx context.Context) error {
		select {
		case <-hold:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			return &grpctest.Response{}, wait(ctx)
		},
		Bidi: func(s grpctest.BidiServer) error { return wait(s.Context()) },
	}
}

func unary(ctx context.Context, client grpctest.Client) error {
	_, err := client.UnaryCall(ctx, &grpctest.Request{})
	return err
}

func stream(ctx context.Context, client grpctest.Client) error {
	s, err := client.FullDuplexCall(ctx)
	if err == nil {
		_, err = s.Recv()
	}
	return err
}

var kinds = map[string]func(context.Context, grpctest.Client) error{"unary": unary, "stream": stream}

// TestRequests: one call too many is refused; when one of those in flight ends, however, there is room again.
func TestRequests(t *testing.T) {
	pool := limit.PoolConfig{MaxRequests: 2}
	for kind, call := range kinds {
		for _, side := range []string{"client", "server"} {
			t.Run(kind+"/"+side, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					hold := make(chan struct{})
					s := service(hold)
					client, server := &limitgrpc.Client{}, &limitgrpc.Server{}
					stats := client.Stats
					if side == "client" {
						client.Pool = pool
					} else {
						server.Pool = pool
						stats = server.Stats
					}
					s.Options = server.ServerOptions()
					var trailer metadata.MD
					conn, stop := grpctest.Connect(t, s, client.DialOptions()...)
					defer stop()
					ctx, cancel := context.WithCancel(t.Context())
					for range 2 {
						go call(ctx, conn)
					}
					synctest.Wait()
					err := call(t.Context(), conn)
					if status.Code(err) != codes.Unavailable || errors.Is(err, limit.ErrOverflow) != (side == "client") {
						t.Errorf("error %v, want overflow with status Unavailable", err)
					}
					if _, err := conn.UnaryCall(t.Context(), &grpctest.Request{}, grpc.Trailer(&trailer)); err == nil {
						t.Error("no error")
					}
					if side == "server" && len(trailer["x-envoy-overloaded"]) == 0 {
						t.Errorf("trailer %v does not say that the server is overloaded", trailer)
					}
					cancel() // and leave
					synctest.Wait()
					if s := stats(); s.Active != 0 || s.Overflows != 2 {
						t.Errorf("stats %+v, want none active and 2 overflows", s)
					}
					close(hold)
					if err := unary(t.Context(), conn); err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func TestRate(t *testing.T) {
	rate := limit.RateConfig{PerSecond: 1, Burst: 2}
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, server := &limitgrpc.Client{}, &limitgrpc.Server{}
				if side == "client" {
					client.Rate = rate
				} else {
					server.Rate = rate
				}
				s := &grpctest.Service{Unary: grpctest.Echo, Options: server.ServerOptions()}
				conn, stop := grpctest.Connect(t, s, client.DialOptions()...)
				defer stop()
				for range 2 {
					if err := unary(t.Context(), conn); err != nil {
						t.Fatal(err)
					}
				}
				err := unary(t.Context(), conn)
				if status.Code(err) != codes.ResourceExhausted || errors.Is(err, limit.ErrRateLimited) != (side == "client") {
					t.Errorf("error %v, want a rate limit with status ResourceExhausted", err)
				}
			})
		})
	}
}

// A call that finds no slot takes no token, as in limit.Handler.
func TestRefusedCallsTakeNoTokens(t *testing.T) {
	pool, rate := limit.PoolConfig{MaxRequests: 1}, limit.RateConfig{PerSecond: 1, Burst: 2}
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hold := make(chan struct{})
				s := service(hold)
				client, server := &limitgrpc.Client{}, &limitgrpc.Server{}
				stats := client.Stats
				if side == "client" {
					client.Pool, client.Rate = pool, rate
				} else {
					server.Pool, server.Rate = pool, rate
					stats = server.Stats
				}
				s.Options = server.ServerOptions()
				conn, stop := grpctest.Connect(t, s, client.DialOptions()...)
				defer stop()
				go unary(t.Context(), conn)
				synctest.Wait()
				if err := unary(t.Context(), conn); status.Code(err) != codes.Unavailable {
					t.Errorf("error %v beyond MaxRequests, want Unavailable", err)
				}
				close(hold)
				synctest.Wait()
				if err := unary(t.Context(), conn); err != nil {
					t.Errorf("the second token: %v", err)
				}
				if err := unary(t.Context(), conn); status.Code(err) != codes.ResourceExhausted {
					t.Errorf("error %v without a token, want ResourceExhausted", err)
				}
				if s := stats(); s.Active != 0 {
					t.Errorf("%d calls hold a slot, want none", s.Active)
				}
			})
		})
	}
}

func TestInvalidConfig(t *testing.T) {
	for _, c := range []*limitgrpc.Client{
		{Pool: limit.PoolConfig{MaxConnections: 1}},
		{Pool: limit.PoolConfig{MaxRequests: -1}},
		{Rate: limit.RateConfig{PerSecond: -1}},
	} {
		conn := grpctest.NewClient(grpctest.Dial(t, "passthrough:///nowhere", c.DialOptions()...))
		for kind, call := range kinds {
			if err := call(t.Context(), conn); status.Code(err) != codes.Internal {
				t.Errorf("%s: error %v, want Internal", kind, err)
			}
		}
	}
}

// A stream gives back its slot when it is over for the caller, even if gRPC goes on with it.
func TestStreamEndedByAnInterceptor(t *testing.T) {
	grpctest.EndedStreams(t, func(t *testing.T, stream func(...grpc.DialOption)) {
		client := &limitgrpc.Client{Pool: limit.PoolConfig{MaxRequests: 1}}
		stream(client.DialOptions()...)
		if n := client.Stats().Active; n != 0 {
			t.Errorf("%d calls are in flight, want none", n)
		}
	})
}
