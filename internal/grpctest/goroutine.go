package grpctest

import (
	"context"
	"io"
	"testing"

	"github.com/nosidecar/mesh/internal/leak"
)

// CheckNoGoroutine makes a stream of one message to a server that sends each one back. It fails if the stream has a goroutine of its own while it
// waits for its response, or afterwards.
func CheckNoGoroutine(ctx context.Context, t *testing.T, client Client) {
	t.Helper()
	stream, err := client.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	look := func(when string) {
		t.Helper()
		if found := leak.Running("internal/grpcreplay"); found != "" {
			t.Errorf("%s:\n%s", when, found)
		}
	}
	look("before the first message")
	if err := stream.Send(&In{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	look("after the first message")
	_ = stream.CloseSend()
	if _, err := stream.Recv(); err != io.EOF {
		t.Errorf("end of stream: %v, want io.EOF", err)
	}
}
