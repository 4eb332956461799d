package mesh_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/timeout"
)

// endless is a body without end, of which each part takes a while.
type endless struct {
	pause time.Duration
	left  int // parts, if it has an end
}

func (e *endless) Read(p []byte) (int, error) {
	time.Sleep(e.pause)
	if e.left == 1 {
		return 0, io.EOF
	}
	e.left--
	clear(p)
	return len(p), nil
}

// An endpoint that takes the head of a request and never its body does not keep the call for ever, though the limits of the
// route stand still meanwhile.
func TestUploadThatNobodyTakes(t *testing.T) {
	for name, fields := range map[string]string{
		"timeout":       "timeout: 3s\nretries: {attempts: 0}",
		"perTryTimeout": "retries: {attempts: 1, perTryTimeout: 3s, retryOn: connect-failure}",
		"both":          "timeout: 1h\nretries: {attempts: 1, perTryTimeout: 3s, retryOn: connect-failure}",
	} {
		for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
			t.Run(name+" "+proto, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := uploads(t, fields, proto, func(http.ResponseWriter, *http.Request) { <-t.Context().Done() })
					began := time.Now()
					_, err := m.Post("http://api/", "", &endless{})
					if took := time.Since(began); took != 5*time.Minute {
						t.Errorf("ended after %v", took)
					}
					if kind, _ := timeout.Exceeded(err); kind != timeout.SendIdle {
						t.Errorf("ended with %v", err)
					}
				})
			})
		}
	}
}

// Neither a caller that takes its time nor an endpoint that reads slowly is cut, nor one that answers and does not read on.
func TestUploadThatTakesLong(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(proto, func(t *testing.T) {
			for name, test := range map[string]struct {
				body    endless
				handler http.HandlerFunc
			}{
				"slow caller": {endless{10 * time.Minute, 5}, func(w http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }},
				"slow endpoint": {endless{0, 200}, func(w http.ResponseWriter, r *http.Request) {
					for part := make([]byte, 512<<10); ; time.Sleep(4 * time.Minute) {
						if _, err := io.ReadFull(r.Body, part); err != nil {
							return
						}
					}
				}},
				"answers": {endless{}, func(w http.ResponseWriter, r *http.Request) {
					_ = http.NewResponseController(w).EnableFullDuplex()
					for range 20 {
						_, _ = io.WriteString(w, "part ")
						_ = http.NewResponseController(w).Flush()
						time.Sleep(4 * time.Minute)
					}
				}},
			} {
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						c := uploads(t, "timeout: 90m\nretries: {attempts: 0}", proto, test.handler)
						body := test.body
						resp, err := c.Post("http://api/", "", &body)
						if err != nil {
							t.Fatal(err)
						}
						defer resp.Body.Close()
						if _, err := io.Copy(io.Discard, resp.Body); err != nil {
							t.Error(err)
						}
					})
				})
			}
		})
	}
}

// An endpoint that answers, and takes no more of the request, does not keep the caller that reads the response beyond the end of its context or of
// the limits.
func TestUploadThatNobodyTakesAfterTheAnswer(t *testing.T) {
	for _, proto := range []string{"HTTP/1.1", "HTTP/2.0"} {
		for name, test := range map[string]struct {
			fields string
			ctx    func(context.Context) (context.Context, context.CancelFunc)
			took   time.Duration
			kind   timeout.Kind
			cause  error
		}{
			"caller gives up": {"retries: {attempts: 0}", func(ctx context.Context) (context.Context, context.CancelFunc) {
				ctx, cancel := context.WithCancel(ctx)
				time.AfterFunc(time.Minute, cancel)
				return ctx, cancel
			}, time.Minute, 0, context.Canceled},
			"deadline of the caller": {"timeout: 1h", func(ctx context.Context) (context.Context, context.CancelFunc) {
				return context.WithTimeout(ctx, time.Minute)
			}, time.Minute, 0, context.DeadlineExceeded},
			"timeout": {"timeout: 3s\nretries: {attempts: 0}", context.WithCancel, 5 * time.Minute, timeout.SendIdle, context.DeadlineExceeded},
		} {
			t.Run(name+" "+proto, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c := uploads(t, test.fields, proto, func(w http.ResponseWriter, _ *http.Request) {
						_ = http.NewResponseController(w).EnableFullDuplex()
						_ = http.NewResponseController(w).Flush()
						<-t.Context().Done()
					})
					ctx, cancel := test.ctx(t.Context())
					defer cancel()
					req, _ := http.NewRequestWithContext(ctx, http.MethodPost, "http://api/", &endless{})
					began := time.Now()
					resp, err := c.Do(req)
					if err != nil {
						t.Fatal(err)
					}
					defer resp.Body.Close()
					time.AfterFunc(time.Hour, func() { resp.Body.Close() })
					_, err = io.Copy(io.Discard, resp.Body)
					if took := time.Since(began); took != test.took {
						t.Errorf("ended after %v, want %v", took, test.took)
					}
					if kind, _ := timeout.Exceeded(err); kind != test.kind || !errors.Is(err, test.cause) {
						t.Errorf("ended with %v", err)
					}
				})
			})
		}
	}
}

// uploads returns a client of a mesh with one endpoint that speaks proto.
func uploads(t *testing.T, fields, proto string, handler http.HandlerFunc) *http.Client {
	documents := virtualService(fields)
	if proto == "HTTP/2.0" {
		documents += destinationRule("connectionPool: {http: {h2UpgradePolicy: UPGRADE}}")
	}
	t.Cleanup(func() { time.Sleep(time.Second) }) // net/http's server waits a little before it closes a connection with a body
	return servedBy(t, documents, &http.Server{Handler: handler})
}

// servedBy returns a client of a mesh whose service "api" is served by srv, over HTTP/1 and HTTP/2.
func servedBy(t *testing.T, documents string, srv *http.Server) *http.Client {
	f, done := new(meshtest.Fleet), make(chan struct{})
	const address = "10.9.9.9:80"
	ln := f.Network.Listen(address)
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go func() {
		defer close(done)
		srv.Serve(ln)
	}()
	t.Cleanup(func() {
		srv.Close()
		<-done
	})
	f.Registry.Set("api", meshtest.EndpointOf(t, address))
	return f.Mesh(t, documents).Client()
}
