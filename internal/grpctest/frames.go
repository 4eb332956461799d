package grpctest

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/nosidecar/mesh/internal/rawtest"
)

// Frames is the server's side of an HTTP/2 connection on which the test sends every frame.
type Frames struct {
	mu     sync.Mutex
	framer *http2.Framer
}

// Headers sends headers, given as names and values.
func (f *Frames) Headers(stream uint32, end bool, fields ...string) {
	var block bytes.Buffer
	encoder := hpack.NewEncoder(&block)
	encoder.SetMaxDynamicTableSize(0) // so that blocks do not depend on each other
	for i := 0; i < len(fields); i += 2 {
		_ = encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.framer.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: end,
	})
}

// Reset sends RST_STREAM.
func (f *Frames) Reset(stream uint32, code http2.ErrCode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.framer.WriteRSTStream(stream, code)
}

// Data sends data of messages, with their prefixes.
func (f *Frames) Data(stream uint32, end bool, data ...byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.framer.WriteData(stream, end, data)
}

// GoAway says that streams after last were not processed, and that there are to be no more.
func (f *Frames) GoAway(last uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = f.framer.WriteGoAway(last, http2.ErrCodeNo, nil)
}

// Reply sends headers, an empty message and trailers: the response to a successful unary call.
func (f *Frames) Reply(stream uint32) {
	f.Headers(stream, false, ":status", "200", "content-type", "application/grpc")
	f.Data(stream, false, 0, 0, 0, 0, 0)
	f.Headers(stream, true, "grpc-status", "0")
}

// ServeFrames calls answer for every call to the returned address, with the number of the call, counted from 1, and its stream. If answer
// returns false, the connection is closed.
func ServeFrames(t testing.TB, answer func(n int, f *Frames, stream uint32) bool) string {
	t.Helper()
	listener := rawtest.Listen(t)
	var running sync.WaitGroup
	var mu sync.Mutex
	calls, conns := 0, map[net.Conn]bool{}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		calls++
		return calls
	}
	running.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				serveFrames(conn, func(f *Frames, stream uint32) bool { return answer(count(), f, stream) })
			})
		}
	})
	t.Cleanup(func() {
		listener.Close()
		mu.Lock()
		for conn := range conns {
			conn.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return listener.Addr().String()
}

func serveFrames(conn net.Conn, answer func(*Frames, uint32) bool) {
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	f := &Frames{framer: http2.NewFramer(conn, conn)}
	if f.framer.WriteSettings() != nil {
		return
	}
	for {
		frame, err := f.framer.ReadFrame()
		if err != nil {
			return
		}
		var ended bool
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				f.mu.Lock()
				_ = f.framer.WriteSettingsAck()
				f.mu.Unlock()
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				f.mu.Lock()
				_ = f.framer.WritePing(true, frame.Data)
				f.mu.Unlock()
			}
		case *http2.DataFrame:
			ended = frame.StreamEnded()
		}
		if ended && !answer(f, frame.Header().StreamID) {
			return
		}
	}
}
