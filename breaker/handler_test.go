package breaker_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/breaker"
)

func TestHandlerSeesTheStatus(t *testing.T) {
	status := http.StatusInternalServerError
	h := &breaker.Handler{Config: breaker.Config{ConsecutiveFailures: 3, OpenDuration: time.Hour}}
	h.Next = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/panic":
			panic(http.ErrAbortHandler)
		case "/silent":
		default:
			w.WriteHeader(status)
			io.WriteString(w, "answer")
		}
	})
	srv := httptest.NewServer(h)
	defer srv.Close()
	get := func(path string) (int, string, string) {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			return 0, "", ""
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body), resp.Header.Get("X-Envoy-Overloaded")
	}
	for range 2 {
		if code, body, _ := get("/"); code != 500 || body != "answer" {
			t.Fatalf("%d %q, want what the handler said and nothing else", code, body)
		}
	}
	get("/silent") // a handler that says nothing answers 200
	get("/")
	get("/")
	if h.State() != breaker.Closed {
		t.Fatal("a success between did not count")
	}
	get("/panic")
	if h.State() != breaker.Open {
		t.Fatal("a panic did not count")
	}
	status = http.StatusOK
	if code, body, overloaded := get("/"); code != 503 || overloaded != "true" || !strings.Contains(body, "circuit open") {
		t.Errorf("with the circuit open: %d %q, x-envoy-overloaded %q", code, body, overloaded)
	}
}

func TestHandlerKeepsWhatTheWriterCan(t *testing.T) {
	flushed := make(chan struct{})
	h := &breaker.Handler{Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/flush":
			io.WriteString(w, "first ")
			w.(http.Flusher).Flush()
			<-flushed
			io.WriteString(w, "second")
		case "/controller":
			c := http.NewResponseController(w)
			if err := c.SetWriteDeadline(time.Now().Add(time.Hour)); err != nil {
				t.Error(err)
			}
			if err := c.Flush(); err != nil {
				t.Error(err)
			}
		case "/hijack":
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello\n")
		case "/early":
			w.WriteHeader(http.StatusEarlyHints)
			w.WriteHeader(http.StatusTeapot)
		case "/copy":
			if _, ok := w.(io.ReaderFrom); !ok && r.ProtoMajor == 1 {
				t.Error("the writer lost ReadFrom")
			}
			io.Copy(w, strings.NewReader("copied"))
		case "/can":
			_, hijacks := w.(http.Hijacker)
			fmt.Fprint(w, hijacks)
		}
	})}
	for _, proto := range []string{"HTTP/1.1", "HTTP/2"} {
		t.Run(proto, func(t *testing.T) {
			flushed = make(chan struct{})
			srv := httptest.NewUnstartedServer(h)
			srv.EnableHTTP2 = proto == "HTTP/2"
			srv.StartTLS()
			defer srv.Close()
			c := srv.Client()
			resp, err := c.Get(srv.URL + "/flush")
			if err != nil {
				t.Fatal(err)
			}
			if part, _ := bufio.NewReader(resp.Body).ReadString(' '); part != "first " {
				t.Errorf("read %q", part)
			}
			close(flushed)
			resp.Body.Close()
			for path, want := range map[string]string{
				"/controller": "200 ", "/early": "418 ", "/copy": "200 copied", "/can": fmt.Sprintf("200 %v", proto == "HTTP/1.1"),
			} {
				resp, err := c.Get(srv.URL + path)
				if err != nil {
					t.Fatal(err)
				}
				body, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if got := fmt.Sprintf("%d %s", resp.StatusCode, body); got != want {
					t.Errorf("%s: %s, want %s", path, got, want)
				}
			}
			if proto == "HTTP/2" {
				return // where there is nothing to take over
			}
			resp, err = c.Get(srv.URL + "/hijack")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			if line, _ := bufio.NewReader(resp.Body).ReadString('\n'); resp.StatusCode != 101 || line != "hello\n" {
				t.Errorf("%d %q", resp.StatusCode, line)
			}
		})
	}
}

func TestHandler_ClientGoneDoesNotCount(t *testing.T) {
	entered, left := make(chan struct{}), make(chan struct{})
	h := &breaker.Handler{Config: breaker.Config{ConsecutiveFailures: 1}, Next: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(left)
		close(entered)
		<-r.Context().Done()
	})}
	srv := httptest.NewServer(h)
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-entered; cancel() }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := http.DefaultClient.Do(req); err == nil {
		t.Fatal("the call was answered")
	}
	<-left
	if h.State() != breaker.Closed {
		t.Errorf("state %v after a client went away", h.State())
	}
}

func TestHandler_InvalidConfig(t *testing.T) {
	h := &breaker.Handler{Config: breaker.Config{FailureFraction: 2}, Next: http.NotFoundHandler()}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	if w.Code != http.StatusInternalServerError || h.State() != breaker.Closed {
		t.Errorf("%d %v", w.Code, h.State())
	}
}
