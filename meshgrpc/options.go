package meshgrpc

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcwire"
)

// options are the options of a call that matter here.
type options struct {
	tries     []grpc.CallOption   // for every try
	results   *grpcreplay.Results // what the caller wants back; nil for nothing
	authority string              // "" for that of the ClientConn
	encoding  grpcreplay.Encoding
	waits     bool // the call waits until an endpoint is ready
	room      int  // for the messages of a stream that are kept for a retry, in bytes
}

// read sets the fields of o.
func (o *options) read(opts []grpc.CallOption) {
	o.tries, o.room, o.encoding = opts[:len(opts):len(opts)], grpcwire.DefaultBufferLimit, grpcreplay.EncodingOf(opts)
	own := false // some option is for the whole call, not for each try
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption, grpc.TrailerCallOption, grpc.PeerCallOption, grpc.OnFinishCallOption:
			own = true
		case grpc.FailFastCallOption:
			o.waits = !opt.FailFast
		case grpc.AuthorityOverrideCallOption:
			o.authority = opt.Authority
		case grpc.MaxRetryRPCBufferSizeCallOption:
			o.room = opt.MaxRetryRPCBufferSize
		}
	}
	if own {
		o.tries, o.results = grpcreplay.Split(make([]grpc.CallOption, 0, len(opts)+4), opts)
	}
	if o.waits {
		o.tries = append(o.tries, grpc.WaitForReady(false)) // the call waits, not the try
	}
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
	if last != nil {
		from = last.peer
	}
	if v, ok := from.AuthInfo.(verified); ok {
		from.AuthInfo = v.TLSInfo // the type that callers expect
	}
	o.results.Fill(header, trailer, from)
	o.results.End(err)
}
