package meshgrpc_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/grpctest"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/meshgrpc"
)

// oddClient is a connection to a server on which the test sends every frame.
type oddClient struct{ *http2.Framer }

// begin sends the headers of a call, with more of them or other ones, given as names and values. Without a value, a header is left out.
func (c *oddClient) begin(stream uint32, flags http2.HeadersFrameParam, more ...string) {
	fields := []hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: grpctest.UnaryMethod},
		{Name: ":authority", Value: "echo"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}
	for i := 0; i < len(more); i += 2 {
		known := false
		for j := range fields {
			if fields[j].Name == more[i] {
				fields[j].Value, known = more[i+1], true
			}
		}
		if !known {
			fields = append(fields, hpack.HeaderField{Name: more[i], Value: more[i+1]})
		}
	}
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0) // so that blocks do not depend on each other
	for _, f := range fields {
		if f.Value != "" {
			_ = encoder.WriteField(f)
		}
	}
	flags.StreamID, flags.BlockFragment = stream, block.Bytes()
	_ = c.WriteHeaders(flags)
}

// Whatever a peer sends, or stops sending, a call gives back what it holds, and observers see its end. MaxRequests would not let the next call
// pass otherwise.
func TestOddClients(t *testing.T) {
	open, whole := http2.HeadersFrameParam{EndHeaders: true}, http2.HeadersFrameParam{EndHeaders: true, EndStream: true}
	message := make([]byte, 5)
	tests := map[string]func(*oddClient){
		"headers only": func(c *oddClient) { c.begin(1, open) },
		"headers, then a reset": func(c *oddClient) {
			c.begin(1, open)
			_ = c.WriteRSTStream(1, http2.ErrCodeCancel)
		},
		"no message": func(c *oddClient) { c.begin(1, whole) },
		"half a message": func(c *oddClient) {
			c.begin(1, open)
			_ = c.WriteData(1, false, []byte{0, 0, 0, 1, 0, 1})
		},
		"half a message, and the end": func(c *oddClient) {
			c.begin(1, open)
			_ = c.WriteData(1, true, []byte{0, 0, 0, 1, 0, 1})
		},
		"half a message, then a reset": func(c *oddClient) {
			c.begin(1, open)
			_ = c.WriteData(1, false, []byte{0, 0, 0, 1, 0, 1})
			_ = c.WriteRSTStream(1, http2.ErrCodeInternal)
		},
		"a call, then a reset": func(c *oddClient) {
			c.begin(1, open)
			_ = c.WriteData(1, true, message)
			_ = c.WriteRSTStream(1, http2.ErrCodeCancel)
		},
		"messages after a reset": func(c *oddClient) {
			c.begin(1, open)
			_ = c.WriteRSTStream(1, http2.ErrCodeCancel)
			for range 3 {
				_ = c.WriteData(1, false, message)
			}
		},
		"a thousand calls and resets": func(c *oddClient) {
			for i := range uint32(1000) {
				c.begin(2*i+1, open)
				_ = c.WriteRSTStream(2*i+1, http2.ErrCodeCancel)
			}
		},
		"a thousand calls without messages": func(c *oddClient) {
			for i := range uint32(1000) {
				c.begin(2*i+1, open)
			}
		},
		"no window for the response": func(c *oddClient) {
			_ = c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			c.begin(1, open)
			_ = c.WriteData(1, true, message)
		},
		"headers that do not end": func(c *oddClient) {
			c.begin(1, http2.HeadersFrameParam{})
			for range 100 {
				_ = c.WriteContinuation(1, false, nil)
			}
		},
		"headers twice": func(c *oddClient) {
			c.begin(1, open)
			c.begin(1, open)
		},
		"headers of a megabyte": func(c *oddClient) {
			c.begin(1, http2.HeadersFrameParam{}, "x-odd", strings.Repeat("x", 1<<13))
			var block bytes.Buffer
			_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: "x-odder", Value: strings.Repeat("x", 1<<13)})
			for range 128 {
				_ = c.WriteContinuation(1, false, block.Bytes())
			}
			_ = c.WriteContinuation(1, true, nil)
		},
		"a stream of the server":    func(c *oddClient) { c.begin(2, open) },
		"data before headers":       func(c *oddClient) { _ = c.WriteData(1, true, message) },
		"a message after the end":   func(c *oddClient) { c.begin(1, whole); _ = c.WriteData(1, true, message) },
		"GOAWAY, and another call":  func(c *oddClient) { _ = c.WriteGoAway(0, http2.ErrCodeNo, nil); c.begin(1, open) },
		"a frame that is too large": func(c *oddClient) { c.begin(1, open); _ = c.WriteData(1, false, make([]byte, 1<<15)) },
	}
	for i, fields := range [][]string{
		{":method", "GET"}, {":method", ""}, {":path", "x"}, {":path", "/"}, {":path", "//"}, {":path", ""}, {":scheme", ""}, {":authority", ""},
		{"content-type", ""}, {"content-type", "text/html"}, {"te", ""}, {"host", "other"}, {"connection", "close"}, {"grpc-timeout", "0n"}, {"grpc-timeout", "1x"},
		{"grpc-timeout", "-1S"}, {"grpc-timeout", "99999999H"}, {"grpc-encoding", "odd"}, {"x-odd-bin", "!"}, {"grpc-tags-bin", "!"},
		{"x-envoy-expected-rq-timeout-ms", "-1"}, {"x-forwarded-client-cert", "By=;;;\"URI"}, {"grpc-previous-rpc-attempts", "99999999999999999999"},
	} {
		tests[fmt.Sprintf("headers %d, %s: %q", i, fields[0], fields[1])] = func(c *oddClient) {
			c.begin(1, open, fields...)
			_ = c.WriteData(1, true, message)
		}
	}
	for name, send := range tests {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			var observed inbounds
			m := meshtest.New(t, "", observed.observer(), mesh.WithServer(mesh.ServerConfig{MaxRequests: 1}))
			address := grpctest.Serve(t, &grpctest.Service{Unary: grpctest.Echo}, meshgrpc.ServerOptions(m)...)
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
				t.Fatal(err)
			}
			var reading sync.WaitGroup
			defer reading.Wait()
			defer conn.Close()
			seen := make(chan struct{})
			c := &oddClient{http2.NewFramer(conn, conn)}
			_ = c.WriteSettings()
			reading.Go(func() {
				seen := sync.OnceFunc(func() { close(seen) })
				defer seen()
				for {
					frame, err := c.ReadFrame()
					if err != nil {
						return
					}
					if ping, ok := frame.(*http2.PingFrame); ok && ping.IsAck() {
						seen()
					}
				}
			})
			send(c)
			_ = c.WritePing(false, [8]byte{}) // its answer comes when everything before was read, unless the server hangs up
			await.Receive(t, "the server has read it", seen)
			conn.Close()
			client := grpctest.NewClient(grpctest.Dial(t, address))
			ctx := bounded(t)
			await.True(t, "the next call passes", func() bool {
				_, err := client.UnaryCall(ctx, &grpctest.Request{})
				return err == nil
			})
			await.True(t, "all calls have ended", func() bool { return observed.open.Load() == 0 })
		})
	}
}
