// Package grpcstatus has what the gRPC adapters share about statuses: errors with a status and a cause, and the mapping between HTTP and
// gRPC statuses.
package grpcstatus

import (
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/failure"
)

// Error is an error with a status. It unwraps to its cause, so errors.Is finds a sentinel and status.Code finds the code.
type Error struct {
	code  codes.Code
	cause error
}

// Wrap returns err as an error with a status of the given code and err's text.
func Wrap(code codes.Code, err error) error {
	return &Error{code, err}
}

// Error implements error. Its text is that of an error of package status.
func (e *Error) Error() string { return e.GRPCStatus().String() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// GRPCStatus returns the status. Package status looks for this method.
func (e *Error) GRPCStatus() *status.Status { return status.New(e.code, e.cause.Error()) }

// TrailersOnly reports whether trailer is that of a trailers-only response. Only then does the trailer, as gRPC returns it, have a content
// type.
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

// HTTP returns the HTTP status to which Envoy maps a gRPC status, in outlier detection for example.
func HTTP(code codes.Code) int {
	return failure.GRPCStatus(uint32(code))
}

// FromHTTP returns the code of a gRPC call whose response has an HTTP status, by gRPC's "HTTP to gRPC Status Code Mapping".
func FromHTTP(code int) codes.Code {
	return codes.Code(failure.GRPCCode(code))
}
