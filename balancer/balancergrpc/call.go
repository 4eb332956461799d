package balancergrpc

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/balancer"
)

// call is what the picks of a call know about it. It travels in the context, and is itself that context: one allocation.
type call struct {
	context.Context
	unary bool
	waits bool // grpc.WaitForReady
	info  balancer.PickInfo

	picked atomic.Bool // a picker of ours has seen the call

	mu    sync.Mutex
	tried []string
	room  [3]string // for tried
}

type callKey struct{}

// Value implements context.Context.
func (c *call) Value(key any) any {
	if key == (callKey{}) {
		return c
	}
	return c.Context.Value(key)
}

func callOf(ctx context.Context) *call {
	c, _ := ctx.Value(callKey{}).(*call)
	return c
}

func (c *Client) newCall(ctx context.Context, unary bool, opts []grpc.CallOption) *call {
	call := &call{Context: ctx, unary: unary}
	call.tried = call.room[:0]
	for _, opt := range opts {
		if failFast, ok := opt.(grpc.FailFastCallOption); ok {
			call.waits = !failFast.FailFast
		}
	}
	if c.Config.HashKey.Source != balancer.NoKey {
		if key, ok := hashKey(ctx, c.Config.HashKey); ok {
			call.info.Hash, call.info.HasHash = balancer.Hash(key), true
		}
	}
	return call
}

// pickInfo returns what the next pick depends on.
func (c *call) pickInfo() balancer.PickInfo {
	if c == nil {
		return balancer.PickInfo{}
	}
	info := c.info
	if c.picked.Swap(true) { // it is not the first
		c.mu.Lock()
		info.Tried = c.tried[:len(c.tried):len(c.tried)]
		c.mu.Unlock()
	}
	return info
}

// sentTo remembers an endpoint. Picks must do that: gRPC retries calls by itself, below all interceptors.
func (c *call) sentTo(id string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	if !slices.Contains(c.tried, id) {
		c.tried = append(c.tried, id)
	}
	c.mu.Unlock()
}

// hashKey returns the key of a call, and false if it has none.
func hashKey(ctx context.Context, k balancer.HashKey) (string, bool) {
	switch k.Source {
	case balancer.HeaderKey:
		values := metadata.ValueFromOutgoingContext(ctx, k.Name)
		return strings.Join(values, ","), len(values) > 0
	case balancer.CookieKey:
		for _, line := range metadata.ValueFromOutgoingContext(ctx, "cookie") {
			cookies, err := http.ParseCookie(line)
			if err != nil {
				continue
			}
			for _, cookie := range cookies {
				if cookie.Name == k.Name {
					return cookie.Value, true
				}
			}
		}
	case balancer.SourceIPKey:
		if p, ok := peer.FromContext(ctx); ok && p.Addr != nil {
			if host, _, err := net.SplitHostPort(p.Addr.String()); err == nil {
				return host, true
			}
		}
		return k.SourceIP, k.SourceIP != ""
	}
	return "", false
}
