package meshgrpc_test

import (
	"context"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// With a server that does not keep to the protocol, a caller gets the same code as without the mesh, and no message is lost without an error.
// Nothing stays behind.
func TestOddServers(t *testing.T) {
	headers := func(end bool, fields ...string) func(*grpctest.Frames, uint32) {
		return func(f *grpctest.Frames, stream uint32) { f.Headers(stream, end, fields...) }
	}
	begin := headers(false, ":status", "200", "content-type", "application/grpc")
	after := func(answers ...func(*grpctest.Frames, uint32)) func(*grpctest.Frames, uint32) {
		return func(f *grpctest.Frames, stream uint32) {
			for _, answer := range answers {
				answer(f, stream)
			}
		}
	}
	data := func(end bool, data ...byte) func(*grpctest.Frames, uint32) {
		return func(f *grpctest.Frames, stream uint32) { f.Data(stream, end, data...) }
	}
	only := func(fields ...string) func(*grpctest.Frames, uint32) {
		return headers(true, append([]string{":status", "200", "content-type", "application/grpc"}, fields...)...)
	}
	for name, answer := range map[string]func(*grpctest.Frames, uint32){
		"no status":                        only(),
		"a status that is no number":       only("grpc-status", "x"),
		"a negative status":                only("grpc-status", "-1"),
		"a status out of range":            only("grpc-status", "99999999999"),
		"an unknown status":                only("grpc-status", "250"),
		"two statuses":                     only("grpc-status", "5", "grpc-status", "14"),
		"a bad message":                    only("grpc-status", "14", "grpc-message", "%zz%"),
		"bad details":                      only("grpc-status", "14", "grpc-status-details-bin", "!!"),
		"details of another status":        only("grpc-status", "14", "grpc-status-details-bin", "CAU"),
		"a status OK without a message":    only("grpc-status", "0"),
		"bad binary metadata":              only("grpc-status", "14", "x-odd-bin", "!"),
		"a pushback that is no number":     only("grpc-status", "14", "grpc-retry-pushback-ms", "soon"),
		"a negative pushback":              only("grpc-status", "14", "grpc-retry-pushback-ms", "-9223372036854775808"),
		"two pushbacks":                    only("grpc-status", "14", "grpc-retry-pushback-ms", "0", "grpc-retry-pushback-ms", "0"),
		"a pushback of years":              only("grpc-status", "14", "grpc-retry-pushback-ms", "99999999999999999999"),
		"no HTTP status":                   headers(true, "content-type", "application/grpc", "grpc-status", "14"),
		"an HTTP status that is no number": headers(true, ":status", "x", "content-type", "application/grpc", "grpc-status", "14"),
		"another content type":             headers(true, ":status", "200", "content-type", "text/html"),
		"no content type":                  headers(true, ":status", "200", "grpc-status", "14"),
		"an error page":                    after(headers(false, ":status", "502", "content-type", "text/html"), data(true, []byte("<html>")...)),
		"an error page with a status":      headers(true, ":status", "502", "content-type", "application/grpc", "grpc-status", "0"),
		"informational answers":            after(headers(false, ":status", "103"), headers(false, ":status", "103"), only("grpc-status", "14")),
		"an informational end":             headers(true, ":status", "103"),
		"headers twice":                    after(begin, begin),
		"data before headers":              after(data(false, 0, 0, 0, 0, 0), only("grpc-status", "14")),
		"data before headers, and well":    after(data(false, 0, 0, 0, 0, 0), only("grpc-status", "0")),
		"only data":                        data(true, 0, 0, 0, 0, 0),
		"no trailers":                      after(begin, data(true, 0, 0, 0, 0, 0)),
		"trailers without a status":        after(begin, data(false, 0, 0, 0, 0, 0), headers(true, "x-odd", "1")),
		"half a message":                   after(begin, data(true, 0, 0, 0, 0, 9, 1)),
		"half a message, and well":         after(begin, data(false, 0, 0, 0, 0, 9, 1), headers(true, "grpc-status", "0")),
		"half a prefix":                    after(begin, data(false, 0, 0), headers(true, "grpc-status", "0")),
		"a message of 4 GB":                after(begin, data(false, 0, 255, 255, 255, 255), headers(true, "grpc-status", "0")),
		"a message that is no message":     after(begin, data(false, 0, 0, 0, 0, 1, 255), headers(true, "grpc-status", "0")),
		"an unknown compression":           after(begin, data(false, 1, 0, 0, 0, 0), headers(true, "grpc-status", "0")),
		"a flag that does not exist":       after(begin, data(false, 7, 0, 0, 0, 0), headers(true, "grpc-status", "0")),
		"headers of 17 kB":                 only("grpc-status", "14", "x-odd", strings.Repeat("x", 1<<14), "x-odder", strings.Repeat("y", 1<<10)),
		"a reset without an error":         func(f *grpctest.Frames, stream uint32) { f.Reset(stream, http2.ErrCodeNo) },
		"a reset after a message": after(begin, data(false, 0, 0, 0, 0, 0),
			func(f *grpctest.Frames, stream uint32) { f.Reset(stream, http2.ErrCodeEnhanceYourCalm) }),
	} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			var odd atomic.Bool
			address := grpctest.ServeFrames(t, func(_ int, f *grpctest.Frames, stream uint32) bool {
				if odd.Load() {
					answer(f, stream)
				} else {
					f.Reply(stream)
				}
				return true
			})
			_, conn := one(t, route("    retries: {attempts: 0}\n")+"---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\n"+
				"metadata: {name: echo}\nspec: {host: echo, trafficPolicy: {connectionPool: {http: {http2MaxRequests: 1}}}}\n",
				[]discovery.Endpoint{meshtest.EndpointOf(t, address)})
			bare := grpctest.Dial(t, address)
			for kind, call := range map[string]func(context.Context, grpctest.Client) (int, error){
				"unary": unaryCall, "upload": uploadedCall, "stream": streamedCall,
			} {
				odd.Store(true)
				want, wantErr := call(bounded(t), grpctest.NewClient(bare))
				got, err := call(bounded(t), grpctest.NewClient(conn))
				if status.Code(err) != status.Code(wantErr) || got != want && err == nil {
					t.Errorf("%s: %d messages and %v, without the mesh %d and %v", kind, got, err, want, wantErr)
				}
				odd.Store(false)
				if _, err := call(bounded(t), grpctest.NewClient(conn)); err != nil {
					t.Errorf("%s: the next call: %v", kind, err)
				}
			}
		})
	}
}

// unaryCall makes a unary call, and returns the number of messages it got.
func unaryCall(ctx context.Context, client grpctest.Client) (int, error) {
	if _, err := client.UnaryCall(ctx, &grpctest.Request{}); err != nil {
		return 0, err
	}
	return 1, nil
}

// streamedCall is unaryCall for a stream.
func streamedCall(ctx context.Context, client grpctest.Client) (n int, err error) {
	stream, err := client.StreamingOutputCall(ctx, &grpctest.In{})
	for err == nil {
		if _, err = stream.Recv(); err == nil {
			n++
		}
	}
	if err == io.EOF {
		return n, nil
	}
	return n, err
}

// uploadedCall is unaryCall for a stream of the client.
func uploadedCall(ctx context.Context, client grpctest.Client) (int, error) {
	stream, err := client.StreamingInputCall(ctx)
	if err == nil {
		_, err = stream.CloseAndRecv()
	}
	if err != nil {
		return 0, err
	}
	return 1, nil
}

// A server that ends each connection as soon as there is a call on it gets no more than the tries of the route, each with gRPC's own repetition.
func TestServerThatSendsEveryCallAway(t *testing.T) {
	leak.Check(t)
	var calls atomic.Int64
	address := grpctest.ServeFrames(t, func(_ int, f *grpctest.Frames, stream uint32) bool {
		calls.Add(1)
		f.GoAway(stream - 1)
		return true
	})
	_, conn := one(t, route("    retries: {attempts: 2, retryOn: \"refused-stream\", backoff: 1ms}\n"), []discovery.Endpoint{meshtest.EndpointOf(t, address)})
	for kind, call := range map[string]func(context.Context, grpctest.Client) (int, error){"unary": unaryCall, "stream": streamedCall} {
		before := calls.Load()
		_, err := call(bounded(t), grpctest.NewClient(conn))
		if n := calls.Load() - before; status.Code(err) != codes.Unavailable || n < 3 || n > 6 {
			t.Errorf("%s: %v after the server got the call %d times, want Unavailable after 3 to 6", kind, err, n)
		}
	}
}
