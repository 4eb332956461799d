package grpcreplay

import (
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// Results has the call options through which a caller gets results. gRPC would set them at the end of each try, but for the caller, a call
// ends once. A nil *Results has no options.
type Results struct {
	headers  []*metadata.MD
	trailers []*metadata.MD
	peers    []*peer.Peer
	finish   []func(error)
}

// Split appends to rest the options that all tries of a call can share, and returns the others as Results.
func Split(rest, opts []grpc.CallOption) ([]grpc.CallOption, *Results) {
	var r Results
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
			rest = append(rest, opt)
		}
	}
	if r.headers == nil && r.trailers == nil && r.peers == nil && r.finish == nil {
		return rest, nil
	}
	kept := r
	return rest, &kept
}

// WantHeader reports whether the caller wants the header.
func (r *Results) WantHeader() bool { return r != nil && len(r.headers) > 0 }

// WantPeer reports whether the caller wants the peer.
func (r *Results) WantPeer() bool { return r != nil && len(r.peers) > 0 }

// WantReply reports whether the caller wants any result of the last try.
func (r *Results) WantReply() bool {
	return r != nil && len(r.headers)+len(r.trailers)+len(r.peers) > 0
}

// Fill sets the caller's results to those of the last try.
func (r *Results) Fill(header, trailer metadata.MD, from peer.Peer) {
	if r == nil {
		return
	}
	for _, md := range r.headers {
		*md = copied(header)
	}
	for _, md := range r.trailers {
		*md = copied(trailer)
	}
	for _, p := range r.peers {
		*p = from
	}
}

// copied returns a copy of md, or nil if md is nil.
func copied(md metadata.MD) metadata.MD {
	if md == nil {
		return nil
	}
	return md.Copy()
}

// End calls the caller's OnFinish functions with the error of the call.
func (r *Results) End(err error) {
	if r == nil {
		return
	}
	for _, f := range r.finish {
		f(err)
	}
}
