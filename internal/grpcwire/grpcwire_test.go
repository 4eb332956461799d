package grpcwire_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/nosidecar/mesh/internal/grpcwire"
)

func TestMessageSize(t *testing.T) {
	bytes := []byte("12345")
	for _, test := range []struct {
		name  string
		m     any
		size  int
		known bool
	}{
		{"message", wrapperspb.String("abc"), 5 + 5, true},
		{"bytes", bytes, 5 + 5, true},
		{"bytes behind a pointer", &bytes, 5 + 5, true},
		{"buffers", mem.BufferSlice{mem.SliceBuffer(bytes)}, 5 + 5, true},
		{"something else", 42, 0, false},
	} {
		if size, known := grpcwire.MessageSize(test.m); size != test.size || known != test.known {
			t.Errorf("%s: %d, %t; want %d, %t", test.name, size, known, test.size, test.known)
		}
	}
}

// A call whose caller closed the ClientConn is recognized, even if gRPC reports it as Unavailable.
func TestClosed(t *testing.T) {
	//lint:ignore SA1019 there is no other error for it
	closed := grpc.ErrClientConnClosing
	for _, test := range []struct {
		name string
		err  error
		want bool
	}{
		{"at once", closed, true},
		{"while headers are read", status.Error(codes.Unavailable, closed.Error()), true},
		{"after GOAWAY", status.Errorf(codes.Unavailable, "closing transport due to: %v, received prior goaway: code: NO_ERROR", closed), true},
		{"a connection that is lost", status.Error(codes.Unavailable, "closing transport due to: connection error: EOF, received prior goaway: code: NO_ERROR"), false},
		{"an answer with that text", status.Error(codes.Internal, closed.Error()), false},
		{"a caller that cancels", status.FromContextError(context.Canceled).Err(), false},
	} {
		if got := grpcwire.Closed(test.err); got != test.want {
			t.Errorf("%s: Closed(%v) = %v, want %v", test.name, test.err, got, test.want)
		}
	}
}

func TestTexts(t *testing.T) {
	reset := status.Error(codes.Unavailable, "stream terminated by RST_STREAM with error code: REFUSED_STREAM")
	proxy := status.Error(codes.Unavailable, "unexpected HTTP status code received from server: 502 (Bad Gateway)")
	if code, ok := grpcwire.ResetCode(reset); !ok || code != "REFUSED_STREAM" {
		t.Errorf("ResetCode = %q, %t", code, ok)
	}
	if code, ok := grpcwire.HTTPStatus(proxy); !ok || code != 502 {
		t.Errorf("HTTPStatus = %d, %t", code, ok)
	}
	for _, err := range []error{errors.New("x"), status.Error(codes.Unavailable, "unexpected HTTP status code received from server: x")} {
		if _, ok := grpcwire.ResetCode(err); ok {
			t.Errorf("%v is taken for a reset", err)
		}
		if _, ok := grpcwire.HTTPStatus(err); ok {
			t.Errorf("%v is taken for an HTTP status", err)
		}
	}
}

func TestUnprocessed(t *testing.T) {
	for text, want := range map[string]bool{
		"transport is closing":       true,
		"the connection is draining": true,
		"the stream is rejected because server is draining the connection":       true,
		"stream terminated by RST_STREAM with error code: REFUSED_STREAM":        true,
		"stream terminated by RST_STREAM with error code: ENHANCE_YOUR_CALM":     false,
		"error reading from server: EOF":                                         false,
		"closing transport due to: connection error, received prior goaway: bye": false,
	} {
		err := status.Error(codes.Unavailable, text)
		if got := grpcwire.Unprocessed(err); got != want {
			t.Errorf("%q: %t, want %t", text, got, want)
		}
		if unsent := strings.HasPrefix(text, "the connection is d") || text == "transport is closing"; grpcwire.Unsent(err) != unsent {
			t.Errorf("%q: unsent %t, want %t", text, !unsent, unsent)
		}
	}
	if grpcwire.Unprocessed(status.Error(codes.Internal, "transport is closing")) || grpcwire.Unprocessed(nil) {
		t.Error("a status of another code, or none, is taken for a stream that was not sent")
	}
}
