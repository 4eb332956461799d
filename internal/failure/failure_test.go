package failure_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/deadline"
	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/internal/refusal"
)

func TestOf(t *testing.T) {
	ended := func(cause error) context.Context {
		ctx, cancel := context.WithCancelCause(context.Background())
		cancel(cause)
		return ctx
	}
	past, cancel := context.WithDeadline(context.Background(), time.Unix(0, 0))
	defer cancel()
	live := context.Background()
	canceled, boom := ended(nil), errors.New("boom")
	for _, test := range []struct {
		name string
		ctx  context.Context
		err  error
		want failure.Kind
	}{
		{"no error", live, nil, failure.None},
		{"refusal", live, fmt.Errorf("x: %w", refusal.New("open")), failure.Refused},
		{"refusal of a caller who left", canceled, refusal.New("open"), failure.Refused},
		{"request limit", live, &deadline.Error{Kind: deadline.Request}, failure.RequestTimeout},
		{"per-try limit", live, fmt.Errorf("x: %w", &deadline.Error{Kind: deadline.PerTry}), failure.TryTimeout},
		{"per-try limit, caller gone", canceled, &deadline.Error{Kind: deadline.PerTry}, failure.Canceled},
		{"caller gone", canceled, boom, failure.Canceled},
		{"caller gone, in his words", ended(boom), boom, failure.Canceled},
		{"caller's deadline", past, boom, failure.RequestTimeout},
		{"request limit as cause", ended(&deadline.Error{Kind: deadline.Request}), context.Canceled, failure.RequestTimeout},
		{"canceled below", live, context.Canceled, failure.Canceled},
		{"timeout below", live, context.DeadlineExceeded, failure.TryTimeout},
		{"deadline of a connection just before the context's", almostOver{live},
			context.DeadlineExceeded, failure.RequestTimeout},
		{"name lookup", live, &net.DNSError{Err: "no such host", IsNotFound: true}, failure.Connect},
		{"dial timeout", live, &net.OpError{Op: "dial", Err: context.DeadlineExceeded}, failure.Connect},
		{"proxy", live, &net.OpError{Op: "proxyconnect", Err: boom}, failure.Connect},
		{"read", live, &net.OpError{Op: "read", Err: boom}, failure.Reset},
		{"alert of a broken stream", live, &net.OpError{Op: "remote error", Err: boom}, failure.Reset},
		{"EOF", live, io.EOF, failure.Reset},
		{"other", live, boom, failure.Reset},
		{"stream error of x/net", live,
			errors.New("stream error: stream ID 3; REFUSED_STREAM; received from peer"), failure.RefusedStream},
		{"other stream error of x/net", live,
			errors.New("stream error: stream ID 3; CANCEL; received from peer"), failure.Reset},
		{"connection unusable", live, errors.New("http2: client conn not usable"), failure.Unsent},
		{"marked", live, fmt.Errorf("x: %w", failure.Mark(failure.Unsent, boom)), failure.Unsent},
	} {
		if got := failure.Of(test.ctx, nil, test.err); got != test.want {
			t.Errorf("%s: Of = %v, want %v", test.name, got, test.want)
		}
	}
	if !errors.Is(failure.Mark(failure.Unsent, boom), boom) {
		t.Error("Mark hides the error")
	}
}

// almostOver is a context past its deadline that has not ended yet.
type almostOver struct{ context.Context }

func (almostOver) Deadline() (time.Time, bool) { return time.Unix(0, 0), true }

func TestKind(t *testing.T) {
	unprocessed := map[failure.Kind]bool{
		failure.Refused: true, failure.Connect: true, failure.RefusedStream: true, failure.Unsent: true,
	}
	names := map[string]bool{}
	for k := failure.None; k <= failure.Reset; k++ {
		names[k.String()] = true
		if k.Unprocessed() != unprocessed[k] {
			t.Errorf("%v: Unprocessed = %v", k, !unprocessed[k])
		}
	}
	if len(names) != int(failure.Reset)+1 {
		t.Errorf("names are not distinct: %v", names)
	}
}

// TestOf_NetHTTP makes net/http fail over real connections.
func TestOf_NetHTTP(t *testing.T) {
	quiet := log.New(io.Discard, "", 0)
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = quiet
	secure.StartTLS()
	defer secure.Close()
	picky := httptest.NewUnstartedServer(http.NotFoundHandler())
	picky.Config.ErrorLog = quiet
	picky.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert, MinVersion: tls.VersionTLS13}
	picky.StartTLS()
	defer picky.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/drop":
			panic(http.ErrAbortHandler)
		case "/hang":
			<-r.Context().Done()
		}
	}))
	plain.Config.ErrorLog = quiet
	defer plain.Close()
	nobody := "http://" + rawtest.Refusing(t)
	trusting := &tls.Config{InsecureSkipVerify: true}

	for _, test := range []struct {
		name string
		tr   *http.Transport
		url  string
		want failure.Kind
	}{
		{"connection refused", &http.Transport{}, nobody, failure.Connect},
		{"unknown authority", &http.Transport{}, secure.URL, failure.Connect},
		{"plain server", &http.Transport{}, strings.Replace(plain.URL, "http:", "https:", 1), failure.Connect},
		{"protocol version",
			&http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}},
			picky.URL, failure.Connect},
		{"certificate required", &http.Transport{TLSClientConfig: trusting}, picky.URL, failure.Connect},
		{"dropped", &http.Transport{}, plain.URL + "/drop", failure.Reset},
		{"no headers", &http.Transport{ResponseHeaderTimeout: time.Millisecond}, plain.URL + "/hang", failure.TryTimeout},
	} {
		t.Run(test.name, func(t *testing.T) {
			defer test.tr.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), "GET", test.url, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := test.tr.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
				t.Fatal("no error")
			}
			if got := failure.Of(t.Context(), req, err); got != test.want {
				t.Errorf("Of(%v) = %v, want %v", err, got, test.want)
			}
		})
	}
}

// TestOf_HTTP2 makes net/http's HTTP/2 client fail over real connections, to a server that speaks frames (RFC 9113).
func TestOf_HTTP2(t *testing.T) {
	const reset, goAway = 0x3, 0x7
	frame := func(kind, stream byte, payload ...byte) []byte {
		return append([]byte{0, 0, byte(len(payload)), kind, 0, 0, 0, 0, stream}, payload...)
	}
	for _, test := range []struct {
		name   string
		answer []byte
		want   failure.Kind
	}{
		// The body cannot be read again, so net/http has to give up and puts these into words.
		{"REFUSED_STREAM", frame(reset, 1, 0, 0, 0, 7), failure.RefusedStream},
		{"GOAWAY above the last stream", frame(goAway, 0, 0, 0, 0, 0, 0, 0, 0, 0), failure.RefusedStream},
		{"GOAWAY above the last stream, with an error", frame(goAway, 0, 0, 0, 0, 0, 0, 0, 0, 11), failure.RefusedStream},
		{"GOAWAY at the stream", frame(goAway, 0, 0, 0, 0, 1, 0, 0, 0, 0), failure.Reset},
		{"INTERNAL_ERROR", frame(reset, 1, 0, 0, 0, 2), failure.StreamReset},
		{"connection closed", nil, failure.Reset},
	} {
		t.Run(test.name, func(t *testing.T) {
			ln := rawtest.Listen(t)
			var wg sync.WaitGroup
			wg.Go(func() {
				conn, err := ln.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				answerHTTP2(conn, test.answer)
			})
			defer wg.Wait()
			defer ln.Close()
			tr := &http.Transport{Protocols: new(http.Protocols)}
			tr.Protocols.SetUnencryptedHTTP2(true)
			defer tr.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), "POST", "http://"+ln.Addr().String(),
				io.MultiReader(strings.NewReader("x")))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := tr.RoundTrip(req)
			if err == nil {
				resp.Body.Close()
				t.Fatal("no error")
			}
			if got := failure.Of(t.Context(), req, err); got != test.want {
				t.Errorf("Of(%v) = %v, want %v", err, got, test.want)
			}
		})
	}
}

// answerHTTP2 reads a request, writes the answer and waits until nothing more comes.
func answerHTTP2(conn net.Conn, answer []byte) {
	if _, err := io.CopyN(io.Discard, conn, int64(len("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))); err != nil {
		return
	}
	const settings, endStream = 0x4, 0x1
	_, _ = conn.Write([]byte{0, 0, 0, settings, 0, 0, 0, 0, 0})
	for {
		var head [9]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		size := int64(head[0])<<16 | int64(head[1])<<8 | int64(head[2])
		if _, err := io.CopyN(io.Discard, conn, size); err != nil {
			return
		}
		if kind, flags := head[3], head[4]; kind <= 1 && flags&endStream != 0 {
			break
		}
	}
	// Half closed, so that the client ends the connection when it has read the answer.
	_, _ = conn.Write(answer)
	_ = conn.(*net.TCPConn).CloseWrite()
	_, _ = io.Copy(io.Discard, conn)
}
