package meshgrpc_test

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/internal/rawtest"
	meshroute "github.com/nosidecar/mesh/policy/route"
)

// A ClientConn is closed while it has calls, at different points of their lives. They end like those of a bare ClientConn. They do not
// count against the endpoint, which other ClientConns go on using.
func TestClosedClientConnEjectsNoEndpoint(t *testing.T) {
	leak.Check(t)
	arrived := make(chan struct{}, 1)
	block := func(ctx context.Context) error {
		arrived <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	address := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, in *grpctest.Request) (*grpctest.Response, error) {
			if in.FillUsername {
				return &grpctest.Response{}, nil
			}
			return nil, block(ctx)
		},
		Bidi: func(s grpctest.BidiServer) error { return block(s.Context()) },
		Output: func(_ *grpctest.In, s grpctest.OutServer) error {
			if err := s.Send(&grpctest.Out{}); err != nil {
				return err
			}
			return block(s.Context())
		},
	})
	silent := silentListener(t, arrived)
	for _, test := range []struct {
		name, address string
		call          func(grpctest.Client) error
	}{
		{"unary", address, func(c grpctest.Client) error {
			_, err := c.UnaryCall(t.Context(), &grpctest.Request{})
			return err
		}},
		{"stream without an answer", address, func(c grpctest.Client) error {
			stream, err := c.FullDuplexCall(t.Context())
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}},
		{"stream that was answered", address, func(c grpctest.Client) error {
			stream, err := c.StreamingOutputCall(t.Context(), &grpctest.In{})
			for err == nil {
				_, err = stream.Recv()
			}
			return err
		}},
		{"unary that waits for the connection", silent, func(c grpctest.Client) error {
			_, err := c.UnaryCall(t.Context(), &grpctest.Request{})
			return err
		}},
		{"stream that waits for the connection", silent, func(c grpctest.Client) error {
			_, err := c.FullDuplexCall(t.Context())
			return err
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			var registry discovery.Memory
			registry.Set("echo", meshtest.EndpointOf(t, test.address))
			ejected := make(chan breaker.Event, 10)
			rule := strings.NewReplacer("consecutive5xxErrors: 3", "consecutive5xxErrors: 1", "maxEjectionPercent: 50",
				"maxEjectionPercent: 100").Replace(ejecting)
			m := meshtest.New(t, threeTries+rule, mesh.WithDiscovery(&registry), mesh.WithObserver(mesh.Observer{
				Ejection: func(_ meshroute.Target, event breaker.Event) { ejected <- event },
			}))
			end := func(conn *grpc.ClientConn) error {
				t.Helper()
				ended := make(chan error, 1)
				go func() { ended <- test.call(grpctest.NewClient(conn)) }()
				<-arrived
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				return <-ended
			}
			bare, ours := end(grpctest.Dial(t, test.address)), end(connect(t, m, "mesh:///echo"))
			if status.Code(ours) != status.Code(bare) || status.Code(ours) != codes.Canceled {
				t.Errorf("the call ended with %v, a bare one with %v", ours, bare)
			}
			if test.address == address {
				other := grpctest.NewClient(connect(t, m, "mesh:///echo"))
				if _, err := other.UnaryCall(t.Context(), &grpctest.Request{FillUsername: true}); err != nil {
					t.Errorf("another ClientConn: %v", err)
				}
			}
			select {
			case event := <-ejected:
				t.Errorf("an endpoint was ejected: %+v", event)
			default:
			}
		})
	}
}

// A server that is a client itself passes on what became of its own call: its process has closed that ClientConn. This is a status like any
// other, and not the end of the ClientConn here.
func TestServerPassesOnThatItsClientConnWasClosed(t *testing.T) {
	leak.Check(t)
	//lint:ignore SA1019 there is no other error for it
	passedOn := status.Error(codes.Unavailable, "closing transport due to: "+grpc.ErrClientConnClosing.Error())
	address := grpctest.Serve(t, &grpctest.Service{
		Unary: func(ctx context.Context, _ *grpctest.Request) (*grpctest.Response, error) {
			_ = grpc.SendHeader(ctx, nil)
			return nil, passedOn
		},
		Output: func(_ *grpctest.In, s grpctest.OutServer) error {
			_ = s.Send(&grpctest.Out{})
			return passedOn
		},
	})
	for name, dial := range bothWays(t) {
		client := grpctest.NewClient(dial(address))
		_, unary := unaryCall(t.Context(), client)
		_, stream := streamedCall(t.Context(), client)
		for _, err := range []error{unary, stream} {
			if status.Code(err) != codes.Unavailable || errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want the status of the server", name, err)
			}
		}
	}
}

// silentListener accepts connections, reports that, and sends nothing.
func silentListener(t *testing.T, accepted chan<- struct{}) string {
	t.Helper()
	listener := rawtest.Listen(t)
	rawtest.Serve(t, listener, func(conn net.Conn) {
		accepted <- struct{}{}
		_, _ = io.Copy(io.Discard, conn) // until the client is gone
	})
	return listener.Addr().String()
}
