package tracingmesh

import (
	"go.opentelemetry.io/otel/attribute"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/workload"
)

// The attributes of the peer are computed only for recorded spans. The conversion to these types costs nothing.
type (
	callee mesh.Call    // the peer is that of the last attempt
	tried  mesh.Attempt // the peer is that of the attempt
	sender mesh.Inbound // the peer is the sender of the request
)

// Append implements spans.Peer.
func (c *callee) Append(all []attribute.KeyValue) []attribute.KeyValue {
	if c.Last == nil {
		return appendDestination(all, workload.Nobody(""))
	}
	return (*tried)(c.Last).Append(all)
}

// Append implements spans.Peer.
func (a *tried) Append(all []attribute.KeyValue) []attribute.KeyValue {
	if a.Peer == nil {
		return appendDestination(all, workload.ByIdentity(a.PeerID, ""))
	}
	return appendDestination(all, workload.ByDiscovery(a.Peer, a.PeerID, workload.NamespaceOf(a.Call.Target.Host), ""))
}

// Append implements spans.Peer.
func (in *sender) Append(all []attribute.KeyValue) []attribute.KeyValue {
	w := workload.ByIdentity(in.Peer, "")
	return append(all, attribute.String("istio.source_workload", w.Name), attribute.String("istio.source_namespace", w.Namespace),
		attribute.String("istio.source_canonical_service", w.Service))
}

func appendDestination(all []attribute.KeyValue, w workload.Workload) []attribute.KeyValue {
	return append(all, attribute.String("istio.destination_workload", w.Name), attribute.String("istio.destination_namespace", w.Namespace),
		attribute.String("istio.destination_canonical_service", w.Service))
}
