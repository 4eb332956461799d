// Package grpcstatus has what the gRPC adapters share about statuses: errors that carry one and keep their cause, and which
// HTTP status stands for a gRPC status.
package grpcstatus

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/failure"
)

// Error is an error with a status. It unwraps to its cause, so that errors.Is finds a sentinel where status.Code finds
// the code.
type Error struct {
	code  codes.Code
	cause error
}

// Wrap returns err as an error with a status of the given code and err's text.
func Wrap(code codes.Code, err error) error {
	return &Error{code, err}
}

// Error implements error.
func (e *Error) Error() string { return e.cause.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus makes Error known to package status.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.code, e.cause.Error()) }

// TrailersOnly reports whether the trailer of an RPC is the whole of what the server said, its status in the headers: such
// a reply is the only one that has a content type in what gRPC calls the trailer.
func TrailersOnly(trailer metadata.MD) bool {
	return len(trailer["content-type"]) > 0
}

// Code returns the code that gRPC sends for the error of a handler.
func Code(err error) codes.Code {
	s, ok := status.FromError(err)
	if !ok {
		s = status.FromContextError(err)
	}
	return s.Code()
}

// HTTP returns the HTTP status that Envoy takes a gRPC status for, as in its outlier detection.
func HTTP(code codes.Code) int {
	return failure.GRPCStatus(uint32(code))
}

// FromHTTP returns the code of a gRPC call that is answered with an HTTP status, by gRPC's "HTTP to gRPC Status Code
// Mapping".
func FromHTTP(code int) codes.Code {
	return codes.Code(failure.GRPCCode(code))
}
