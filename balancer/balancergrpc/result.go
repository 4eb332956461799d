package balancergrpc

import (
	"context"
	"errors"
	"net/http"

	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/internal/grpcstatus"
	"github.com/nosidecar/mesh/internal/grpcwire"
)

// errReset means that a connection or a stream broke.
var errReset = errors.New("grpc: connection or stream broken")

func reset(err error) bool {
	_, reset := grpcwire.ResetCode(err)
	return reset
}

// resultOf returns what a call says about the endpoint that it was sent to, for outlier detection: the HTTP status that
// Envoy maps the status of the reply to or, with status 0, how the call failed on our side. With neither, the call says
// nothing: gRPC did not use the pick, the caller gave up, or its message could not be sent.
func resultOf(info *grpcbalancer.DoneInfo) (code int, err error) {
	if info.Err == nil {
		if !info.BytesReceived {
			return 0, nil
		}
		return http.StatusOK, nil
	}
	c := status.Code(info.Err)
	if len(info.Trailer) == 0 { // not, or not certainly, a reply from the server
		switch {
		case c == codes.Canceled, !info.BytesSent, grpcwire.Closed(info.Err):
			return 0, nil
		case c == codes.DeadlineExceeded:
			return 0, context.DeadlineExceeded
		case c == codes.Unavailable:
			return 0, errReset
		case !info.BytesReceived && !reset(info.Err): // gRPC could not send the message
			return 0, nil
		}
	}
	return grpcstatus.HTTP(c), nil
}
