package grpcwire

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The metadata by which Envoy says that a call is beyond a limit, in a trailer.
const (
	Overloaded  = "x-envoy-overloaded"
	RateLimited = "x-envoy-ratelimited"
)

// domain is that of the reasons in status details.
const domain = "github.com/nosidecar/mesh"

// Limited returns a status that says in its details what key, Overloaded or RateLimited, says in a trailer: where gRPC refuses a
// call at its headers, it sends no trailer but the status.
func Limited(code codes.Code, text, key string) error {
	s := status.New(code, text)
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: key, Domain: domain}); err == nil {
		s = detailed
	}
	return s.Err()
}

// LimitedBy returns the key that err was made with by Limited, perhaps by another process, and "" if it was not.
func LimitedBy(err error) string {
	s, ok := status.FromError(err)
	if !ok || s.Code() == codes.OK {
		return ""
	}
	for _, detail := range s.Details() {
		if info, ok := detail.(*errdetails.ErrorInfo); ok && info.Domain == domain {
			switch info.Reason {
			case Overloaded, RateLimited:
				return info.Reason
			}
		}
	}
	return ""
}
