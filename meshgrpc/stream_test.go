package meshgrpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strconv"
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
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/timeout"
)

// watched counts the calls and tries that the mesh has not seen the end of.
type watched struct{ calls, tries, ends atomic.Int64 }

func (w *watched) observer() mesh.Option {
	return mesh.WithObserver(mesh.Observer{
		CallStart:    func(ctx context.Context, _ *mesh.Call) context.Context { w.calls.Add(1); return ctx },
		CallEnd:      func(context.Context, *mesh.Call) { w.calls.Add(-1); w.ends.Add(1) },
		AttemptStart: func(ctx context.Context, _ *mesh.Attempt) context.Context { w.tries.Add(1); return ctx },
		AttemptEnd:   func(context.Context, *mesh.Attempt) { w.tries.Add(-1) },
	})
}

// settled fails the test unless everything that began has ended.
func (w *watched) settled(t *testing.T) {
	t.Helper()
	if !await.Done(func() bool { return w.calls.Load() == 0 && w.tries.Load() == 0 }) {
		t.Errorf("%d calls and %d tries have no end", w.calls.Load(), w.tries.Load())
	}
}

// A stream is ended, in one of several ways, at every point of its life. The mesh sees the end of each, once.
func TestStreamLifecycle(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, echoStreams), serve(t, echoStreams))
	var w watched
	m := meshtest.New(t, threeTries, mesh.WithDiscovery(&registry), w.observer())
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	const points = 7
	for _, way := range []string{"cancel", "deadline", "half-close", "caller's OnFinish"} {
		for point := range points {
			t.Run(fmt.Sprintf("%s at %d", way, point), func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				want := codes.Canceled
				end := cancel
				if way == "deadline" {
					want = codes.DeadlineExceeded
					var expire context.CancelFunc
					ctx, expire = context.WithTimeout(ctx, 20*time.Millisecond)
					defer expire()
					end = func() { <-ctx.Done() }
				}
				finished := make(chan error, 2)
				if point == 0 && way != "half-close" {
					end()
				}
				stream, err := client.FullDuplexCall(ctx, grpc.OnFinish(func(err error) { finished <- err }))
				if err != nil {
					if status.Code(err) != want {
						t.Errorf("new stream: %v, want %v", err, want)
					}
					if got := <-finished; status.Code(got) != want {
						t.Errorf("OnFinish(%v), want %v", got, want)
					}
					return
				}
				ended := false
				at := func(p int) {
					if p == point && !ended {
						ended = true
						if way == "half-close" {
							if err := stream.CloseSend(); err != nil {
								t.Error(err)
							}
							want = codes.OK
							return
						}
						end()
					}
				}
				at(0)
				at(1)
				for i := range 2 {
					if ended {
						break
					}
					if err := stream.Send(&grpctest.In{}); err != nil && !ended {
						break // the deadline came early on a slow machine; Recv says so
					}
					at(2 + 2*i)
					if ended {
						break
					}
					if _, err := stream.Recv(); err != nil {
						break
					}
					at(3 + 2*i)
				}
				at(6)
				if !ended {
					end()
				}
				for err == nil {
					_, err = stream.Recv()
				}
				if err == io.EOF {
					err = nil
				}
				if status.Code(err) != want {
					t.Errorf("end of stream: %v, want %v", err, want)
				}
				if got := <-finished; status.Code(got) != want {
					t.Errorf("OnFinish(%v), want %v", got, want)
				}
				if len(finished) > 0 {
					t.Error("OnFinish was called twice")
				}
			})
		}
	}
	w.settled(t)
}

// A stream that its caller abandons ends with its context, or with the connection.
func TestStreamAbandoned(t *testing.T) {
	for _, way := range []string{"cancel", "close"} {
		t.Run(way, func(t *testing.T) {
			leak.Check(t)
			var registry discovery.Memory
			registry.Set("echo", serve(t, echoStreams))
			var w watched
			m := meshtest.New(t, "", mesh.WithDiscovery(&registry), w.observer())
			conn := connect(t, m, "mesh:///echo")
			client := grpctest.NewClient(conn)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			for i := range 10 {
				stream, err := client.FullDuplexCall(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if i%2 == 0 {
					continue // not even answered
				}
				if err := stream.Send(&grpctest.In{}); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
			}
			if way == "cancel" {
				cancel()
			} else {
				conn.Close()
			}
			w.settled(t)
			if n := w.ends.Load(); n != 10 {
				t.Errorf("%d calls ended, want 10", n)
			}
		})
	}
}

// A stream is not retried once it has sent more than the buffer holds.
func TestStreamBuffer(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	var read atomic.Int64
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{
		Input: func(stream grpctest.UploadServer) error {
			n := tries.Add(1)
			for size := 0; ; {
				in, err := stream.Recv()
				if err == io.EOF {
					read.Store(int64(size))
					if n < 3 {
						return status.Error(codes.Unavailable, "not yet")
					}
					return stream.SendAndClose(&grpctest.Sum{AggregatedPayloadSize: int32(size)})
				}
				if err != nil {
					return err
				}
				size += len(in.GetPayload().GetBody())
			}
		},
	})})
	client := grpctest.NewClient(conn)
	for _, test := range []struct {
		name     string
		messages int // of 1,000 bytes
		opts     []grpc.CallOption
		want     codes.Code
		tries    int64
	}{
		{"within", 250, nil, codes.OK, 3},
		{"beyond", 300, nil, codes.Unavailable, 1},
		{"beyond the caller's bound", 20, []grpc.CallOption{grpc.MaxRetryRPCBufferSize(10_000)}, codes.Unavailable, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			tries.Store(0)
			stream, err := client.StreamingInputCall(t.Context(), test.opts...)
			if err != nil {
				t.Fatal(err)
			}
			for range test.messages {
				if err := stream.Send(&grpctest.Upload{Payload: &grpc_testing.Payload{Body: make([]byte, 1000)}}); err != nil {
					t.Fatal(err)
				}
			}
			sum, err := stream.CloseAndRecv()
			if status.Code(err) != test.want || tries.Load() != test.tries {
				t.Errorf("%v after %d tries, want %v after %d", err, tries.Load(), test.want, test.tries)
			}
			if err == nil && int(sum.AggregatedPayloadSize) != test.messages*1000 {
				t.Errorf("the last try was sent %d bytes, want %d", sum.AggregatedPayloadSize, test.messages*1000)
			}
		})
	}
}

// Endpoints come and go while calls of all kinds are made. No call fails.
func TestStreamChurn(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	var endpoints []discovery.Endpoint
	for range 6 {
		endpoints = append(endpoints, serve(t, echoStreams))
	}
	registry.Set("echo", endpoints[:3]...)
	nobody := meshtest.Refusing(t) // always one of the endpoints, so that tries fail before they are answered
	var w watched
	m := meshtest.New(t, threeTries, mesh.WithDiscovery(&registry), w.observer())
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	stop := make(chan struct{})
	var churn, callers sync.WaitGroup
	churn.Go(func() {
		for {
			rand.Shuffle(len(endpoints), func(i, j int) { endpoints[i], endpoints[j] = endpoints[j], endpoints[i] })
			registry.Set("echo", append(slices.Clone(endpoints[:1+rand.IntN(len(endpoints))]), nobody)...)
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
		}
	})
	calls := []func() error{
		func() error { _, err := client.UnaryCall(t.Context(), &grpctest.Request{}); return err },
		func() error {
			stream, err := client.FullDuplexCall(t.Context())
			for range 3 {
				if err == nil {
					if err = stream.Send(&grpctest.In{}); err == nil {
						_, err = stream.Recv()
					}
				}
			}
			if err == nil {
				stream.CloseSend()
				if _, err = stream.Recv(); err == io.EOF {
					err = nil
				}
			}
			return err
		},
		func() error {
			stream, err := client.StreamingInputCall(t.Context())
			for range 3 {
				if err == nil {
					err = stream.Send(&grpctest.Upload{})
				}
			}
			if err == nil {
				var sum *grpctest.Sum
				if sum, err = stream.CloseAndRecv(); err == nil && sum.AggregatedPayloadSize != 3 {
					err = fmt.Errorf("%d messages arrived of 3", sum.AggregatedPayloadSize)
				}
			}
			return err
		},
		func() error {
			stream, err := client.StreamingOutputCall(t.Context(),
				&grpctest.In{ResponseParameters: make([]*grpc_testing.ResponseParameters, 3)})
			n := 0
			for err == nil {
				if _, err = stream.Recv(); err == nil {
					n++
				}
			}
			if err == io.EOF && n == 3 {
				return nil
			}
			return fmt.Errorf("%d messages of 3, and %w", n, err)
		},
	}
	for _, call := range calls {
		for range 2 {
			callers.Go(func() {
				for range 100 {
					if err := call(); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	callers.Wait()
	close(stop)
	churn.Wait()
	w.settled(t)
}

// A reload changes where the next call over a ClientConn goes. A stream stays where it is.
func TestReload(t *testing.T) {
	leak.Check(t)
	named := func(name string) *grpctest.Service {
		return &grpctest.Service{
			Unary: func(context.Context, *grpctest.Request) (*grpctest.Response, error) {
				return &grpctest.Response{Username: name}, nil
			},
			Bidi: func(stream grpctest.BidiServer) error {
				_ = stream.SetHeader(metadata.Pairs("x-version", name))
				return echoStreams.Bidi(stream)
			},
		}
	}
	var registry discovery.Memory
	var endpoints []discovery.Endpoint
	for _, name := range []string{"v1", "v2"} {
		e := serve(t, named(name))
		e.Labels = map[string]string{"version": name}
		endpoints = append(endpoints, e)
	}
	registry.Set("echo", endpoints...)
	documents := func(subset string) string {
		return `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: echo}
spec: {host: echo, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: echo}
spec: {hosts: [echo], http: [{route: [{destination: {host: echo, subset: ` + subset + `}}]}]}
`
	}
	m := meshtest.New(t, documents("v1"), mesh.WithDiscovery(&registry))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	stream, err := client.FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpctest.In{}); err != nil {
		t.Fatal(err)
	}
	if header, err := stream.Header(); err != nil || header["x-version"][0] != "v1" {
		t.Fatalf("header %v, %v", header, err)
	}
	for i := range 10 {
		subset := "v" + strconv.Itoa(1+i%2)
		if err := m.Apply(policy.Source{Name: "test.yaml", Data: []byte(documents(subset))}); err != nil {
			t.Fatal(err)
		}
		reply, err := client.UnaryCall(t.Context(), &grpctest.Request{})
		if err != nil || reply.Username != subset {
			t.Fatalf("reply %v, %v, want %s", reply, err, subset)
		}
		if err := stream.Send(&grpctest.In{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	stream.CloseSend()
	_, _ = stream.Recv()
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("end of stream: %v", err)
	}
}

// The limits on bodies hold for streams: for the whole stream, and for each wait for a message.
func TestStreamLimits(t *testing.T) {
	for _, test := range []struct {
		name, documents string
		protection      mesh.Protection
	}{
		{"timeout", route("    timeout: 100ms\n"), mesh.Protection{}},
		{"idle", "", mesh.Protection{BodyIdle: 50 * time.Millisecond}},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, endpoint, transport := inMemory(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
					if _, err := stream.Recv(); err != nil {
						return err
					}
					if err := stream.Send(&grpctest.Out{}); err != nil {
						return err
					}
					<-stream.Context().Done()
					return stream.Context().Err()
				}})
				var w watched
				m := meshtest.New(t, test.documents, transport, echoAt(endpoint), mesh.WithProtection(test.protection), w.observer())
				stream, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).FullDuplexCall(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				if err := stream.Send(&grpctest.In{}); err != nil {
					t.Fatal(err)
				}
				if _, err := stream.Recv(); err != nil {
					t.Fatal(err)
				}
				stream.CloseSend()     // a timeout begins now
				_, err = stream.Recv() // nothing comes
				if status.Code(err) != codes.DeadlineExceeded || kindOf(err) == 0 {
					t.Errorf("end of stream: %v, want DeadlineExceeded and our own timeout", err)
				}
				w.settled(t)
			})
		})
	}
}

// Only the waits for messages are bounded, not the time that the caller takes between them.
func TestIdleLimitSparesASlowCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, endpoint, transport := inMemory(t, echoStreams)
		m := meshtest.New(t, "", transport, echoAt(endpoint), mesh.WithProtection(mesh.Protection{BodyIdle: 50 * time.Millisecond}))
		stream, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := stream.Send(&grpctest.In{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		stream.CloseSend()
		if _, err := stream.Recv(); err != io.EOF {
			t.Errorf("end of stream: %v", err)
		}
	})
}

// The timeout of a route begins when the whole request has been sent, as in Envoy, so it does not end a bidirectional stream.
func TestTimeoutDoesNotCutAStreamThatIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, endpoint, transport := inMemory(t, echoStreams)
		m := meshtest.New(t, route("    timeout: 2s\n"), transport, echoAt(endpoint))
		stream, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).FullDuplexCall(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 10 {
			if err := stream.Send(&grpctest.In{}); err != nil {
				t.Fatal(err)
			}
			if _, err := stream.Recv(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
	})
}

// A stream ends, even though its timeout has not begun, if the server neither reads nor answers for five minutes.
func TestServerThatDoesNotRead(t *testing.T) {
	for _, test := range []struct {
		name    string
		answers int // of the server, one every four minutes
		want    time.Duration
	}{
		{"silent", 0, 5 * time.Minute},
		{"answers", 5, (4*4 + 5) * time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, endpoint, transport := inMemory(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
					for range test.answers {
						_ = stream.Send(&grpctest.Out{})
						time.Sleep(4 * time.Minute)
					}
					<-stream.Context().Done()
					return stream.Context().Err()
				}})
				m := meshtest.New(t, route("    timeout: 1h\n"), transport, echoAt(endpoint))
				stream, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).FullDuplexCall(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				received := make(chan error, 1)
				go func() {
					var err error
					for err == nil {
						_, err = stream.Recv()
					}
					received <- err
				}()
				began := time.Now()
				for err == nil {
					err = stream.Send(&grpctest.In{Payload: grpctest.Large('a')})
				}
				if took := time.Since(began); took != test.want {
					t.Errorf("ended after %v, want %v", took, test.want)
				}
				err = <-received
				if status.Code(err) != codes.DeadlineExceeded || kindOf(err) != timeout.SendIdle {
					t.Errorf("end of stream: %v, want DeadlineExceeded and our own limit", err)
				}
			})
		})
	}
}

// A stream that cannot be sent again ends after one try, with an error that names the limit that was exceeded.
func TestLimitOfACommittedStreamIsToldAsItIs(t *testing.T) {
	for _, test := range []struct{ name, rule, want string }{
		{"timeout", "    timeout: 100ms\n", "timeout"},
		{"perTryTimeout", "    retries: {attempts: 2, perTryTimeout: 100ms, retryOn: \"5xx,reset\"}\n", "per-try"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var tries atomic.Int64
				_, endpoint, transport := inMemory(t, &grpctest.Service{
					Bidi: func(stream grpctest.BidiServer) error {
						tries.Add(1)
						for {
							if _, err := stream.Recv(); err != nil {
								<-stream.Context().Done()
								return stream.Context().Err()
							}
						}
					},
				})
				m := meshtest.New(t, route(test.rule), transport, echoAt(endpoint))
				stream, err := grpctest.NewClient(connect(t, m, "mesh:///echo")).FullDuplexCall(bounded(t), grpc.MaxRetryRPCBufferSize(10))
				if err != nil {
					t.Fatal(err)
				}
				_ = stream.Send(&grpctest.In{Payload: grpctest.Large('a')})
				synctest.Wait() // until the server has the stream
				stream.CloseSend()
				_, err = stream.Recv()
				if status.Code(err) != codes.DeadlineExceeded || kindOf(err) == 0 || !strings.Contains(err.Error(), test.want) {
					t.Errorf("end of stream: %v, want DeadlineExceeded and our own %s", err, test.want)
				}
				if n := tries.Load(); n != 1 {
					t.Errorf("%d tries, want 1", n)
				}
			})
		})
	}
}

// A stream that cannot be sent again fails like any other if its connection is lost before it is answered.
func TestCommittedStreamThatIsCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, endpoint, _ := inMemory(t, &grpctest.Service{
			Bidi: func(stream grpctest.BidiServer) error {
				for {
					if _, err := stream.Recv(); err != nil {
						return err
					}
				}
			},
		})
		var conn net.Conn
		transport := mesh.WithTransport(&http.Transport{DialContext: func(ctx context.Context, to, address string) (_ net.Conn, err error) {
			conn, err = network.DialContext(ctx, to, address)
			return conn, err
		}})
		ends := make(chan mesh.Call, 1)
		m := meshtest.New(t, threeTries, transport, echoAt(endpoint), mesh.WithObserver(mesh.Observer{
			CallEnd: func(_ context.Context, c *mesh.Call) { ends <- *c },
		}))
		client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
		for _, room := range []int{256 << 10, 10} {
			stream, err := client.FullDuplexCall(bounded(t), grpc.MaxRetryRPCBufferSize(room))
			if err != nil {
				t.Fatal(err)
			}
			if err := stream.Send(&grpctest.In{Payload: grpctest.Large('a')}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // until the server has the message
			conn.Close()
			_, err = stream.Recv()
			end := <-ends
			failed, ok := errors.AsType[*mesh.Error](err)
			if !ok || status.Code(err) != codes.Unavailable || failed.Flags != end.Flags || end.Status != 0 || end.Flags&mesh.FlagConnectionTerminated == 0 {
				t.Errorf("room for %d bytes: %v; observers see %d, %v", room, err, end.Status, end.Flags)
			}
		}
	})
}

// Documents edit the trailer of a stream that ends with an error, whether or not it could have been sent again.
func TestTrailerOfAnErrorIsEdited(t *testing.T) {
	leak.Check(t)
	_, conn := one(t, route("    headers: {response: {set: {x-edited: \"yes\"}}}\n"), []discovery.Endpoint{serve(t, &grpctest.Service{
		Bidi: func(stream grpctest.BidiServer) error {
			_, _ = stream.Recv()
			return status.Error(codes.NotFound, "none")
		},
	})})
	for _, room := range []int{256 << 10, 1} {
		stream, err := grpctest.NewClient(conn).FullDuplexCall(bounded(t), grpc.MaxRetryRPCBufferSize(room))
		if err == nil {
			err = stream.Send(&grpctest.In{Payload: grpctest.Large('a')})
		}
		if err == nil {
			_, err = stream.Recv()
		}
		if trailer := stream.Trailer(); status.Code(err) != codes.NotFound || trailer["x-edited"] == nil {
			t.Errorf("room for %d bytes: %v, trailer %v", room, err, trailer)
		}
	}
}

// Header, Trailer and Context of a stream are those of its last try.
func TestStreamMetadata(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	_, conn := one(t, threeTries, []discovery.Endpoint{serve(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		n := strconv.FormatInt(tries.Add(1), 10)
		stream.SetTrailer(metadata.Pairs("x-try", n))
		if in, err := stream.Recv(); err != nil || in.GetPayload() != nil || n == "1" {
			return status.Error(codes.Unavailable, "no")
		}
		return stream.SendHeader(metadata.Pairs("x-answer", n))
	}})})
	for _, test := range []struct {
		name    string
		in      *grpctest.In
		use     func(grpc.BidiStreamingClient[grpctest.In, grpctest.Out]) // before it is answered
		code    codes.Code
		answer  []string
		trailer string
	}{
		{"answered", &grpctest.In{}, nil, codes.OK, []string{"2"}, "2"},
		{"failed", &grpctest.In{Payload: &grpc_testing.Payload{}}, nil, codes.Unavailable, nil, "3"},
		{"Context makes a try the last", &grpctest.In{}, func(s grpc.BidiStreamingClient[grpctest.In, grpctest.Out]) {
			s.Context()
		}, codes.Unavailable, nil, "1"},
		{"and so does Trailer", &grpctest.In{}, func(s grpc.BidiStreamingClient[grpctest.In, grpctest.Out]) {
			s.Trailer()
		}, codes.Unavailable, nil, "1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			tries.Store(0)
			ctx, cancel := context.WithTimeout(t.Context(), time.Hour) // any deadline
			defer cancel()
			stream, err := grpctest.NewClient(conn).FullDuplexCall(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if test.use != nil {
				test.use(stream)
			}
			if err := stream.Send(test.in); err != nil {
				t.Fatal(err)
			}
			header, err := stream.Header()
			if err != nil || !slices.Equal(header["x-answer"], test.answer) {
				t.Errorf("header %v, %v; want x-answer %v", header, err, test.answer)
			}
			if _, err = stream.Recv(); err == io.EOF {
				err = nil
			}
			if status.Code(err) != test.code {
				t.Errorf("error %v, want %v", err, test.code)
			}
			if got := stream.Trailer()["x-try"]; !slices.Equal(got, []string{test.trailer}) {
				t.Errorf("trailer x-try %v, want %s", got, test.trailer)
			}
			at, ok := stream.Context().Deadline()
			if want, _ := ctx.Deadline(); !ok || !at.Equal(want) {
				t.Errorf("the deadline of the stream's context is %v, want %v", at, want)
			}
			if _, ok := peer.FromContext(stream.Context()); test.code == codes.OK && !ok {
				t.Error("the stream's context has no peer")
			}
		})
	}
}

// refusingStream is a stream whose messages an interceptor refuses.
type refusingStream struct{ grpc.ClientStream }

func (s refusingStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return status.Error(codes.DataLoss, "not a good message")
}

// If an interceptor ends a stream, the stream ends for the server too.
func TestStreamEndedByInterceptor(t *testing.T) {
	leak.Check(t)
	over := make(chan struct{})
	_, conn := one(t, "", []discovery.Endpoint{serve(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		defer close(over)
		if err := stream.Send(&grpctest.Out{}); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	}})}, grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := streamer(ctx, desc, cc, method, opts...)
		return refusingStream{stream}, err
	}))
	stream, err := grpctest.NewClient(conn).FullDuplexCall(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.DataLoss {
		t.Errorf("error %v, want DataLoss", err)
	}
	await.Receive(t, "the stream ends on the server", over)
}

// answeringStream is a stream that an interceptor answers without gRPC.
type answeringStream struct {
	grpc.ClientStream
	ctx context.Context
}

func (s answeringStream) Header() (metadata.MD, error) { return metadata.MD{}, nil }

func (s answeringStream) Trailer() metadata.MD { return nil }

func (s answeringStream) RecvMsg(any) error {
	<-s.ctx.Done()
	return status.FromContextError(s.ctx.Err()).Err()
}

// A stream that gRPC has no part in is over when its caller leaves, even if the caller does not look.
func TestStreamWithoutGRPC(t *testing.T) {
	leak.Check(t)
	var inner atomic.Bool
	inner.Store(true)
	_, conn := one(t, "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: echo}\n"+
		"spec: {host: echo, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}}\n",
		[]discovery.Endpoint{serve(t, echoStreams)}, grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc,
			cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			if inner.Load() {
				return answeringStream{ctx: ctx}, nil
			}
			return streamer(ctx, desc, cc, method, opts...)
		}))
	client := grpctest.NewClient(conn)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	stream, err := client.FullDuplexCall(ctx, grpc.OnFinish(func(err error) { over <- err }))
	if err == nil {
		_, err = stream.Header()
	}
	if err != nil {
		t.Fatal(err)
	}
	inner.Store(false)
	again := func() error {
		stream, err := client.FullDuplexCall(bounded(t))
		if err == nil {
			err = stream.CloseSend()
		}
		if err == nil {
			_, err = stream.Recv()
		}
		return err
	}
	if err := again(); status.Code(err) != codes.Unavailable {
		t.Errorf("a second stream: %v, want Unavailable", err)
	}
	cancel()
	if err := await.Receive(t, "the end of the stream", over); status.Code(err) != codes.Canceled {
		t.Errorf("the stream ended with %v, want Canceled", err)
	}
	if err := again(); err != io.EOF {
		t.Errorf("the next stream: %v, want io.EOF", err)
	}
}

// summingStream is an upload that an interceptor answers without gRPC.
type summingStream struct{ answeringStream }

func (summingStream) SendMsg(any) error { return nil }
func (summingStream) CloseSend() error  { return nil }
func (summingStream) RecvMsg(any) error { return nil }

// An upload is over with the only message of its response, even if gRPC has no part in it.
func TestUploadWithoutGRPC(t *testing.T) {
	leak.Check(t)
	_, conn := one(t, "", []discovery.Endpoint{serve(t, echoStreams)}, grpc.WithChainStreamInterceptor(func(ctx context.Context,
		_ *grpc.StreamDesc, _ *grpc.ClientConn, _ string, _ grpc.Streamer, _ ...grpc.CallOption) (grpc.ClientStream, error) {
		return summingStream{answeringStream{ctx: ctx}}, nil
	}))
	over := make(chan error, 1)
	stream, err := grpctest.NewClient(conn).StreamingInputCall(t.Context(), grpc.OnFinish(func(err error) { over <- err }))
	if err == nil {
		_, err = stream.CloseAndRecv()
	}
	if err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-over:
		if err != nil {
			t.Errorf("the stream ended with %v, want no error", err)
		}
	default:
		t.Error("the stream has not ended")
	}
}

// endingStream is a stream of an interceptor that returns its own error at the end.
type endingStream struct{ grpc.ClientStream }

func (s endingStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return status.Error(codes.DataLoss, "in other words")
	}
	return nil
}

// The caller gets the error that an inner interceptor returns at the end of a stream, as without the mesh.
func TestStreamEndsAsAnInterceptorSays(t *testing.T) {
	leak.Check(t)
	_, conn := one(t, "", []discovery.Endpoint{serve(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		if err := stream.Send(&grpctest.Out{}); err != nil {
			return err
		}
		return status.Error(codes.NotFound, "no more")
	}})}, grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
		streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
		stream, err := streamer(ctx, desc, cc, method, opts...)
		return endingStream{stream}, err
	}))
	stream, err := grpctest.NewClient(conn).FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := stream.Recv(); status.Code(err) != codes.DataLoss {
			t.Errorf("end of stream: %v, want DataLoss", err)
		}
	}
}

// A try was answered, but is retried. gRPC reports its end only after the next try has begun, which must go on.
func TestEndOfAnEarlierTryIsNotTheEndOfTheStream(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	taken, over := make(chan struct{}), make(chan struct{})
	_, conn := one(t, route("    retries: {attempts: 1, retryOn: \"200\", backoff: 1ms}\n"),
		[]discovery.Endpoint{serve(t, echoStreams)},
		grpc.WithChainStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string,
			streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			if tries.Add(1) == 1 {
				for i, opt := range opts {
					if finish, ok := opt.(grpc.OnFinishCallOption); ok {
						opts[i] = grpc.OnFinish(func(err error) {
							<-taken
							finish.OnFinish(err)
							close(over)
						})
					}
				}
			}
			return streamer(ctx, desc, cc, method, opts...)
		}))
	stream, err := grpctest.NewClient(conn).FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpctest.In{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil || tries.Load() != 2 {
		t.Fatalf("%v after %d tries, want a message of the second", err, tries.Load())
	}
	close(taken)
	await.Receive(t, "the end of the first try", over)
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("end of stream: %v, want io.EOF", err)
	}
}

// A try that was answered, and is repeated for what its headers say, ends for the server at once, and not with the call.
func TestAnsweredTryThatIsRepeatedEnds(t *testing.T) {
	leak.Check(t)
	var tries atomic.Int64
	over := make(chan struct{})
	ends := make(chan int, 2)
	m := meshtest.New(t, route("    retries: {attempts: 1, retryOn: \"200\", backoff: 1ms}\n"), mesh.WithObserver(mesh.Observer{
		AttemptEnd: func(_ context.Context, a *mesh.Attempt) { ends <- a.Number },
	}), echoAt(serve(t, &grpctest.Service{Bidi: func(stream grpctest.BidiServer) error {
		if err := stream.SendHeader(nil); err != nil || tries.Add(1) > 1 {
			return errors.Join(err, grpctest.EchoStream(stream))
		}
		<-stream.Context().Done()
		close(over)
		return nil
	}})))
	conn := connect(t, m, "mesh:///echo")
	stream, err := grpctest.NewClient(conn).FullDuplexCall(bounded(t))
	if err != nil {
		t.Fatal(err)
	}
	await.Receive(t, "the first try ends on the server", over)
	if n := await.Receive(t, "observers to be told", ends); n != 1 {
		t.Errorf("observers saw the end of try %d first", n)
	}
	if err := stream.Send(&grpctest.In{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil || tries.Load() != 2 {
		t.Errorf("%v after %d tries, want a message of the second", err, tries.Load())
	}
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("end of stream: %v, want io.EOF", err)
	}
}

// kindOf returns which of our limits caused err.
func kindOf(err error) timeout.Kind {
	kind, _ := timeout.Exceeded(err)
	return kind
}
