package servers

import (
	"context"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// The types of resources that an agent sends to Envoy.
const (
	XDSListener = "type.googleapis.com/envoy.config.listener.v3.Listener"
	XDSRoute    = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	XDSCluster  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
)

// XDS returns the resources of a type that the agent sends to the sidecar with the ID of a registered proxy service, by their
// names. Routes are asked for by name; without names it returns all. The test may then decode them as Envoy does.
func (c *Consul) XDS(t testing.TB, proxyID, typeURL string, names ...string) map[string][]byte {
	t.Helper()
	conn, err := grpc.NewClient(c.GRPC, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := discovery.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	node := &core.Node{Id: proxyID, Cluster: proxyID, UserAgentName: "envoy", UserAgentVersionType: &core.Node_UserAgentBuildVersion{
		UserAgentBuildVersion: &core.BuildVersion{Version: &envoytype.SemanticVersion{MajorNumber: 1, MinorNumber: 35, Patch: 3}},
	}}
	if err := stream.Send(&discovery.DeltaDiscoveryRequest{Node: node, TypeUrl: typeURL, ResourceNamesSubscribe: names}); err != nil {
		t.Fatal(err)
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			t.Fatalf("xDS for %s: %v", proxyID, err)
		}
		if answer.TypeUrl != typeURL {
			continue
		}
		found := make(map[string][]byte, len(answer.Resources))
		for _, r := range answer.Resources {
			found[r.Name] = r.Resource.Value
		}
		return found
	}
}
