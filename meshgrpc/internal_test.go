package meshgrpc

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"weak"

	"google.golang.org/grpc"
	"google.golang.org/grpc/balancer"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/grpctest"
)

// groupsOf is an option that notes the groups of connections that calls use.
func groupsOf(groups *sync.Map) grpc.DialOption {
	return grpc.WithChainUnaryInterceptor(func(ctx context.Context, method string, in, out any, cc *grpc.ClientConn,
		invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		t := ctx.Value(tryKey{}).(*try)
		done := t.done
		t.done = func(info balancer.DoneInfo) {
			groups.Store(t.conn.group, true)
			done(info)
		}
		return invoker(ctx, method, in, out, cc, opts...)
	})
}

func (g *group) size() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.all)
}

// A call that came too late to see that a connection is ready does not have another one made.
func TestDialWhereReady(t *testing.T) {
	_, endpoints := loopback(t, 1)
	var groups sync.Map
	conn := through(t, endpoints, mesh.Observer{}, groupsOf(&groups))
	if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	for key := range groups.Range {
		g := key.(*group)
		if c, err := g.dial(true); c != nil || err != nil || g.size() != 1 {
			t.Errorf("dial = %v, %v, and there are %d connections; want none, and 1", c != nil, err, g.size())
		}
	}
}

// A connection that has served all the calls it may is closed, whoever comes to see that last.
func TestRetiredConnectionCloses(t *testing.T) {
	_, endpoints := loopback(t, 1)
	var groups sync.Map
	conn := through(t, endpoints, mesh.Observer{}, groupsOf(&groups))
	if _, err := grpctest.NewClient(conn).UnaryCall(t.Context(), &grpctest.Request{}); err != nil {
		t.Fatal(err)
	}
	for key := range groups.Range {
		g := key.(*group)
		c := g.only.Load()
		g.limits.calls = 1
		c.served.Store(1)
		c.retire()
		g.only.Store(c) // as it was when a call looked that now comes too late
		// While that call is counted the last one before it ends, and does not close the connection.
		if ready, _ := g.pick(); ready != nil {
			t.Error("a connection was picked that takes no more calls")
		}
		if n := g.size(); n != 0 {
			t.Errorf("%d connections are left, want none", n)
		}
	}
}

// A group that its ClientConn closes before it is watched is not kept until its link closes.
func TestWatchClosed(t *testing.T) {
	tries, _ := picks(t, 1)
	link := tries[0].link
	g := &group{owner: new(connections), link: link}
	g.close()
	g.watch()
	kept := weak.Make(g)
	g = nil
	runtime.GC()
	if kept.Value() != nil {
		t.Error("the group is kept")
	}
	runtime.KeepAlive(link)
}
