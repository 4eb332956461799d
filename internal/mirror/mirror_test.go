package mirror_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/mirror"
)

// target is a mirror.
type target struct {
	Port       int
	perMillion uint32
}

// mirrored returns a mirror that gets copies of all requests, and others.
func mirrored(perMillion ...uint32) []target {
	mirrors := []target{{0, 1e6}}
	for i, n := range perMillion {
		mirrors = append(mirrors, target{i + 1, n})
	}
	return mirrors
}

func get(t testing.TB, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// sent is what a mirror received.
type sent struct {
	target target
	req    *http.Request
	body   string
}

// shadow records copies and what became of them. Its channels have room for all of a test.
type shadow struct {
	mirror.Mirrorer[target]
	got  chan sent
	done chan error
}

func newShadow() *shadow {
	s := &shadow{got: make(chan sent, 100), done: make(chan error, 100)}
	s.Share = func(to *target) uint32 { return to.perMillion }
	s.Send = func(to *target, req *http.Request) (*http.Response, error) {
		var body []byte
		if req.Body != nil {
			var err error
			if body, err = io.ReadAll(req.Body); err != nil {
				return nil, err
			}
			req.Body.Close()
		}
		s.got <- sent{*to, req, string(body)}
		return &http.Response{StatusCode: 500, Body: http.NoBody}, nil
	}
	s.Done = func(_ *target, err error) { s.done <- err }
	return s
}

func post(t testing.TB, body io.Reader) *http.Request {
	t.Helper()
	req, err := http.NewRequest("POST", "http://a:80/b?c", body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

// stream hides what net/http knows about a reader, so that there is neither GetBody nor a length.
func stream(r io.Reader) io.Reader { return io.MultiReader(r) }

func TestMirrorBodies(t *testing.T) {
	large := strings.Repeat("x", 64<<10+1)
	readAll := func(r io.ReadCloser) { io.Copy(io.Discard, r); r.Close() }
	withLength := func(n int64, body io.Reader) *http.Request {
		req := post(t, body)
		req.ContentLength = n
		return req
	}
	failing := errors.New("disk")

	for _, c := range []struct {
		name string
		req  *http.Request
		read func(io.ReadCloser)
		want string
		err  error
	}{
		{"none", post(t, nil), nil, "", nil},
		{"GetBody, not read", post(t, strings.NewReader("hello")), func(r io.ReadCloser) { r.Close() }, "hello", nil},
		{"GetBody, large", post(t, strings.NewReader(large)), readAll, large, nil},
		{"stream", post(t, stream(strings.NewReader("hello"))), readAll, "hello", nil},
		{"stream in pieces", post(t, stream(iotest.OneByteReader(strings.NewReader("hello")))), readAll, "hello", nil},
		{"stream, EOF with the data", post(t, stream(iotest.DataErrReader(strings.NewReader("hello")))), readAll, "hello", nil},
		{"stream, empty", post(t, stream(strings.NewReader(""))), readAll, "", nil},
		{"stream, just not too large", post(t, stream(strings.NewReader(large[1:]))), readAll, large[1:], nil},
		{"stream, too large", post(t, stream(strings.NewReader(large))), readAll, "", mirror.ErrBody},
		{"announced just not too large", withLength(64<<10, stream(strings.NewReader(large[1:]))), readAll, large[1:], nil},
		{"announced too large", withLength(64<<10+1, stream(strings.NewReader(large))), nil, "", mirror.ErrBody},
		{"length known, not read to EOF", withLength(5, stream(strings.NewReader("hello"))), func(r io.ReadCloser) {
			io.ReadFull(r, make([]byte, 5))
			r.Close()
		}, "hello", nil},
		{"closed early", post(t, stream(strings.NewReader("hello"))), func(r io.ReadCloser) {
			r.Read(make([]byte, 2))
			r.Close()
			r.Close()
		}, "", mirror.ErrBody},
		{"not read", post(t, stream(strings.NewReader("hello"))), func(r io.ReadCloser) { r.Close() }, "", mirror.ErrBody},
		{"broken", post(t, stream(iotest.ErrReader(failing))), readAll, "", mirror.ErrBody},
		{"GetBody fails", func() *http.Request {
			req := post(t, stream(strings.NewReader("hello")))
			req.GetBody = func() (io.ReadCloser, error) { return nil, failing }
			return req
		}(), readAll, "", failing},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShadow()
				defer s.Close()
				out := c.req.Clone(t.Context())
				s.Fork(out, mirrored(), 0)
				if c.read != nil {
					c.read(out.Body)
				}
				synctest.Wait()
				if got := <-s.done; !errors.Is(got, c.err) {
					t.Errorf("Done(%v), want %v", got, c.err)
				}
				select {
				case got := <-s.got:
					if c.err != nil || got.body != c.want {
						t.Errorf("mirror received %d bytes, want %d", len(got.body), len(c.want))
					}
					if n := got.req.ContentLength; n != int64(len(c.want)) {
						t.Errorf("ContentLength = %d, want %d", n, len(c.want))
					}
				default:
					if c.err == nil {
						t.Error("mirror received nothing")
					}
				}
				if len(s.done) > 0 {
					t.Error("Done was called twice")
				}
			})
		})
	}
}

// The original's body is read as if there were no mirror.
func TestMirrorPrimaryBody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		defer s.Close()
		body := strings.Repeat("0123456789", 10000)
		out := post(t, stream(strings.NewReader(body)))
		s.Fork(out, mirrored(1e6), 0)
		if err := iotest.TestReader(out.Body, []byte(body)); err != nil {
			t.Error(err)
		}
	})
}

func TestMirrorRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		defer s.Close()
		out := post(t, stream(strings.NewReader("hello")))
		out.Header.Set("x-a", "1")
		s.Fork(out, mirrored(), 0)
		out.Header.Set("x-a", "2") // an attempt of the original goes on changing it
		out.URL.Host = "10.0.0.1"
		io.Copy(io.Discard, out.Body)
		got := <-s.got
		if got.target != mirrored()[0] || got.req.Method != "POST" || got.req.Host != "a-shadow:80" ||
			got.req.URL.String() != "http://a:80/b?c" || got.req.Header.Get("X-A") != "1" {
			t.Errorf("%+v received %+v", got.target, got.req)
		}
	})
}

func TestShadowHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for host, want := range map[string]string{
			"cluster.local":    "cluster.local-shadow",
			"cluster.local:80": "cluster.local-shadow:80",
			"[::1]:80":         "[::1]-shadow:80",
			"[::1]":            "[::1]-shadow",
		} {
			s := newShadow()
			out := get(t, "http://a/")
			out.Host = host
			s.Fork(out, mirrored(), 0)
			if got := (<-s.got).req.Host; got != want {
				t.Errorf("Host of a copy of %s = %s, want %s", host, got, want)
			}
			s.Close()
		}
	})
}

func TestMirrorShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		defer s.Close()
		next := uint32(0)
		s.Rand = func(n uint32) uint32 { return next % n }
		e := mirrored(250_000, 0)
		for _, c := range []struct {
			drawn uint32
			want  int
		}{{0, 2}, {249_999, 2}, {250_000, 1}, {999_999, 1}} {
			next = c.drawn
			s.Fork(get(t, "http://a/"), e, 0)
			synctest.Wait()
			if len(s.got) != c.want {
				t.Errorf("%d: %d copies, want %d", c.drawn, len(s.got), c.want)
			}
			for len(s.got) > 0 {
				<-s.got
			}
		}
	})
}

// hang makes copies wait for the end of their context.
func (s *shadow) hang() {
	s.Send = func(to *target, req *http.Request) (*http.Response, error) {
		s.got <- sent{target: *to, req: req}
		<-req.Context().Done()
		return nil, context.Cause(req.Context())
	}
}

func TestMirrorLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		s.hang()
		s.Limit = 2
		e := mirrored()
		for range 3 {
			s.Fork(get(t, "http://a/"), e, 0)
		}
		if err := <-s.done; !errors.Is(err, mirror.ErrLimit) {
			t.Errorf("Done(%v), want ErrMirrorLimit", err)
		}
		time.Sleep(15 * time.Second)
		synctest.Wait()
		for range 2 {
			if err := <-s.done; !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Done(%v), want DeadlineExceeded", err)
			}
		}
		s.Fork(get(t, "http://a/"), e, 0) // there is room again
		s.Close()
		if err := <-s.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Done(%v), want Canceled", err)
		}
	})
}

// TestMirrorsBodyOfADroppedCopy: what GetBody has opened for it is closed.
func TestMirrorsBodyOfADroppedCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		s.hang()
		s.Limit = 1
		s.Fork(get(t, "http://a/"), mirrored(), 0)
		opened := &endless{closed: make(chan struct{})}
		out := post(t, stream(strings.NewReader("hello")))
		out.GetBody = func() (io.ReadCloser, error) { return opened, nil }
		s.Fork(out, mirrored(), 0)
		if err := <-s.done; !errors.Is(err, mirror.ErrLimit) {
			t.Errorf("Done(%v), want ErrLimit", err)
		}
		select {
		case <-opened.closed:
		default:
			t.Error("the body is still open")
		}
		s.Close()
	})
}

func TestMirrorTimeout(t *testing.T) {
	for _, c := range []struct {
		name             string
		route, configure time.Duration
		want             time.Duration
	}{
		{"default", 0, 0, 15 * time.Second},
		{"configured", 0, time.Second, time.Second},
		{"route", time.Minute, time.Second, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newShadow()
				defer s.Close()
				s.hang()
				s.Timeout = c.configure
				start := time.Now()
				s.Fork(get(t, "http://a/"), mirrored(), c.route)
				<-s.done
				if got := time.Since(start); got != c.want {
					t.Errorf("the copy ended after %v, want %v", got, c.want)
				}
			})
		})
	}
}

type key struct{}

// TestMirrorsContextEndsWithTheCopy, so that what waits for it need not wait for the timeout.
func TestMirrorsContextEndsWithTheCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		defer s.Close()
		s.Fork(get(t, "http://a/"), mirrored(), time.Hour)
		ctx := (<-s.got).req.Context()
		<-s.done
		synctest.Wait()
		if ctx.Err() == nil {
			t.Error("the context of the copy goes on after its end")
		}
	})
}

// A copy keeps the values of the original's context, but not its end and not its trace hooks.
func TestMirrorContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		s.hang()
		ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GetConn:  func(string) { t.Error("the original's GetConn was called") },
			DNSStart: func(httptrace.DNSStartInfo) { t.Error("the original's DNSStart was called") },
		})
		s.Fork(get(t, "http://a/").WithContext(ctx), mirrored(), 0)
		got := (<-s.got).req.Context()
		cancel()
		synctest.Wait()
		if got.Err() != nil || got.Value(key{}) != "value" {
			t.Errorf("context of the copy: %v, value %v", got.Err(), got.Value(key{}))
		}
		if trace := httptrace.ContextClientTrace(got); trace != nil && (trace.GetConn != nil || trace.DNSStart != nil) {
			t.Error("the copy has the original's hooks")
		}
		s.Close()
	})
}

func TestMirrorClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		s.hang()
		e := mirrored()
		waiting := post(t, stream(strings.NewReader("hello")))
		s.Fork(waiting, e, 0)
		s.Fork(get(t, "http://a/"), e, 0)
		for range 2 {
			if err := s.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
		}
		if err := <-s.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Done(%v), want Canceled", err)
		}
		if body, err := io.ReadAll(waiting.Body); string(body) != "hello" || err != nil {
			t.Errorf("original's body = %q, %v", body, err)
		}
		if err := <-s.done; !errors.Is(err, mirror.ErrClosed) {
			t.Errorf("Done(%v), want ErrMirrorClosed", err)
		}
	})
}

// endless is a response body that never ends.
type endless struct {
	read   int
	closed chan struct{}
}

func (e *endless) Read(p []byte) (int, error) { e.read += len(p); return len(p), nil }
func (e *endless) Close() error               { close(e.closed); return nil }

func TestMirrorDrainsWithinBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct{ status, max int }{{200, 128 << 10}, {101, 0}} {
			s := newShadow()
			body := &endless{closed: make(chan struct{})}
			s.Send = func(*target, *http.Request) (*http.Response, error) {
				return &http.Response{StatusCode: c.status, Body: body}, nil
			}
			s.Fork(get(t, "http://a/"), mirrored(), 0)
			<-body.closed
			if err := <-s.done; err != nil {
				t.Errorf("Done(%v), want nil", err)
			}
			if body.read > c.max {
				t.Errorf("%d bytes of a %d were read, want at most %d", body.read, c.status, c.max)
			}
			s.Close()
		}
	})
}

// A copy is sent once, whatever becomes of it.
func TestMirrorNotRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newShadow()
		failing := errors.New("down")
		calls := 0
		s.Send = func(*target, *http.Request) (*http.Response, error) { calls++; return nil, failing }
		s.Fork(post(t, bytes.NewReader(nil)), mirrored(), 0)
		if err := <-s.done; err != failing {
			t.Errorf("Done(%v), want %v", err, failing)
		}
		s.Close()
		if calls != 1 {
			t.Errorf("%d calls, want 1", calls)
		}
	})
}

func TestForkWithoutMirrorsAllocs(t *testing.T) {
	var m mirror.Mirrorer[target]
	out := get(t, "http://a/")
	if n := testing.AllocsPerRun(100, func() { m.Fork(out, nil, 0) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

// A caller may use the memory of a body again when its call is over. A copy may be sent later.
func TestCopyHasItsOwnMemory(t *testing.T) {
	s, over := newShadow(), make(chan struct{})
	send := s.Send
	s.Send = func(to *target, req *http.Request) (*http.Response, error) {
		<-over
		return send(to, req)
	}
	memory := []byte("mine")
	s.Fork(post(t, bytes.NewReader(memory)), mirrored(), 0)
	copy(memory, "gone")
	close(over)
	if got := <-s.got; got.body != "mine" || got.req.ContentLength != 4 {
		t.Errorf("the copy has the body %q of %d bytes", got.body, got.req.ContentLength)
	}
	s.Close()
}
