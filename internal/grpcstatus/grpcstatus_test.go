package grpcstatus_test

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcstatus"
)

func TestWrap(t *testing.T) {
	cause := errors.New("limit: overflow")
	err := grpcstatus.Wrap(codes.Unavailable, cause)
	for name, err := range map[string]error{"itself": err, "wrapped": fmt.Errorf("call: %w", err)} {
		if status.Code(err) != codes.Unavailable || !errors.Is(err, cause) {
			t.Errorf("%s: code %v, is its cause: %v", name, status.Code(err), errors.Is(err, cause))
		}
	}
	if s := status.Convert(err); s.Message() != cause.Error() {
		t.Errorf("message %q, want %q", s.Message(), cause.Error())
	}
	if want := status.Error(codes.Unavailable, cause.Error()).Error(); err.Error() != want {
		t.Errorf("text %q, want %q", err, want)
	}
}

func TestTrailersOnly(t *testing.T) {
	for _, test := range []struct {
		name    string
		trailer metadata.MD
		want    bool
	}{
		{"no stream", nil, false},
		{"connection lost", metadata.MD{}, false},
		{"trailers after headers", metadata.Pairs("x-cost", "3"), false},
		{"trailers only", metadata.Pairs("content-type", "application/grpc", "x-cost", "3"), true},
	} {
		if got := grpcstatus.TrailersOnly(test.trailer); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// TestHTTP pins what counts as a failure: 500 and above.
func TestHTTP(t *testing.T) {
	failures := map[codes.Code]int{codes.Unknown: 500, codes.DeadlineExceeded: 504, codes.Unimplemented: 501,
		codes.Internal: 500, codes.Unavailable: 503, codes.DataLoss: 500}
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		got, want := grpcstatus.HTTP(code), failures[code]
		if want != 0 && got != want || want == 0 && got >= 500 {
			t.Errorf("HTTP(%v) = %d, want %d", code, got, want)
		}
	}
}

func TestFromHTTP(t *testing.T) {
	for status, want := range map[int]codes.Code{400: codes.Internal, 401: codes.Unauthenticated,
		403: codes.PermissionDenied, 404: codes.Unimplemented, 429: codes.Unavailable, 503: codes.Unavailable,
		500: codes.Unknown, 200: codes.Unknown} {
		if got := grpcstatus.FromHTTP(status); got != want {
			t.Errorf("FromHTTP(%d) = %v, want %v", status, got, want)
		}
	}
}
