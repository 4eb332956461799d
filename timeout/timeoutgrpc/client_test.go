package timeoutgrpc_test

import (
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/timeout"
	"github.com/nosidecar/mesh/timeout/timeoutgrpc"
)

// hang is a service that answers nothing, but wants to know the deadline.
func hang(t *testing.T, want time.Duration) *grpctest.Service {
	wait := func(ctx context.Context) error {
		if at, ok := ctx.Deadline(); !ok || time.Until(at) > want {
			t.Errorf("the server was told of the deadline %v, %v", at, ok)
		}
		<-ctx.Done()
		return ctx.Err()
	}
	return &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) { return nil, wait(ctx) },
		Bidi:  func(s grpctest.BidiServer) error { return wait(s.Context()) },
	}
}

func unary(ctx context.Context, client grpctest.Client) error {
	_, err := client.UnaryCall(ctx, &grpctest.Request{})
	return err
}

func stream(ctx context.Context, client grpctest.Client) error {
	s, err := client.FullDuplexCall(ctx)
	for err == nil {
		_, err = s.Recv()
	}
	return err
}

func TestRequest(t *testing.T) {
	for name, call := range map[string]func(context.Context, grpctest.Client) error{"unary": unary, "stream": stream} {
		for _, test := range []struct {
			name   string
			caller time.Duration // the caller's own timeout
			ours   bool
			after  time.Duration
		}{
			{"ours", 0, true, time.Second},
			{"ours first", time.Minute, true, time.Second},
			{"the caller's first", 500 * time.Millisecond, false, 500 * time.Millisecond},
		} {
			t.Run(name+"/"+test.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					limits := &timeoutgrpc.Client{Config: timeout.Config{Request: time.Second}}
					client, stop := grpctest.Connect(t, hang(t, time.Second), limits.DialOptions()...)
					defer stop()
					ctx := t.Context()
					if test.caller > 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, test.caller)
						defer cancel()
					}
					began := time.Now()
					err := call(ctx, client)
					kind, limit := timeout.Exceeded(err)
					ours := kind == timeout.Request && limit == time.Second
					if status.Code(err) != codes.DeadlineExceeded || ours != test.ours || time.Since(began) != test.after {
						t.Errorf("%v after %v; want DeadlineExceeded after %v, ours: %v", err, time.Since(began), test.after, test.ours)
					}
				})
			})
		}
	}
}

// TestServerEndsFirst: the limit is the cause, too, if the server notices a moment before the client that it is over.
func TestServerEndsFirst(t *testing.T) {
	for name, call := range map[string]func(context.Context, grpctest.Client) error{"unary": unary, "stream": stream} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				early := func() error {
					time.Sleep(990 * time.Millisecond)
					return status.Error(codes.DeadlineExceeded, "over")
				}
				limits := &timeoutgrpc.Client{Config: timeout.Config{Request: time.Second}}
				client, stop := grpctest.Connect(t, &grpctest.Service{
					Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) { return nil, early() },
					Bidi:  func(grpctest.BidiServer) error { return early() },
				}, limits.DialOptions()...)
				defer stop()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				err := call(ctx, client)
				if kind, limit := timeout.Exceeded(err); kind != timeout.Request || limit != time.Second {
					t.Errorf("%v (%v, %v); want the limit on the request", err, kind, limit)
				}
			})
		})
	}
}

// TestBodyIdle: silence between messages is cut; the wait for headers and a slow reader are not silence.
func TestBodyIdle(t *testing.T) {
	for _, test := range []struct {
		name          string
		begin, pause  time.Duration // before the headers, between messages
		read          time.Duration // what the reader takes for a message
		want          error
		wantMessages  int
		stopsReceived bool
	}{
		{"lively", 0, 900 * time.Millisecond, 0, io.EOF, 3, false},
		{"slow to begin", time.Hour, 0, 0, io.EOF, 3, false},
		{"slow reader", 0, 0, time.Hour, io.EOF, 3, false},
		{"silent", 0, 2 * time.Second, 0, context.DeadlineExceeded, 1, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				limits := &timeoutgrpc.Client{Config: timeout.Config{BodyIdle: time.Second}}
				client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
					time.Sleep(test.begin)
					for range 3 {
						if err := s.Send(&grpctest.Out{}); err != nil {
							return err
						}
						time.Sleep(test.pause)
					}
					return nil
				}}, limits.DialOptions()...)
				defer stop()
				s, err := client.FullDuplexCall(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				messages := 0
				for {
					if _, err = s.Recv(); err != nil {
						break
					}
					messages++
					time.Sleep(test.read)
				}
				if !errors.Is(err, test.want) || (kindOf(err) != 0) != test.stopsReceived || messages != test.wantMessages {
					t.Errorf("%d messages, then %v; want %d, then %v", messages, err, test.wantMessages, test.want)
				}
				time.Sleep(10 * time.Second) // the handler
			})
		})
	}
}

// TestLeft: a stream that its caller cancels and leaves leaves nothing: the bubble would not end.
func TestLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := &timeoutgrpc.Client{Config: timeout.Config{Request: time.Hour, BodyIdle: time.Hour}}
		client, stop := grpctest.Connect(t, hang(t, time.Hour), limits.DialOptions()...)
		defer stop()
		ctx, cancel := context.WithCancel(t.Context())
		s, err := client.FullDuplexCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if _, err := s.Recv(); status.Code(err) != codes.Canceled {
			t.Errorf("error %v, want Canceled", err)
		}
	})
}

// broken is a stream that an interceptor ends when a message comes.
type broken struct{ grpc.ClientStream }

func (broken) RecvMsg(any) error { return status.Error(codes.DataLoss, "broken") }

// TestEndedByAnInterceptor: what an interceptor ends for the caller, without gRPC, is over for the server too.
func TestEndedByAnInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limits := &timeoutgrpc.Client{Config: timeout.Config{BodyIdle: time.Hour}}
		ended := make(chan struct{})
		client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
			s.SendHeader(nil)
			<-s.Context().Done()
			close(ended)
			return nil
		}}, append(limits.DialOptions(), grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn,
			method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := streamer(ctx, desc, cc, method, opts...)
			return broken{s}, err
		}))...)
		defer stop()
		if err := stream(t.Context(), client); status.Code(err) != codes.DataLoss {
			t.Errorf("error %v, want that of the interceptor", err)
		}
		synctest.Wait()
		select {
		case <-ended:
		default:
			t.Error("the server still serves the stream")
		}
	})
}

func TestInvalidConfig(t *testing.T) {
	for _, config := range []timeout.Config{{Request: -1}, {BodyIdle: -1}, {NoPropagation: true}} {
		limits := &timeoutgrpc.Client{Config: config}
		client := grpctest.NewClient(grpctest.Dial(t, "passthrough:///nowhere", limits.DialOptions()...))
		if err := unary(t.Context(), client); status.Code(err) != codes.Internal {
			t.Errorf("%+v: unary: %v, want Internal", config, err)
		}
		if err := stream(t.Context(), client); status.Code(err) != codes.Internal {
			t.Errorf("%+v: stream: %v, want Internal", config, err)
		}
	}
}

// kindOf returns which of our limits caused err.
func kindOf(err error) timeout.Kind {
	kind, _ := timeout.Exceeded(err)
	return kind
}
