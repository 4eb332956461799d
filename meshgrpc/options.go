package meshgrpc

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/nosidecar/mesh/internal/grpcreplay"
	"github.com/nosidecar/mesh/internal/grpcwire"
)

// DefaultBufferLimit is how many bytes of messages a stream keeps for a retry. It is gRPC's own, and like that one is
// changed, for a call, by grpc.MaxRetryRPCBufferSize.
const DefaultBufferLimit = grpcwire.DefaultBufferLimit

// options are the options of a call, as far as it concerns us.
type options struct {
	tries     []grpc.CallOption // those that all tries have in common
	results   *results          // nil for a caller who wants nothing back
	authority string            // "" for that of the ClientConn
	encoding  grpcreplay.Encoding
	waits     bool // for an endpoint
	room      int  // for the messages of a stream, in bytes
}

// read fills in o.
func (o *options) read(opts []grpc.CallOption) {
	o.tries, o.room, o.encoding = opts[:len(opts):len(opts)], DefaultBufferLimit, grpcreplay.EncodingOf(opts)
	own := false // some option is not for the tries
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
		o.split(opts)
	}
	if o.waits {
		o.tries = append(o.tries, grpc.WaitForReady(false)) // it is we who wait
	}
}

// contentType returns the content type of the call, "" for that of gRPC.
func (o *options) contentType() string {
	if subtype := o.encoding.Subtype(); subtype != "" {
		return contentType + "+" + subtype
	}
	return ""
}

// split separates the options by which a caller gets something back.
func (o *options) split(opts []grpc.CallOption) {
	r := &results{}
	o.results, o.tries = r, make([]grpc.CallOption, 0, len(opts)+4)
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			r.headers = append(r.headers, opt.HeaderAddr)
		case grpc.TrailerCallOption:
			r.trailers = append(r.trailers, opt.TrailerAddr)
		case grpc.PeerCallOption:
			r.peers = append(r.peers, opt.PeerAddr)
		case grpc.OnFinishCallOption:
			r.finish = append(r.finish, opt.OnFinish)
		default:
			o.tries = append(o.tries, opt)
		}
	}
}

// results are the call options by which a caller gets something back. gRPC fills them in at the end of each try; to the
// caller, a call ends once.
type results struct {
	headers  []*metadata.MD
	trailers []*metadata.MD
	peers    []*peer.Peer
	finish   []func(error)
}

func (r *results) wantHeader() bool { return r != nil && len(r.headers) > 0 }
func (r *results) wantPeer() bool   { return r != nil && len(r.peers) > 0 }

// end tells the caller how the call ended. last is nil if there was no try.
func (r *results) end(header, trailer metadata.MD, last *try, err error) {
	if r == nil {
		return
	}
	for _, md := range r.headers {
		*md = header.Copy()
	}
	for _, md := range r.trailers {
		*md = trailer.Copy()
	}
	for _, p := range r.peers {
		if last != nil {
			*p = last.peer
			if v, ok := p.AuthInfo.(verified); ok {
				p.AuthInfo = v.TLSInfo // as callers look for it
			}
		}
	}
	for _, f := range r.finish {
		f(err)
	}
}
