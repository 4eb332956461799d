package retrygrpc

import (
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/internal/grpcreplay"
)

// reply is what a try leaves behind. gRPC sets the fields at the end of a try if it had a stream.
type reply struct {
	header, trailer metadata.MD
	peer            peer.Peer
}

// fill gives the caller what the last try left behind.
func (r *reply) fill(results *grpcreplay.Results) {
	if r.trailer != nil { // there was a stream
		results.Fill(r.header, r.trailer, r.peer)
	}
}
