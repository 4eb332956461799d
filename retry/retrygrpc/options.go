package retrygrpc

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// results are the call options by which a caller gets something back. gRPC fills them in at the end of each try; to the
// caller, a call ends once. A nil *results is that of a caller who wants nothing.
type results struct {
	headers  []*metadata.MD
	trailers []*metadata.MD
	peers    []*peer.Peer
	finish   []func(error)
}

// split adds to rest the options that all tries of a call may have in common, and returns the others.
func split(rest, opts []grpc.CallOption) ([]grpc.CallOption, *results) {
	var r *results
	want := func() *results {
		if r == nil {
			r = new(results)
		}
		return r
	}
	for _, opt := range opts {
		switch opt := opt.(type) {
		case grpc.HeaderCallOption:
			want().headers = append(want().headers, opt.HeaderAddr)
		case grpc.TrailerCallOption:
			want().trailers = append(want().trailers, opt.TrailerAddr)
		case grpc.PeerCallOption:
			want().peers = append(want().peers, opt.PeerAddr)
		case grpc.OnFinishCallOption:
			want().finish = append(want().finish, opt.OnFinish)
		default:
			rest = append(rest, opt)
		}
	}
	return rest, r
}

// reply is what a try leaves behind. gRPC sets the fields at the end of a try that had a stream.
type reply struct {
	header, trailer metadata.MD
	peer            peer.Peer
}

// fill gives the caller what the last try left behind.
func (r *results) fill(last *reply) {
	if r == nil || last.trailer == nil { // there was no stream
		return
	}
	for _, md := range r.headers {
		*md = nil
		if last.header != nil {
			*md = last.header.Copy()
		}
	}
	for _, md := range r.trailers {
		*md = last.trailer.Copy()
	}
	for _, p := range r.peers {
		*p = last.peer
	}
}

// end tells the caller how the call ended.
func (r *results) end(err error) {
	if r == nil {
		return
	}
	for _, f := range r.finish {
		f(err)
	}
}
