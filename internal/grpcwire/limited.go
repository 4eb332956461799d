package grpcwire

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The trailers with which Envoy marks a call that exceeds a limit.
const (
	Overloaded  = "x-envoy-overloaded"
	RateLimited = "x-envoy-ratelimited"
)

// domain is the domain of the ErrorInfo in status details.
const domain = "github.com/nosidecar/mesh"

// Limited returns a status whose details contain key, which is Overloaded or RateLimited. It replaces the trailer of that name if gRPC
// refuses a call at its headers: then it sends only the status.
func Limited(code codes.Code, text, key string) error {
	s := status.New(code, text)
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: key, Domain: domain}); err == nil {
		s = detailed
	}
	return s.Err()
}

// LimitedBy returns the key with which Limited made err, even if another process did. It returns "" for any other error.
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
