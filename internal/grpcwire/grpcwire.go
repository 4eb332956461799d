// Package grpcwire has what the gRPC adapters know of gRPC's wire: sizes, metadata with a meaning, and the texts in which
// grpc-go puts what went wrong below it.
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

// DefaultBufferLimit is how many bytes of messages gRPC keeps of a stream for a retry.
const DefaultBufferLimit = 256 << 10

// PreviousAttempts is the metadata that tells a server that a call is a retry, and the how many-th (gRFC A6).
const PreviousAttempts = "grpc-previous-rpc-attempts"

// MessageSize returns the size of a message on the wire, if it can be told.
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

// What gRPC says of a stream that was reset, and of a response that is not gRPC's. There is nothing but the text to tell
// them by.
const (
	resetText = "stream terminated by RST_STREAM with error code: "
	httpText  = "unexpected HTTP status code received from server: "
)

// What gRPC says of streams that a connection has not sent any more, or that GOAWAY says were not processed.
const (
	closingText  = "transport is closing"
	drainingText = "the connection is draining"
	goAwayText   = "the stream is rejected because server is draining the connection"
)

// ResetCode returns the name of the HTTP/2 error code that err's stream was reset with, and false if it was not reset.
func ResetCode(err error) (code string, reset bool) {
	return strings.CutPrefix(status.Convert(err).Message(), resetText)
}

// Unprocessed reports whether err is the end of a try that the server has not seen, or says that it has not processed: the
// stream was refused, or its connection was closing or draining before the stream was sent. err must not be a status of the
// server.
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

// Unsent reports whether err is the end of a try of which nothing was sent, because its connection was closing or draining. err
// must not be a status of the server.
func Unsent(err error) bool {
	s := status.Convert(err)
	return s.Code() == codes.Unavailable && (s.Message() == closingText || s.Message() == drainingText)
}

// Closed reports whether a call ended with err because its caller closed the ClientConn. Where the server had sent GOAWAY before,
// and where gRPC is asked for headers, it puts that into words.
func Closed(err error) bool {
	//lint:ignore SA1019 there is no other way to tell
	if err == grpc.ErrClientConnClosing {
		return true
	}
	s := status.Convert(err)
	text := strings.TrimPrefix(s.Message(), "closing transport due to: ")
	return s.Code() == codes.Unavailable && strings.HasPrefix(text, clientClosed)
}

//lint:ignore SA1019 as above
var clientClosed = grpc.ErrClientConnClosing.Error()

// HTTPStatus returns the HTTP status of a response that was no gRPC response, as proxies give, and false if err is not of one.
func HTTPStatus(err error) (code int, ok bool) {
	text, ok := strings.CutPrefix(status.Convert(err).Message(), httpText)
	if !ok || len(text) < 3 {
		return 0, false
	}
	code, err = strconv.Atoi(text[:3])
	return code, err == nil
}
