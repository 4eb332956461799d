package mesh_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"mime/multipart"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/timeout"
	"github.com/nosidecar/mesh/tracing"
)

// around are the ways to put a handler behind the mesh or a layer of it. Each must show what the bare handler shows.
func around(t *testing.T) map[string]func(http.Handler) http.Handler {
	anyone, err := jwt.New(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	observed := mesh.Observer{InboundStart: func(ctx context.Context, _ *mesh.Inbound) context.Context { return ctx }}
	return map[string]func(http.Handler) http.Handler{
		"bare":            func(h http.Handler) http.Handler { return h },
		"mesh":            newMesh(t, "").Handler,
		"observed mesh":   newMesh(t, "", mesh.WithObserver(observed)).Handler,
		"tracing.Handler": func(h http.Handler) http.Handler { return &tracing.Handler{Next: h} },
		"breaker.Handler": func(h http.Handler) http.Handler { return &breaker.Handler{Next: h} },
		"jwt.Handler":     func(h http.Handler) http.Handler { return &jwt.Handler{Next: h, Authenticator: anyone} },
		"timeout.Handler": func(h http.Handler) http.Handler {
			next := &timeout.Handler{Next: h}
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				r.Header.Set(timeout.Header, "60000")
				next.ServeHTTP(w, r)
			})
		},
	}
}

// exchange sends text on a new connection to srv and returns all that comes back, without the date.
func exchange(t *testing.T, srv *httptest.Server, text string) string {
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute)) // an answer that never ends is a difference too
	io.WriteString(conn, text)
	all, err := io.ReadAll(conn)
	lines := strings.Split(string(all), "\r\n")
	for i, l := range lines {
		if strings.HasPrefix(l, "Date:") {
			lines[i] = "Date: D"
		}
	}
	return fmt.Sprint(strings.Join(lines, "|"), " ", err)
}

func TestHandlersAsWithNetHTTP(t *testing.T) {
	noLeaks(t)
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		send    string
	}{
		"unannounced trailers": {func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %v %v", b, err, r.Trailer)
		}, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"},
		"announced trailers": {func(w http.ResponseWriter, r *http.Request) {
			b, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %v %v", b, err, r.Trailer)
		}, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTrailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n"},
		"WriteHeader twice": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404); w.WriteHeader(200) },
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"empty write": {func(w http.ResponseWriter, r *http.Request) { w.Write(nil); w.WriteHeader(500) },
			"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"empty ReadFrom": {func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(w, onlyReader{strings.NewReader("")})
			w.WriteHeader(500)
			fmt.Fprint(w, n, err)
		}, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"hints": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Link", "x")
			w.WriteHeader(103)
			w.WriteHeader(102)
			io.Copy(w, strings.NewReader("x"))
		}, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"100": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(100)
			b, err := io.ReadAll(r.Body)
			fmt.Fprint(w, string(b), err)
		}, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"},
		"expect unread": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(417) },
			"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"},
		"expect other": {func(w http.ResponseWriter, r *http.Request) {},
			"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: 200-ok\r\nContent-Length: 3\r\n\r\n"},
		"body of 204": {func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(204)
			_, err := io.WriteString(w, "x")
			w.Header().Set(http.TrailerPrefix+"E", fmt.Sprint(err))
		}, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"too long": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1")
			_, err := io.WriteString(w, "xyz")
			if err != http.ErrContentLength {
				panic(err)
			}
			io.WriteString(w, "x")
		}, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"too short": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "xyz")
		}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		"trailer prefix": {func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "xyz")
			http.NewResponseController(w).Flush()
			w.Header().Set(http.TrailerPrefix+"E", "1")
		}, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"HEAD": {func(w http.ResponseWriter, r *http.Request) {
			n, err := io.Copy(w, strings.NewReader(strings.Repeat("x", 10000)))
			w.Header().Set("E", fmt.Sprint(n, err))
		}, "HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"abort": {func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "part")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		"full duplex": {func(w http.ResponseWriter, r *http.Request) {
			err := http.NewResponseController(w).EnableFullDuplex()
			fmt.Fprint(w, err)
			http.NewResponseController(w).Flush()
			b, err := io.ReadAll(r.Body)
			fmt.Fprint(w, string(b), err)
		}, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"},
		"read after write": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, "x")
			http.NewResponseController(w).Flush()
			b, err := io.ReadAll(r.Body)
			fmt.Fprint(w, string(b), err)
		}, "POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"},
		"read deadline": {func(w http.ResponseWriter, r *http.Request) {
			err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(-time.Second))
			b, e := io.ReadAll(r.Body)
			fmt.Fprint(w, err, string(b), errors.Is(e, os.ErrDeadlineExceeded))
		}, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n"},
		"write deadline": {func(w http.ResponseWriter, r *http.Request) {
			http.NewResponseController(w).SetWriteDeadline(time.Now().Add(-time.Second))
			io.WriteString(w, "x")
		}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		"hijack": {func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			b := make([]byte, 3)
			io.ReadFull(rw, b)
			_, werr := io.WriteString(w, "x")
			_, _, err = http.NewResponseController(w).Hijack()
			fmt.Fprint(rw, string(b), werr, err)
			rw.Flush()
			conn.Close()
		}, "GET / HTTP/1.1\r\nHost: x\r\n\r\nabc"},
		"hijack with a body": {func(w http.ResponseWriter, r *http.Request) {
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			b, err := io.ReadAll(r.Body)
			c := make([]byte, 3)
			io.ReadFull(rw, c)
			fmt.Fprint(rw, string(b), err, string(c))
			rw.Flush()
			conn.Close()
		}, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcdef"},
		"hijack after a write": {func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "begun")
			conn, rw, err := http.NewResponseController(w).Hijack()
			if err != nil {
				panic(err)
			}
			fmt.Fprint(rw, "x")
			rw.Flush()
			conn.Close()
		}, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		"invalid status": {func(w http.ResponseWriter, r *http.Request) {
			defer func() { fmt.Fprint(w, recover()) }()
			w.WriteHeader(42)
		}, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
		"HTTP/1.0": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Proto, r.Close)
			http.NewResponseController(w).Flush()
			fmt.Fprint(w, "x")
		}, "GET / HTTP/1.0\r\n\r\n"},
		"server": {func(w http.ResponseWriter, r *http.Request) {
			_, ok := r.Context().Value(http.ServerContextKey).(*http.Server)
			fmt.Fprint(w, ok, r.Context().Value(http.LocalAddrContextKey) != nil, r.Host, r.RequestURI, r.TransferEncoding, r.ContentLength, r.Close, r.URL)
		}, "GET //a/../b?x HTTP/1.1\r\nHost: x:99\r\nConnection: close\r\n\r\n"},
		"absolute": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Host, r.RequestURI, r.URL)
		}, "GET http://other:8/x HTTP/1.1\r\nHost: x:99\r\nConnection: close\r\n\r\n"},
		"CONNECT": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Host, r.RequestURI, r.URL)
		}, "CONNECT other:8 HTTP/1.1\r\nHost: other:8\r\nConnection: close\r\n\r\n"},
		"star": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Host, r.RequestURI, r.URL)
		}, "OPTIONS * HTTP/1.1\r\nHost: other:8\r\nConnection: close\r\n\r\n"},
		"pipelined": {func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.URL)
		}, "GET /1 HTTP/1.1\r\nHost: x\r\n\r\nPOST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /3 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			seen := make(map[string]string)
			for way, wrap := range around(t) {
				srv := httptest.NewUnstartedServer(wrap(test.handler))
				srv.Config.ErrorLog = log.New(io.Discard, "", 0)
				srv.Start()
				seen[way] = exchange(t, srv, test.send)
				srv.Close()
			}
			for way, got := range seen {
				if got != seen["bare"] {
					t.Errorf("%s:\n%s, want\n%s", way, got, seen["bare"])
				}
			}
		})
	}
}

// onlyReader is a reader without other methods: io.Copy hands it to the writer's ReadFrom.
type onlyReader struct{ io.Reader }

// Handlers ask writers for interfaces that an http.ResponseController does not stand for, so a writer has those of net/http's own.
func TestWritersAsWithNetHTTP(t *testing.T) {
	noLeaks(t)
	ways := around(t)
	for _, protocol := range []int{1, 2} {
		seen := make(map[string]string)
		for way, wrap := range ways {
			srv := httptest.NewUnstartedServer(wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, flushes := w.(http.Flusher)
				_, hijacks := w.(http.Hijacker)
				_, reads := w.(io.ReaderFrom)
				_, writes := w.(io.StringWriter)
				_, notifies := w.(interface{ CloseNotify() <-chan bool })
				fmt.Fprint(w, flushes, hijacks, reads, writes, notifies)
				if p, ok := w.(http.Pusher); ok {
					fmt.Fprint(w, " ", p.Push("/pushed", nil)) // Go's client takes no pushes
				}
			})))
			srv.EnableHTTP2 = protocol == 2
			srv.StartTLS()
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			srv.Close()
			if err != nil || resp.ProtoMajor != protocol {
				t.Fatalf("%s: HTTP/%d, %v", way, resp.ProtoMajor, err)
			}
			seen[way] = string(body)
		}
		for way, got := range seen {
			if got != seen["bare"] {
				t.Errorf("%s, HTTP/%d: %s, want %s", way, protocol, got, seen["bare"])
			}
		}
	}
}

// A handler's CloseNotify tells that the client has gone, with observers too.
func TestCloseNotify(t *testing.T) {
	noLeaks(t)
	for way, wrap := range around(t) {
		begun, gone := make(chan struct{}), make(chan bool, 1)
		srv := httptest.NewServer(wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			n, ok := w.(interface{ CloseNotify() <-chan bool })
			close(begun)
			if !ok {
				gone <- false
				return
			}
			select {
			case now := <-n.CloseNotify():
				gone <- now
			case <-time.After(time.Minute):
				gone <- false
			}
		})))
		conn, err := net.Dial("tcp", srv.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		<-begun
		conn.Close()
		if !<-gone {
			t.Errorf("%s: not told that the client has gone", way)
		}
		srv.Close()
	}
}

// What observers record is the status that the client got.
func TestRecordedStatus(t *testing.T) {
	noLeaks(t)
	for name, test := range map[string]struct {
		handler http.HandlerFunc
		want    int
	}{
		"nothing": {func(http.ResponseWriter, *http.Request) {}, 200},
		"empty ReadFrom": {func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, onlyReader{strings.NewReader("")})
			w.WriteHeader(500)
		}, 500},
		"failing ReadFrom": {func(w http.ResponseWriter, r *http.Request) {
			if _, err := io.Copy(w, onlyReader{iotest.ErrReader(io.ErrUnexpectedEOF)}); err != nil {
				http.Error(w, err.Error(), http.StatusBadGateway)
			}
		}, 502},
		"ReadFrom": {func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, onlyReader{strings.NewReader("x")})
			w.WriteHeader(500)
		}, 200},
		"empty Write": {func(w http.ResponseWriter, r *http.Request) { w.Write(nil); w.WriteHeader(500) }, 200},
		"hints":       {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(103); w.WriteHeader(404) }, 404},
	} {
		t.Run(name, func(t *testing.T) {
			recorded := make(chan int, 1)
			m := newMesh(t, "", mesh.WithObserver(mesh.Observer{InboundEnd: func(_ context.Context, in *mesh.Inbound) { recorded <- in.Status }}))
			srv := httptest.NewUnstartedServer(m.Handler(test.handler))
			srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of superfluous calls of WriteHeader
			srv.Start()
			defer srv.Close()
			resp, err := srv.Client().Get(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if got := <-recorded; got != test.want || resp.StatusCode != test.want {
				t.Errorf("recorded %d, sent %d, want %d", got, resp.StatusCode, test.want)
			}
		})
	}
}

// An http.MaxBytesHandler closes the connection of a request that exceeds its limit only if its ResponseWriter is net/http's own. Around
// [mesh.Mesh.Handler] it is. Behind it, net/http reads the rest if there is little of it, and the next request is what comes after it.
func TestBodiesBeyondALimit(t *testing.T) {
	noLeaks(t)
	next := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		}
	})
	behind := newMesh(t, "").Handler
	limited := func(h http.Handler) http.Handler { return http.MaxBytesHandler(h, 10) }
	for _, test := range []struct {
		name   string
		h      http.Handler
		rest   int
		closes bool
	}{
		{"bare", limited(next), 100, true},
		{"around the mesh", limited(behind(next)), 100, true},
		{"behind the mesh", behind(limited(next)), 100, false},
		{"behind the mesh, with a long rest", behind(limited(next)), 300 << 10, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			srv := httptest.NewServer(test.h)
			defer srv.Close()
			conn, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(time.Minute))
			body := strings.Repeat("GET /smuggled HTTP/1.1\r\n\r\n", test.rest/26+1)
			go fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%sGET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
				len(body), body)
			in := bufio.NewReader(conn)
			var statuses []int
			for {
				resp, err := http.ReadResponse(in, nil)
				if err != nil {
					break
				}
				io.Copy(io.Discard, resp.Body)
				statuses = append(statuses, resp.StatusCode)
				if test.closes && !resp.Close {
					t.Error("the answer does not say that the connection closes")
				}
			}
			want := []int{http.StatusRequestEntityTooLarge}
			if !test.closes {
				want = append(want, http.StatusOK)
			}
			if !slices.Equal(statuses, want) {
				t.Errorf("answers %v, want %v", statuses, want)
			}
		})
	}
}

// net/http removes the temporary files of a form when the handler has returned, but only those of the request that it knows.
func TestFilesOfFormsAreRemoved(t *testing.T) {
	noLeaks(t)
	t.Setenv("TMPDIR", t.TempDir())
	var form bytes.Buffer
	parts := multipart.NewWriter(&form)
	file, err := parts.CreateFormFile("upload", "large.bin")
	if err != nil {
		t.Fatal(err)
	}
	file.Write(make([]byte, 11<<20)) // 10 MiB more than what ParseMultipartForm(1) keeps stay in memory
	parts.Close()
	for way, wrap := range around(t) {
		for _, protocol := range []int{1, 2} {
			t.Run(fmt.Sprint(way, " ", protocol), func(t *testing.T) {
				srv := httptest.NewUnstartedServer(wrap(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if err := r.ParseMultipartForm(1); err != nil {
						t.Error(err)
						return
					}
					f, _, err := r.FormFile("upload")
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					if on, ok := f.(*os.File); ok {
						io.WriteString(w, on.Name())
					}
				})))
				srv.EnableHTTP2 = protocol == 2
				srv.StartTLS()
				defer srv.Close()
				resp, err := srv.Client().Post(srv.URL, parts.FormDataContentType(), bytes.NewReader(form.Bytes()))
				if err != nil {
					t.Fatal(err)
				}
				name, _ := bufio.NewReader(resp.Body).ReadString('\n')
				resp.Body.Close()
				srv.Close() // waits for the handler
				if name == "" || resp.ProtoMajor != protocol {
					t.Fatalf("file %q over HTTP/%d", name, resp.ProtoMajor)
				}
				if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s is still there: %v", name, err)
				}
			})
		}
	}
}
