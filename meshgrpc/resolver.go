package meshgrpc

import (
	"errors"
	"fmt"

	"google.golang.org/grpc/resolver"
)

var errTarget = errors.New(`meshgrpc: a target of the mesh is "mesh:///host:port"`)

// notTarget returns the error of a target that names no host of the mesh.
func notTarget(target string) error { return fmt.Errorf("%w, and not %q", errTarget, target) }

// resolverBuilder resolves targets with the scheme "mesh" to an empty list: the mesh chooses an endpoint for each call.
type resolverBuilder struct{}

func (resolverBuilder) Scheme() string { return scheme }

func (resolverBuilder) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	_ = cc.UpdateState(resolver.State{}) // another load balancer may refuse an empty list; calls say what is wrong with it, or with the target
	return noResolver{}, nil
}

type noResolver struct{}

func (noResolver) ResolveNow(resolver.ResolveNowOptions) {}
func (noResolver) Close()                                {}
