// Package grpcwire has what the gRPC adapters know of gRPC's wire protocol: sizes, metadata with a meaning, and the texts by which
// grpc-go reports failures of the transport.
package grpcwire

import (
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
)

// DefaultBufferLimit is the number of bytes of the messages of a stream that gRPC keeps for a retry.
const DefaultBufferLimit = 256 << 10

// PreviousAttempts is the metadata that has the number of previous attempts of a call (gRFC A6).
const PreviousAttempts = "grpc-previous-rpc-attempts"

// MessageSize returns the size of a message on the wire, if it is known.
func MessageSize(m any) (size int, known bool) {
	const prefix = 5 // of every message
	switch m := m.(type) {
	case proto.Message:
		return prefix + proto.Size(m), true
	case protoadapt.MessageV1:
		return prefix + proto.Size(protoadapt.MessageV2Of(m)), true
	case mem.BufferSlice:
		return prefix + m.Len(), true
	case []byte:
		return prefix + len(m), true
	case *[]byte:
		return prefix + len(*m), true
	}
	return 0, false
}

// The texts of gRPC for a stream that was reset, and for a response that is not a gRPC response. Nothing but the text identifies
// these errors.
const (
	resetText = "stream terminated by RST_STREAM with error code: "
	httpText  = "unexpected HTTP status code received from server: "
)

// The texts of gRPC for streams that were not sent because the connection was closing, or that GOAWAY marks as not processed.
const (
	closingText  = "transport is closing"
	drainingText = "the connection is draining"
	goAwayText   = "the stream is rejected because server is draining the connection"
)

// ResetCode returns the name of the HTTP/2 error code with which the stream of err was reset. It reports false if it was not reset.
func ResetCode(err error) (code string, reset bool) {
	return strings.CutPrefix(status.Convert(err).Message(), resetText)
}

// Unprocessed reports whether err is the error of a try that the server did not see or did not process: the stream was refused, or the
// connection was closing or draining before the stream was sent. err must not be a status of the server.
func Unprocessed(err error) bool {
	if code, reset := ResetCode(err); reset {
		return code == "REFUSED_STREAM"
	}
	s := status.Convert(err)
	if s.Code() != codes.Unavailable {
		return false
	}
	switch s.Message() {
	case closingText, drainingText, goAwayText:
		return true
	}
	return false
}

// Unsent reports whether err is the error of a try that was not sent because the connection was closing or draining. err must not be a
// status of the server.
func Unsent(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.Unavailable && (s.Message() == closingText || s.Message() == drainingText)
}

// Closed reports whether a call ended with err because its caller closed the ClientConn. gRPC only says so in the text of the error if
// the server had sent GOAWAY before, or if headers were being read.
func Closed(err error) bool {
	//lint:ignore SA1019 there is no other error for a ClientConn that the caller closed
	if err == grpc.ErrClientConnClosing {
		return true
	}
	s := status.Convert(err)
	text := strings.TrimPrefix(s.Message(), "closing transport due to: ")
	return s.Code() == codes.Unavailable && strings.HasPrefix(text, clientClosed)
}

//lint:ignore SA1019 as above
var clientClosed = grpc.ErrClientConnClosing.Error()

// HTTPStatus returns the HTTP status of a response that is not a gRPC response, such as one of a proxy. It reports false if err is any
// other error.
func HTTPStatus(err error) (code int, ok bool) {
	text, ok := strings.CutPrefix(status.Convert(err).Message(), httpText)
	if !ok || len(text) < 3 {
		return 0, false
	}
	code, err = strconv.Atoi(text[:3])
	return code, err == nil
}
