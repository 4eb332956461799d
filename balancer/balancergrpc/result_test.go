package balancergrpc

import (
	"context"
	"testing"

	"google.golang.org/grpc"
	grpcbalancer "google.golang.org/grpc/balancer"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestResult(t *testing.T) {
	trailer := metadata.Pairs("content-type", "application/grpc")
	for _, test := range []struct {
		name     string
		code     codes.Code
		trailer  metadata.MD
		sent     bool
		received bool
		want     int
		err      error
	}{
		{name: "pick not used"},
		{name: "well", sent: true, received: true, want: 200},
		{name: "status", code: codes.Unavailable, trailer: trailer, sent: true, received: true, want: 503},
		{name: "status that is no failure", code: codes.NotFound, trailer: trailer, sent: true, received: true, want: 404},
		{name: "status after headers", code: codes.NotFound, sent: true, received: true, want: 404},
		{name: "server was canceled", code: codes.Canceled, trailer: trailer, sent: true, received: true, want: 499},
		{name: "caller gave up", code: codes.Canceled, sent: true},
		{name: "stream not made", code: codes.Unavailable},
		{name: "message not sent", code: codes.Internal, sent: true},
		{name: "connection lost", code: codes.Unavailable, sent: true, err: errReset},
		{name: "out of time", code: codes.DeadlineExceeded, sent: true, err: context.DeadlineExceeded},
	} {
		info := grpcbalancer.DoneInfo{Err: status.Error(test.code, "x"), Trailer: test.trailer,
			BytesSent: test.sent, BytesReceived: test.received}
		if code, err := resultOf(&info); code != test.want || err != test.err {
			t.Errorf("%s: %d, %v; want %d, %v", test.name, code, err, test.want, test.err)
		}
	}
	refused := status.Error(codes.Internal, "stream terminated by RST_STREAM with error code: INTERNAL_ERROR")
	if code, err := resultOf(&grpcbalancer.DoneInfo{Err: refused, BytesSent: true}); code != 500 || err != nil {
		t.Errorf("the server reset the stream: %d, %v; want 500", code, err)
	}
	//lint:ignore SA1019 gRPC puts it into words like this when it is asked for headers
	closed := status.Error(codes.Unavailable, grpc.ErrClientConnClosing.Error())
	if code, err := resultOf(&grpcbalancer.DoneInfo{Err: closed, BytesSent: true}); code != 0 || err != nil {
		t.Errorf("the caller closed the ClientConn: %d, %v; want nothing said of the endpoint", code, err)
	}
}
