package meshgrpc

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/internal/grpcreplay"
)

// options are the options of a call that matter here.
type options struct {
	tries    []grpc.CallOption   // for every try
	results  *grpcreplay.Results // what the caller wants back; nil for nothing
	encoding *grpcreplay.Encoding
}

// waits says whether a call waits until an endpoint is ready.
type waits uint8

const (
	asConfigured waits = iota // as the service config says
	yes
	no
)

// read sets the fields of o. It returns the authority of the call, "" for that of the ClientConn, and whether the call waits until an endpoint
// is ready.
func (o *options) read(opts []grpc.CallOption) (authority string, waits waits) {
	o.tries, o.encoding = opts[:len(opts):len(opts)], grpcreplay.EncodingOf(opts)
	own := false // some option is for the whole call, not for each try
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
			own = true
		case grpc.FailFastCallOption:
			if waits = yes; opt.FailFast {
				waits = no
			}
		case grpc.AuthorityOverrideCallOption:
			authority = opt.Authority
		}
	}
	if own {
		o.tries, o.results = grpcreplay.Split(make([]grpc.CallOption, 0, len(opts)+4), opts)
	}
	if waits == yes {
		o.tries = append(o.tries, grpc.WaitForReady(false)) // the call waits, not the try
	}
	return authority, waits
}

// contentType returns the content type of the call, "" for that of gRPC.
func (o *options) contentType() string {
	if subtype := o.encoding.Subtype(); subtype != "" {
		return contentType + "+" + subtype
	}
	return ""
}

// finish sets the results that the caller asked for. last is nil if there was no try.
func (o *options) finish(header, trailer metadata.MD, last *try, err error) {
	if o.results == nil {
		return
	}
	var from peer.Peer
	if last != nil && last.peer != nil {
		from = *last.peer
	}
	o.results.Fill(header, trailer, known(from))
	o.results.End(err)
}

// known returns a peer with the type of AuthInfo that callers expect.
func known(p peer.Peer) peer.Peer {
	if v, ok := p.AuthInfo.(verified); ok {
		p.AuthInfo = v.TLSInfo
	}
	return p
}

// shown returns the context of a stream as its caller gets it.
func shown(ctx context.Context) context.Context {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ctx
	}
	from := known(*p)
	return peer.NewContext(ctx, &from)
}
