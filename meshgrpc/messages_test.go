package meshgrpc_test

import (
	"context"
	"io"
	"runtime"
	"sync/atomic"
	"testing"
	"weak"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// counted has what observers of both sides were told about messages, and at the ends of calls.
type counted struct {
	sent, received, toSend, toReceive atomic.Int64 // of the caller; of the handler
	calls                             chan mesh.Call
	inbound                           chan mesh.Inbound
}

func newCounted() *counted {
	return &counted{calls: make(chan mesh.Call, 10), inbound: make(chan mesh.Inbound, 10)}
}

func (n *counted) calling(t *testing.T) mesh.Option {
	return mesh.WithObserver(mesh.Observer{
		AttemptStart: func(ctx context.Context, a *mesh.Attempt) context.Context {
			a.Sent.SetHeader("X-Envoy-Peer-Metadata", "client")
			return ctx
		},
		CallMessage: func(_ context.Context, c *mesh.Call, sent bool) {
			if c.Last == nil || c.Last.Peer == nil || c.Target.Host == "" {
				t.Errorf("a message of a call to %v with the attempt %v", c.Target, c.Last)
			}
			if sent {
				n.sent.Add(1)
			} else {
				n.received.Add(1)
			}
		},
		CallEnd: func(_ context.Context, c *mesh.Call) {
			ended := *c
			ended.ResponseHeader = c.ResponseHeader.Clone()
			last := *c.Last
			ended.Last = &last
			n.calls <- ended
		},
	})
}

func (n *counted) serving() mesh.Option {
	return mesh.WithObserver(mesh.Observer{
		InboundStart: func(ctx context.Context, in *mesh.Inbound) context.Context {
			if v := in.Request.Header.Get("X-Envoy-Peer-Metadata"); v != "" {
				in.ResponseHeader.Set("X-Envoy-Peer-Metadata", "server, to "+v)
			}
			return ctx
		},
		InboundMessage: func(_ context.Context, _ *mesh.Inbound, sent bool) {
			if sent {
				n.toSend.Add(1)
			} else {
				n.toReceive.Add(1)
			}
		},
		InboundEnd: func(_ context.Context, in *mesh.Inbound) {
			ended := *in
			ended.ResponseHeader = in.ResponseHeader.Clone()
			n.inbound <- ended
		},
	})
}

// Each function in talks makes a call that talkative answers, and returns the header that the caller sees.
var talks = []struct {
	name           string
	sent, received int64 // messages
	talk           func(*testing.T, grpctest.Client) metadata.MD
}{
	{"unary", 1, 1, func(t *testing.T, c grpctest.Client) (header metadata.MD) {
		if _, err := c.UnaryCall(bounded(t), &grpctest.Request{Payload: grpctest.Large('a')}, grpc.Header(&header)); err != nil {
			t.Error(err)
		}
		return header
	}},
	{"input", 3, 1, func(t *testing.T, c grpctest.Client) metadata.MD {
		s, err := c.StreamingInputCall(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if err := s.Send(&grpctest.Upload{Payload: grpctest.Large('a')}); err != nil {
				t.Error(err)
			}
		}
		if _, err := s.CloseAndRecv(); err != nil {
			t.Error(err)
		}
		header, _ := s.Header()
		return header
	}},
	{"both directions", 2, 2, func(t *testing.T, c grpctest.Client) metadata.MD {
		s, err := c.FullDuplexCall(bounded(t))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := s.Send(&grpctest.In{Payload: grpctest.Large('b')}); err != nil {
				t.Error(err)
			}
			if _, err := s.Recv(); err != nil {
				t.Error(err)
			}
		}
		s.CloseSend()
		if _, err := s.Recv(); err != io.EOF {
			t.Error(err)
		}
		header, _ := s.Header()
		return header
	}},
}

// talkative answers the calls of talks. It checks that handlers do not see the metadata that peers exchange.
func talkative(t *testing.T) *grpctest.Service {
	check := func(ctx context.Context) {
		if md, _ := metadata.FromIncomingContext(ctx); md["x-envoy-peer-metadata"] != nil {
			t.Error("the handler sees what the peer says of itself")
		}
	}
	return &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			check(ctx)
			return grpctest.Echo(ctx, in)
		},
		Input: func(s grpctest.UploadServer) error {
			check(s.Context())
			for {
				if _, err := s.Recv(); err == io.EOF {
					return s.SendAndClose(&grpctest.Sum{AggregatedPayloadSize: 1})
				} else if err != nil {
					return err
				}
			}
		},
		Bidi: func(s grpctest.BidiServer) error {
			check(s.Context())
			for {
				in, err := s.Recv()
				if err == io.EOF {
					return nil
				} else if err != nil {
					return err
				}
				if err := s.Send(&grpctest.Out{Payload: in.Payload}); err != nil {
					return err
				}
			}
		},
	}
}

// Observers of both sides are told of each message, and of the total size.
func TestObserversOfMessages(t *testing.T) {
	leak.Check(t)
	for _, test := range talks {
		t.Run(test.name, func(t *testing.T) {
			w, n := newTown(t), newCounted()
			w.serve(t, w.member(t, "echo", strict, n.serving()), "echo", talkative(t))
			client := w.member(t, "web", strict, n.calling(t))
			header := test.talk(t, grpctest.NewClient(connect(t, client, "mesh:///echo")))
			if header["x-envoy-peer-metadata"] != nil {
				t.Error("the caller sees what the peer says of itself")
			}
			c, in := <-n.calls, <-n.inbound
			if sent, received := n.sent.Load(), n.received.Load(); sent != test.sent || received != test.received {
				t.Errorf("caller: %d messages sent and %d received, want %d and %d", sent, received, test.sent, test.received)
			}
			if sent, received := n.toSend.Load(), n.toReceive.Load(); sent != test.received || received != test.sent {
				t.Errorf("handler: %d messages sent and %d received, want %d and %d", sent, received, test.received, test.sent)
			}
			if c.BytesSent != in.BytesReceived || c.BytesReceived != in.BytesSent || c.BytesSent < 1000 || c.BytesReceived < 5 {
				t.Errorf("%d bytes sent and %d received, %d received and %d sent", c.BytesSent, c.BytesReceived, in.BytesReceived, in.BytesSent)
			}
			if got := c.ResponseHeader.Get("X-Envoy-Peer-Metadata"); got != "server, to client" {
				t.Errorf("the observer saw the header %v", c.ResponseHeader)
			}
			if in.ResponseHeader.Get("X-Envoy-Peer-Metadata") == "" {
				t.Errorf("the observer of the server saw the header %v", in.ResponseHeader)
			}
			if c.Last.Peer.ServiceAccount != "echo" || c.Last.PeerID != "spiffe://cluster.local/ns/default/sa/echo" {
				t.Errorf("the peer is %q, %+v", c.Last.PeerID, c.Last.Peer)
			}
		})
	}
}

// The observer is told of a message once, even if the mesh sends it again.
func TestObserversOfMessagesThatAreSentAgain(t *testing.T) {
	leak.Check(t)
	for _, test := range talks {
		t.Run(test.name, func(t *testing.T) {
			var calls atomic.Int64
			s := talkative(t)
			refuse := func() error {
				if calls.Add(1) < 3 {
					return status.Error(codes.Unavailable, "not yet")
				}
				return nil
			}
			s.Options = append(s.Options,
				grpc.UnaryInterceptor(func(ctx context.Context, m any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
					if err := refuse(); err != nil {
						return nil, err
					}
					return handler(ctx, m)
				}),
				grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
					if err := refuse(); err != nil {
						return err
					}
					return handler(srv, s)
				}))
			var registry discovery.Memory
			registry.Set("echo", serve(t, s))
			n := newCounted()
			m := meshtest.New(t, route("    retries: {attempts: 3, retryOn: unavailable}\n"), mesh.WithDiscovery(&registry), n.calling(t))
			s.Unary = grpctest.Echo // without a mesh, the server does not hide metadata
			s.Input = func(s grpctest.UploadServer) error {
				for {
					if _, err := s.Recv(); err != nil {
						return s.SendAndClose(&grpctest.Sum{})
					}
				}
			}
			s.Bidi = grpctest.EchoStream
			test.talk(t, grpctest.NewClient(connect(t, m, "mesh:///echo")))
			c := <-n.calls
			if sent, received := n.sent.Load(), n.received.Load(); sent != test.sent || received != test.received || c.Attempts != 3 {
				t.Errorf("%d messages sent and %d received in %d attempts, want %d and %d in 3", sent, received, c.Attempts, test.sent, test.received)
			}
		})
	}
}

// A call may be cancelled while its only message is awaited. That is no data race with reporting the message.
func TestMessagesOfACancelledCall(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, &grpctest.Service{Input: func(s grpctest.UploadServer) error {
		if err := s.SendHeader(nil); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}}))
	m := meshtest.New(t, "", mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
		CallMessage: func(context.Context, *mesh.Call, bool) {},
	}))
	client := grpctest.NewClient(connect(t, m, "mesh:///echo"))
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := client.StreamingInputCall(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Header(); err != nil {
			t.Fatal(err)
		}
		go cancel()
		if _, err := stream.CloseAndRecv(); status.Code(err) != codes.Canceled {
			t.Errorf("end of stream: %v, want Canceled", err)
		}
	}
}

// An observed stream does not keep the message that its caller received last.
func TestReceivedMessageIsNotKept(t *testing.T) {
	leak.Check(t)
	var registry discovery.Memory
	registry.Set("echo", serve(t, echoStreams))
	var w watched
	client := grpctest.NewClient(connect(t, meshtest.New(t, "", mesh.WithDiscovery(&registry), w.observer()), "mesh:///echo"))
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&grpctest.In{}); err != nil {
		t.Fatal(err)
	}
	received, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	kept := weak.Make(received)
	received = nil
	if !await.Done(func() bool { runtime.GC(); return kept.Value() == nil }) {
		t.Error("the message is kept")
	}
	runtime.KeepAlive(stream)
}
