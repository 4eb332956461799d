package mesh_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// An ordeal has endpoints that do something else with each connection and with each request.

// listen serves at an address until the end of the test.
func (o *ordeal) listen(address string) {
	ln := o.network.Listen(address)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.conns = append(o.conns, conn)
			o.mu.Unlock()
			serving.Go(func() {
				defer func() { conn.Close() }()
				if o.proto == "HTTP/2.0" {
					conn = &buffered{Conn: conn, in: read(conn, &serving)}
				}
				o.serve(conn)
			})
		}
	})
	o.Cleanup(func() {
		ln.Close()
		o.ended.Store(true)
		serving.Wait()
	})
}

// serve does anything with a connection, and nothing odd once the endpoints are well.
func (o *ordeal) serve(conn net.Conn) {
	if !o.well.Load() {
		switch o.n(20) {
		case 0:
			return
		case 1:
			o.hang(conn)
			return
		case 2:
			fmt.Fprint(conn, "SSH-2.0-OpenSSH_9.9\r\n")
		}
	}
	if o.proto == "HTTP/2.0" {
		o.serve2(conn)
	} else {
		o.serve1(conn)
	}
}

// hang takes what comes, and says nothing for a while or until the peer has had enough.
func (o *ordeal) hang(conn net.Conn) {
	_ = conn.SetReadDeadline(time.Now().Add(o.while() * 10))
	if o.one(2) { // without reading
		o.pause()
		return
	}
	_, _ = io.Copy(io.Discard, conn)
}

func (o *ordeal) serve1(conn net.Conn) {
	r := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if !o.well.Load() && o.one(2) {
			o.odd1(conn, req)
			return
		}
		if o.one(2) || o.well.Load() {
			_, _ = io.Copy(io.Discard, req.Body)
		}
		o.work(req.Header)
		status := o.status()
		if _, err := fmt.Fprintf(conn, "HTTP/1.1 %d Any\r\nContent-Length: 3\r\n\r\n%s", status, bodyOf(req.Method, "all")); err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, req.Body)
	}
}

func bodyOf(method, text string) string {
	if method == http.MethodHead {
		return ""
	}
	return text
}

// status is that of an answer: mostly 200.
func (o *ordeal) status() int {
	if o.well.Load() {
		return http.StatusOK
	}
	return [...]int{200, 200, 200, 200, 204, 304, 307, 404, 409, 429, 500, 503, 503, 504}[o.n(14)]
}

// odd1 does something odd with a request over HTTP/1.1. Then the connection is closed.
func (o *ordeal) odd1(conn net.Conn, req *http.Request) {
	if o.one(2) {
		_, _ = io.CopyN(io.Discard, req.Body, int64(o.n(1<<12)))
	}
	if o.one(2) {
		o.pause()
	}
	const ok = "HTTP/1.1 200 OK\r\n"
	answers := []string{
		"", "HTTP", ok, ok + "Content-Len", ok + "\r\n", ok + "Content-Length: 9\r\n\r\npart", ok + "Content-Length: 2\r\n\r\nmore than that",
		ok + "Transfer-Encoding: chunked\r\n\r\n", ok + "Transfer-Encoding: chunked\r\n\r\n4\r\npart\r\n", ok + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
		ok + "Transfer-Encoding: chunked\r\nTrailer: A\r\n\r\n4\r\npart\r\n0\r\n", ok + "Transfer-Encoding: chunked\r\nTrailer: A\r\n\r\n4\r\npart\r\n0\r\nA: b\r\n\r\n",
		ok + "Content-Length: 4\r\nContent-Length: 5\r\n\r\npart", ok + "Content-Length: -1\r\n\r\n", ok + "Connection: close\r\n\r\nall",
		ok + "Content-Encoding: gzip\r\n\r\nno gzip", "HTTP/9.9 200 OK\r\n\r\n", "HTTP/1.1 abc OK\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\n",
		"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: any\r\n\r\nmore", "HTTP/1.1 100 Continue\r\n\r\n", strings.Repeat("HTTP/1.1 103 Hint\r\n\r\n", 30),
		"HTTP/1.1 102 Processing\r\n\r\n" + ok + "Content-Length: 3\r\n\r\nall", ok + "A: " + strings.Repeat("a", 2<<20) + "\r\n\r\n",
		"HTTP/1.1 503 No\r\nContent-Length: 100000000\r\n\r\npart", "HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 307 There\r\nLocation: http://other/\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 408 Slow\r\nConnection: close\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\nall",
		ok + "Content-Type: application/grpc\r\nGrpc-Status: 14\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 No\r\n\r\nbody all the same",
		"HTTP/1.1 417 No\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\na\r\n", 100),
	}
	_, _ = io.WriteString(conn, answers[o.n(len(answers))])
	if o.one(2) {
		o.hang(conn)
	}
}

// buffered is a connection whose peer never waits in a write: net/http holds locks of HTTP/2 meanwhile, so time in the bubble would stand still.
type buffered struct {
	net.Conn
	in *io.PipeReader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }

func (b *buffered) SetReadDeadline(at time.Time) error {
	time.AfterFunc(time.Until(at), func() { b.in.CloseWithError(os.ErrDeadlineExceeded) })
	return nil
}

func (b *buffered) Close() error {
	b.in.Close()
	return b.Conn.Close()
}

// read reads all of conn at once.
func read(conn net.Conn, reading *sync.WaitGroup) *io.PipeReader {
	in, out := io.Pipe()
	parts := make(chan []byte, 1<<16)
	reading.Go(func() {
		defer close(parts)
		for p := make([]byte, 1<<16); ; {
			n, err := conn.Read(p)
			if parts <- bytes.Clone(p[:n]); err != nil {
				return
			}
		}
	})
	reading.Go(func() {
		for part := range parts {
			_, _ = out.Write(part)
		}
		out.Close()
	})
	return in
}

// peer2 is a connection over HTTP/2.
type peer2 struct {
	*ordeal
	conn net.Conn
	*http2.Framer
	writing sync.Mutex
	out     bytes.Buffer
	encoder *hpack.Encoder
}

func (o *ordeal) serve2(conn net.Conn) {
	if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
		return
	}
	p := &peer2{ordeal: o, conn: conn, Framer: http2.NewFramer(conn, bufio.NewReader(conn))}
	p.encoder = hpack.NewEncoder(&p.out)
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var settings []http2.Setting
	if !o.well.Load() && o.one(4) {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(o.n(3))})
	}
	if !o.well.Load() && o.one(4) {
		settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(o.n(100))})
	}
	var answering sync.WaitGroup
	defer answering.Wait()
	defer conn.Close()
	p.write(func() error { return p.WriteSettings(settings...) })
	for {
		f, err := p.ReadFrame()
		if se := (http2.StreamError{}); errors.As(err, &se) {
			continue
		} else if err != nil {
			return
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				answering.Go(func() { p.write(p.WriteSettingsAck) })
			}
		case *http2.PingFrame:
			if data := f.Data; !f.IsAck() && (o.well.Load() || o.n(4) > 0) {
				answering.Go(func() { p.write(func() error { return p.WritePing(true, data) }) })
			}
		case *http2.DataFrame:
			if n := uint32(f.Length); n > 0 && (o.well.Load() || o.n(4) > 0) {
				stream := f.StreamID
				answering.Go(func() {
					p.write(func() error { return p.WriteWindowUpdate(0, n) })
					p.write(func() error { return p.WriteWindowUpdate(stream, n) })
				})
			}
		case *http2.MetaHeadersFrame:
			stream, header := f.StreamID, http.Header{}
			for _, field := range f.Fields {
				header.Add(field.Name, field.Value)
			}
			answering.Go(func() { p.answer(stream, header) })
		}
	}
}

func (p *peer2) write(f func() error) {
	p.writing.Lock()
	defer p.writing.Unlock()
	if f() != nil {
		p.conn.Close()
	}
}

func (p *peer2) header(stream uint32, end bool, fields ...string) {
	p.write(func() error {
		p.out.Reset()
		for i := 0; i < len(fields); i += 2 {
			_ = p.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
		}
		for first, block := true, p.out.Bytes(); first || len(block) > 0; first = false {
			part := block[:min(len(block), 1<<14)]
			var err error
			if block = block[len(part):]; first {
				err = p.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: part, EndStream: end, EndHeaders: len(block) == 0})
			} else {
				err = p.WriteContinuation(stream, len(block) == 0, part)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func (p *peer2) data(stream uint32, end bool, text string) {
	p.write(func() error { return p.WriteData(stream, end, []byte(text)) })
}

// answer answers a request.
func (p *peer2) answer(stream uint32, header http.Header) {
	p.work(header)
	if p.well.Load() || p.one(2) {
		p.header(stream, false, ":status", fmt.Sprint(p.status()), "content-length", "3")
		p.data(stream, true, "all")
		return
	}
	codes := []http2.ErrCode{http2.ErrCodeNo, http2.ErrCodeRefusedStream, http2.ErrCodeCancel, http2.ErrCodeInternal, http2.ErrCodeEnhanceYourCalm, http2.ErrCodeHTTP11Required}
	code := codes[p.n(len(codes))]
	for range 1 + p.n(3) { // several odd things in a row
		if p.one(2) {
			p.pause()
		}
		switch p.n(16) {
		case 0:
			p.write(func() error { return p.WriteRSTStream(stream, code) })
		case 1:
			p.write(func() error { return p.WriteGoAway(uint32(p.n(int(stream)+2)), code, nil) })
		case 2:
			p.write(func() error { return p.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil) })
		case 3:
			p.header(stream, false, ":status", "200")
		case 4:
			p.header(stream, true, ":status", fmt.Sprint(p.status()))
		case 5:
			p.data(stream, p.one(2), "part")
		case 6:
			for range 30 {
				p.header(stream, false, ":status", "103")
			}
		case 7:
			p.header(stream, true, "trailer", "t")
		case 8:
			p.header(stream, false, ":status", "200", "content-length", "9")
			p.data(stream, true, "part")
		case 9:
			p.header(stream, false, ":status", "503", "a", strings.Repeat("a", 1<<p.n(24)))
		case 10:
			p.write(func() error { return p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams}) })
			p.pause()
			p.write(func() error {
				return p.WriteSettings(http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
			})
		case 11:
			p.conn.Close()
		case 12:
			p.write(func() error { return p.WriteWindowUpdate(0, 1<<31-1) }) // of a stream, it has net/http wait for itself
		case 13:
			p.write(func() error { return p.WritePing(false, [8]byte{1}) })
		case 14:
			p.header(stream, true, ":status", "200", "content-type", "application/grpc", "grpc-status", "14")
		case 15:
			p.write(func() error { return p.WriteRawFrame(http2.FrameContinuation, 0, stream, nil) })
		}
	}
}
