package retrygrpc_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/retry/retrygrpc"
)

func payload(text string) *grpc_testing.Payload { return &grpc_testing.Payload{Body: []byte(text)} }

// echo answers every message with itself.
func echo(stream grpctest.BidiServer) error {
	for {
		in, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&grpctest.Out{Payload: in.Payload}); err != nil {
			return err
		}
	}
}

// onCall returns a handler that is fail for the first calls and echo afterwards.
func onCall(times int32, calls *atomic.Int32, fail func(grpctest.BidiServer) error) func(grpctest.BidiServer) error {
	return func(stream grpctest.BidiServer) error {
		if calls.Add(1) <= times {
			return fail(stream)
		}
		return echo(stream)
	}
}

func unavailable(grpctest.BidiServer) error { return status.Error(codes.Unavailable, "not now") }

// afterReading makes a failure that comes after n messages were read.
func afterReading(n int) func(grpctest.BidiServer) error {
	return func(stream grpctest.BidiServer) error {
		for range n {
			if _, err := stream.Recv(); err != nil {
				return err
			}
		}
		return unavailable(stream)
	}
}

func TestStream_Replays(t *testing.T) {
	for _, test := range []struct {
		name string
		fail func(grpctest.BidiServer) error
	}{
		{"refused at once", unavailable},
		{"refused after two messages", afterReading(2)},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			var calls atomic.Int32
			var summaries []retry.Summary
			address := grpctest.Serve(t, &grpctest.Service{Bidi: onCall(2, &calls, test.fail)})
			retries := fast("unavailable", 2)
			retries.Observe = func(_ context.Context, _ string, s retry.Summary) { summaries = append(summaries, s) }
			client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
			stream, err := client.FullDuplexCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{"a", "b", "c"} {
				if err := stream.Send(&grpctest.In{Payload: payload(text)}); err != nil {
					t.Fatalf("Send(%q): %v", text, err)
				}
			}
			if err := stream.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if got := receiveAll(t, stream); got != "abc" {
				t.Errorf("received %q, want abc", got)
			}
			if want := []retry.Summary{{Attempts: 3, Stopped: retry.Succeeded}}; !slices.Equal(summaries, want) {
				t.Errorf("%d calls, summaries %+v; want %+v", calls.Load(), summaries, want)
			}
		})
	}
}

func receiveAll(t *testing.T, stream grpc_testing.TestService_FullDuplexCallClient) string {
	t.Helper()
	var all strings.Builder
	for {
		out, err := stream.Recv()
		if err == io.EOF {
			return all.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		all.Write(out.Payload.Body)
	}
}

// TestOnlyBeforeTheFirstMessage: what comes after a response message, or response headers, is the caller's.
func TestOnlyBeforeTheFirstMessage(t *testing.T) {
	for _, test := range []struct {
		name  string
		begin func(grpctest.BidiServer) error
	}{
		{"message", func(s grpctest.BidiServer) error { return s.Send(&grpctest.Out{}) }},
		{"headers", func(s grpctest.BidiServer) error { return s.SendHeader(nil) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int32
			address := grpctest.Serve(t, &grpctest.Service{Bidi: onCall(1, &calls, func(s grpctest.BidiServer) error {
				if err := test.begin(s); err != nil {
					return err
				}
				return unavailable(s)
			})})
			retries := fast("unavailable,5xx", 3)
			retries.Config.AnyMethod = true
			client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
			stream, err := client.FullDuplexCall(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for err == nil {
				_, err = stream.Recv()
			}
			if status.Code(err) != codes.Unavailable || calls.Load() != 1 {
				t.Errorf("%d calls and error %v, want one call", calls.Load(), err)
			}
			if _, again := stream.Recv(); again == nil || again.Error() != err.Error() {
				t.Errorf("Recv after the end: %v, want %v once more", again, err)
			}
		})
	}
}

// TestHealthyStreamIsNotCut: the limit of a try is for the headers.
func TestHealthyStreamIsNotCut(t *testing.T) {
	for _, test := range []struct {
		name    string
		receive bool // the caller waits for the header, else it only sends
	}{{"caller receives", true}, {"caller only sends", false}} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
					if _, announced := s.Context().Deadline(); announced {
						t.Error("the limit was announced to the server")
					}
					time.Sleep(900 * time.Millisecond)
					if err := s.SendHeader(nil); err != nil {
						return err
					}
					time.Sleep(time.Minute)
					return echo(s)
				}}, perTry(2).DialOptions()...)
				defer stop()
				stream, err := client.FullDuplexCall(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := stream.Send(&grpctest.In{Payload: payload("a")}); err != nil {
					t.Fatal(err)
				}
				if test.receive {
					if _, err := stream.Header(); err != nil {
						t.Fatal(err)
					}
				} else {
					time.Sleep(10 * time.Second)
				}
				stream.CloseSend()
				if got := receiveAll(t, stream); got != "a" {
					t.Errorf("received %q, want a", got)
				}
			})
		})
	}
}

// TestStream_PerTryTimeout: a try without headers in time makes place for the next, and what was sent is sent again.
func TestStream_PerTryTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: onCall(1, &calls, func(s grpctest.BidiServer) error {
			<-s.Context().Done()
			return s.Context().Err()
		})}, perTry(2).DialOptions()...)
		defer stop()
		began := time.Now()
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&grpctest.In{Payload: payload("a")}); err != nil {
			t.Fatal(err)
		}
		stream.CloseSend()
		if got := receiveAll(t, stream); got != "a" || time.Since(began) != time.Second || calls.Load() != 2 {
			t.Errorf("received %q from %d calls after %v, want a from 2 after 1s", got, calls.Load(), time.Since(began))
		}
	})
}

func TestStream_PerTryTimeoutExhausted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
			<-s.Context().Done()
			return s.Context().Err()
		}}, perTry(1).DialOptions()...)
		defer stop()
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		if status.Code(err) != codes.DeadlineExceeded || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want DeadlineExceeded", err)
		}
	})
}

// TestStream_SenderNotices: a caller that only sends is not left with a stream that ended long ago.
func TestStream_SenderNotices(t *testing.T) {
	leak.Check(t)
	var calls atomic.Int32
	var sums []int32
	second := make(chan struct{})
	address := grpctest.Serve(t, &grpctest.Service{Input: func(stream grpctest.UploadServer) error {
		if calls.Add(1) == 1 {
			return status.Error(codes.Unavailable, "not now")
		}
		close(second)
		var sum int32
		for {
			in, err := stream.Recv()
			if err == io.EOF {
				sums = append(sums, sum)
				return stream.SendAndClose(&grpctest.Sum{AggregatedPayloadSize: sum})
			}
			if err != nil {
				return err
			}
			sum += int32(len(in.Payload.Body))
		}
	}})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 1).DialOptions()...))
	stream, err := client.StreamingInputCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sent := int32(0)
	for retried := false; !retried; {
		if err := stream.Send(&grpctest.Upload{Payload: payload("x")}); err != nil {
			t.Fatal(err)
		}
		sent++
		select {
		case <-second:
			retried = true
		default:
		}
	}
	sum, err := stream.CloseAndRecv()
	if err != nil || sum.AggregatedPayloadSize != sent {
		t.Errorf("sum %v and error %v, want %d", sum.GetAggregatedPayloadSize(), err, sent)
	}
}

// TestStream_BufferBound: once more was sent than is kept, the stream is that of the try under way.
func TestStream_BufferBound(t *testing.T) {
	const kib = 1 << 10
	for _, test := range []struct {
		name  string
		size  int
		bound []grpc.CallOption
		calls int32
	}{
		{"within", 255 * kib, nil, 2},
		{"beyond", 260 * kib, nil, 1},
		{"own bound", 3 * kib, []grpc.CallOption{grpc.MaxRetryRPCBufferSize(2 * kib)}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int32
			var stopped retry.Reason
			address := grpctest.Serve(t, &grpctest.Service{Bidi: onCall(1, &calls, func(s grpctest.BidiServer) error {
				for {
					if _, err := s.Recv(); err != nil { // io.EOF
						return unavailable(s)
					}
				}
			})})
			retries := fast("unavailable", 1)
			retries.Observe = func(_ context.Context, _ string, s retry.Summary) { stopped = s.Stopped }
			client := grpctest.NewClient(grpctest.Dial(t, address, retries.DialOptions()...))
			stream, err := client.FullDuplexCall(t.Context(), test.bound...)
			if err != nil {
				t.Fatal(err)
			}
			for range test.size / kib {
				if err := stream.Send(&grpctest.In{Payload: payload(strings.Repeat("x", kib-16))}); err != nil {
					t.Fatal(err)
				}
			}
			stream.CloseSend()
			for err == nil {
				_, err = stream.Recv()
			}
			want := retry.Succeeded
			if test.calls == 1 {
				want = retry.BodyCommitted
			}
			if calls.Load() != test.calls || (err == io.EOF) != (test.calls == 2) || stopped != want {
				t.Errorf("%d calls, error %v, %v; want %d calls, %v", calls.Load(), err, stopped, test.calls, want)
			}
		})
	}
}

// TestStream_AnsweredWhileItIsSentAgain: a server that answers each message, and reads no further until its answers are read, gets all that
// was sent to the try before.
func TestStream_AnsweredWhileItIsSentAgain(t *testing.T) {
	const messages, kib, window = 200, 1 << 10, 64 << 10
	for _, test := range []struct {
		name  string
		after int // messages that are sent after the first answer
	}{
		{"sent to its end", 0},
		{"more to send", 100},
	} {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int32
			address := grpctest.Serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
				first := calls.Add(1) == 1
				for read := 1; ; read++ {
					if _, err := s.Recv(); err == io.EOF {
						return nil
					} else if err != nil {
						return err
					}
					if first {
						if read == messages {
							return unavailable(s)
						}
					} else if err := s.Send(&grpctest.Out{Payload: payload(strings.Repeat("y", 4*kib))}); err != nil {
						return err
					}
				}
			}}, grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			client := grpctest.NewClient(grpctest.Dial(t, address, append(fast("unavailable", 1).DialOptions(),
				grpc.WithInitialWindowSize(window), grpc.WithInitialConnWindowSize(window))...))
			stream, err := client.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			send := func(n int) error {
				for range n {
					if err := stream.Send(&grpctest.In{Payload: payload(strings.Repeat("x", kib-16))}); err != nil {
						return err
					}
				}
				return nil
			}
			if err := send(messages); err != nil {
				t.Fatal(err)
			}
			var sender sync.WaitGroup
			defer sender.Wait()
			if test.after == 0 {
				stream.CloseSend()
			}
			received := 0
			for ; err == nil; received++ {
				if _, err = stream.Recv(); received == 0 && test.after > 0 {
					sender.Go(func() {
						if err := send(test.after); err != nil {
							t.Error(err)
						}
						stream.CloseSend()
					})
				}
			}
			if received--; err != io.EOF || received != messages+test.after || calls.Load() != 2 {
				t.Errorf("%d messages in %d calls, error %v; want %d in 2, io.EOF", received, calls.Load(), err, messages+test.after)
			}
		})
	}
}

// brokenStream panics where a message is sent.
type brokenStream struct{ grpc.ClientStream }

func (brokenStream) SendMsg(any) error { panic("codec") }

func TestStream_PanicWhileItIsSentAgain(t *testing.T) {
	address := grpctest.Serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
		for {
			if _, err := s.Recv(); err != nil { // io.EOF
				return unavailable(s)
			}
		}
	}})
	var tries atomic.Int32
	broken := grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := streamer(ctx, desc, cc, method, opts...)
		if err == nil && tries.Add(1) > 1 {
			stream = brokenStream{stream}
		}
		return stream, err
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := grpctest.NewClient(grpctest.Dial(t, address, append(fast("unavailable", 1).DialOptions(), broken)...))
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if err := stream.Send(&grpctest.In{Payload: payload(strings.Repeat("x", 1<<10))}); err != nil {
			t.Fatal(err)
		}
	}
	stream.CloseSend()
	defer func() {
		if p := recover(); p != "codec" || tries.Load() != 2 {
			t.Errorf("panic %v after %d tries, want that of the codec after 2", p, tries.Load())
		}
	}()
	_, err = stream.Recv()
	t.Errorf("Recv: %v, want a panic", err)
}

// TestStream_AsDocumented pins what grpc.ClientStream promises, over a stream that is refused for good.
func TestStream_AsDocumented(t *testing.T) {
	address := grpctest.Serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
		s.SetTrailer(metadata.Pairs("why", "maintenance"))
		return unavailable(s)
	}})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 2).DialOptions()...))
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if md, err := stream.Header(); md != nil || err != nil {
		t.Errorf("Header of a stream without: %v, %v; want nil, nil", md, err)
	}
	if err := stream.Send(&grpctest.In{}); err != io.EOF {
		t.Errorf("Send on a stream that ended: %v, want io.EOF", err)
	}
	if err := stream.CloseSend(); err != nil {
		t.Errorf("CloseSend: %v", err)
	}
	_, err = stream.Recv()
	var given *retry.Error
	if status.Code(err) != codes.Unavailable || !errors.As(err, &given) || given.Attempts != 3 {
		t.Errorf("Recv: %v, want a retry.Error after 3 attempts", err)
	}
	if md := stream.Trailer(); !slices.Equal(md["why"], []string{"maintenance"}) {
		t.Errorf("Trailer %v", md)
	}
	if stream.Context() == nil {
		t.Error("no Context")
	}
}

// TestStream_EmptyAndWell: a stream that ends well without headers is no failure.
func TestStream_EmptyAndWell(t *testing.T) {
	var calls atomic.Int32
	address := grpctest.Serve(t, &grpctest.Service{Output: func(*grpctest.In, grpctest.OutServer) error {
		calls.Add(1)
		return nil
	}})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable,5xx", 2).DialOptions()...))
	finished := 0
	stream, err := client.StreamingOutputCall(t.Context(), &grpctest.In{}, grpc.OnFinish(func(error) { finished++ }))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF || calls.Load() != 1 || finished != 1 {
		t.Errorf("Recv %v after %d calls, OnFinish %d times; want io.EOF, 1, 1", err, calls.Load(), finished)
	}
}

// TestStream_Context ends the retries, as documented.
func TestStream_Context(t *testing.T) {
	var calls atomic.Int32
	gate := make(chan struct{})
	address := grpctest.Serve(t, &grpctest.Service{Bidi: onCall(1, &calls, func(s grpctest.BidiServer) error {
		<-gate
		return unavailable(s)
	})})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 2).DialOptions()...))
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	stream.Context()
	close(gate)
	if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || calls.Load() != 1 {
		t.Errorf("%d calls and error %v, want one call", calls.Load(), err)
	}
}

// TestStreamOptionsFireOnce: OnFinish is told once, whatever became of the stream, and the rest is of the last try.
func TestStreamOptionsFireOnce(t *testing.T) {
	for _, test := range []struct {
		name  string
		fails int32
		use   func(cancel func(), conn *grpc.ClientConn, s grpc_testing.TestService_FullDuplexCallClient)
		want  codes.Code
		try   string
	}{
		{"used to its end", 2, func(_ func(), _ *grpc.ClientConn, s grpc_testing.TestService_FullDuplexCallClient) {
			s.CloseSend()
			s.Recv()
		}, codes.OK, "3"},
		{"given up", 9, func(_ func(), _ *grpc.ClientConn, s grpc_testing.TestService_FullDuplexCallClient) { s.Recv() },
			codes.Unavailable, "3"},
		{"cancelled and left", 0, func(cancel func(), _ *grpc.ClientConn, _ grpc_testing.TestService_FullDuplexCallClient) {
			cancel()
		}, codes.Canceled, ""},
		{"connection closed and left", 0, func(_ func(), conn *grpc.ClientConn, _ grpc_testing.TestService_FullDuplexCallClient) {
			conn.Close()
		}, codes.Canceled, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			var calls atomic.Int32
			address := grpctest.Serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
				n := calls.Add(1)
				s.SetTrailer(metadata.Pairs("try", string('0'+n)))
				if n <= test.fails {
					return unavailable(s)
				}
				return echo(s)
			}})
			settled := make(chan retry.Summary, 10)
			retries := fast("unavailable", 2)
			retries.Observe = func(_ context.Context, _ string, s retry.Summary) { settled <- s }
			conn := grpctest.Dial(t, address, retries.DialOptions()...)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			finished := make(chan error, 10)
			var trailer metadata.MD
			stream, err := grpctest.NewClient(conn).FullDuplexCall(ctx, grpc.Trailer(&trailer),
				grpc.OnFinish(func(err error) { finished <- err }))
			if err != nil {
				t.Fatal(err)
			}
			test.use(cancel, conn, stream)
			if err := <-finished; status.Code(err) != test.want {
				t.Errorf("OnFinish got %v, want %v", err, test.want)
			}
			if test.try != "" && !slices.Equal(trailer["try"], []string{test.try}) {
				t.Errorf("trailer %v, want that of try %s", trailer, test.try)
			}
			<-settled
			conn.Close()
			if len(finished) != 0 || len(settled) != 0 {
				t.Errorf("OnFinish %d and Observe %d times more", len(finished), len(settled))
			}
		})
	}
}

// TestBothSidesFail: who receives finds the options filled in, also if it is who sends that gives up.
func TestBothSidesFail(t *testing.T) {
	leak.Check(t)
	address := grpctest.Serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
		s.SetTrailer(metadata.Pairs("try", "1"))
		return unavailable(s)
	}})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 1).DialOptions()...))
	for range 300 {
		var trailer metadata.MD
		stream, err := client.FullDuplexCall(t.Context(), grpc.Trailer(&trailer))
		if err != nil {
			t.Fatal(err)
		}
		var sending sync.WaitGroup
		sending.Go(func() {
			for range 100 { // bounded, for each retry sends all of them again
				if stream.Send(&grpctest.In{}) != nil {
					return
				}
			}
		})
		if _, err := stream.Recv(); status.Code(err) != codes.Unavailable || !slices.Equal(trailer["try"], []string{"1"}) {
			t.Errorf("error %v, trailer %v; want Unavailable and that of the try", err, trailer)
		}
		sending.Wait()
	}
}

// TestStream_Left: a caller who cancels and leaves, in whatever state the stream is, leaves nothing behind: the bubble
// would not end.
func TestStream_Left(t *testing.T) {
	for _, test := range []struct {
		name  string
		serve func(grpctest.BidiServer) error
		use   func(grpc_testing.TestService_FullDuplexCallClient)
	}{
		{"nothing done", echo, func(grpc_testing.TestService_FullDuplexCallClient) {}},
		{"before the headers", func(s grpctest.BidiServer) error { <-s.Context().Done(); return nil },
			func(s grpc_testing.TestService_FullDuplexCallClient) { go s.Recv() }},
		{"amid the retries", unavailable, func(s grpc_testing.TestService_FullDuplexCallClient) { go s.Recv() }},
		{"committed", echo, func(s grpc_testing.TestService_FullDuplexCallClient) { s.Context() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				retries := perTry(1000)
				retries.Config.On = retry.On{Conditions: retry.Unavailable | retry.Reset}
				retries.Config.Backoff, retries.Config.MaxBackoff = time.Second, time.Second
				retries.Limiter = retry.LimiterConfig{Fraction: 1}
				client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: test.serve}, retries.DialOptions()...)
				defer stop()
				ctx, cancel := context.WithCancel(t.Context())
				stream, err := client.FullDuplexCall(ctx)
				if err != nil {
					t.Fatal(err)
				}
				test.use(stream)
				time.Sleep(2500 * time.Millisecond)
				cancel()
				synctest.Wait()
			})
		})
	}
}

// TestStream_SlotsComeBack: however tries end, the limiter has all its slots in the end.
func TestStream_SlotsComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int32
		fails := func(s grpctest.BidiServer) error {
			if calls.Add(1)%3 != 0 {
				return unavailable(s)
			}
			return echo(s)
		}
		loop := retry.Loop{}
		var err error
		loop.Policy, err = retry.NewPolicy(retry.Config{Retries: 2, On: retry.On{Conditions: retry.Unavailable},
			PerTryTimeout: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		if loop.Limiter, err = retry.NewLimiter(retry.LimiterConfig{MaxRetries: 1}, nil); err != nil {
			t.Fatal(err)
		}
		client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: fails}, grpc.WithStreamInterceptor(
			func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer,
				opts ...grpc.CallOption) (grpc.ClientStream, error) {
				return retrygrpc.NewStream(ctx, &loop, desc, cc, method, streamer, nil, opts...)
			}))
		defer stop()
		for i := range 20 {
			ctx, cancel := context.WithCancel(t.Context())
			stream, err := client.FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			stream.Send(&grpctest.In{})
			if i%2 == 0 {
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			cancel()
			synctest.Wait()
		}
		if !loop.Limiter.Acquire() {
			t.Error("a slot of the limiter was not given back")
		}
	})
}

// TestStream_BothWays sends and receives at once while tries fail, under the race detector.
func TestStream_BothWays(t *testing.T) {
	leak.Check(t)
	var calls atomic.Int32
	address := grpctest.Serve(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
		if n := int(calls.Add(1)); n%4 != 0 {
			return afterReading(n % 4)(s)
		}
		return echo(s)
	}})
	client := grpctest.NewClient(grpctest.Dial(t, address, fast("unavailable", 9).DialOptions()...))
	for range 50 {
		stream, err := client.FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var sending sync.WaitGroup
		sending.Go(func() {
			for _, text := range strings.Split("abcdefgh", "") {
				if err := stream.Send(&grpctest.In{Payload: payload(text)}); err != nil {
					t.Errorf("Send: %v", err)
				}
			}
			stream.CloseSend()
		})
		if got := receiveAll(t, stream); got != "abcdefgh" {
			t.Errorf("received %q", got)
		}
		sending.Wait()
	}
}

// refusingStream is a stream whose messages an interceptor refuses.
type refusingStream struct{ grpc.ClientStream }

func (refusingStream) RecvMsg(any) error { return status.Error(codes.DataLoss, "not a good message") }

// If an interceptor ends a stream, the stream ends for the server, too.
func TestStreamEndedByAnInterceptor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		over := false
		client, stop := grpctest.Connect(t, &grpctest.Service{Bidi: func(s grpctest.BidiServer) error {
			err := s.SendHeader(nil)
			<-s.Context().Done()
			over = true
			return err
		}}, append(fast("unavailable", 1).DialOptions(), grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc,
			cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			s, err := streamer(ctx, desc, cc, method, opts...)
			return refusingStream{s}, err
		}))...)
		defer stop()
		stream, err := client.FullDuplexCall(t.Context())
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.DataLoss {
			t.Errorf("error %v, want DataLoss", err)
		}
		if synctest.Wait(); !over {
			t.Error("the server still serves the stream")
		}
	})
}
