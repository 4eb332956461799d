package grpcwire_test

import (
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcwire"
)

func TestLimitedBy(t *testing.T) {
	for _, key := range []string{grpcwire.Overloaded, grpcwire.RateLimited} {
		err := grpcwire.Limited(codes.Unavailable, "too much", key)
		sent := status.FromProto(status.Convert(err).Proto()).Err() // as it arrives
		if got := grpcwire.LimitedBy(sent); got != key || status.Code(sent) != codes.Unavailable {
			t.Errorf("%v: %q, want %q", sent, got, key)
		}
	}
	for _, err := range []error{nil, errors.New("x"), status.Error(codes.Unavailable, grpcwire.Overloaded)} {
		if got := grpcwire.LimitedBy(err); got != "" {
			t.Errorf("%v: %q", err, got)
		}
	}
}
