package fault_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/fault"
)

// base is a destination that counts its calls.
type base struct {
	calls, idle int
}

func (b *base) RoundTrip(req *http.Request) (*http.Response, error) {
	b.calls++
	if req.Body != nil {
		req.Body.Close()
	}
	return &http.Response{StatusCode: 200, Body: http.NoBody, Request: req}, nil
}

func (b *base) CloseIdleConnections() {
	b.idle++
}

func request(ctx context.Context, method string) (*http.Request, *leak.Body) {
	req := httptest.NewRequestWithContext(ctx, method, "http://orders/", nil)
	body := &leak.Body{Reader: strings.NewReader("a body")}
	req.Body = body
	return req, body
}

func always(d time.Duration, status int) fault.Config {
	config := fault.Config{Delay: fault.Delay{Fraction: 1, Fixed: d}}
	if status != 0 {
		config.Abort = fault.Abort{Fraction: 1, HTTPStatus: status}
	}
	return config
}

func TestTransport_DelayThenAbort(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config fault.Config
		status int
		calls  int
		took   time.Duration
	}{
		{"no fault", fault.Config{}, 200, 1, 0},
		{"delay", always(3*time.Second, 0), 200, 1, 3 * time.Second},
		{"abort", always(0, 503), 503, 0, 0},
		{"delay, then abort", always(3*time.Second, 503), 503, 0, 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				destination := &base{}
				rt := &fault.Transport{Base: destination, Config: tt.config}
				begin := time.Now()
				req, body := request(t.Context(), "POST")
				resp, err := rt.RoundTrip(req)
				if err != nil {
					t.Fatal(err)
				}
				took := time.Since(begin)
				if resp.StatusCode != tt.status || destination.calls != tt.calls || took != tt.took {
					t.Errorf("status %d, %d calls after %v, want %d, %d after %v",
						resp.StatusCode, destination.calls, took, tt.status, tt.calls, tt.took)
				}
				if body.Closed.Load() != 1 {
					t.Errorf("the request body was closed %d times, want once", body.Closed.Load())
				}
			})
		})
	}
}

func TestTransport_DelayHonoursContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		destination := &base{}
		rt := &fault.Transport{Base: destination, Config: always(time.Hour, 0)}
		gone := errors.New("gone")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(gone) })
		begin := time.Now()
		req, body := request(ctx, "POST")
		_, err := rt.RoundTrip(req)
		if err != gone || time.Since(begin) != time.Second {
			t.Errorf("RoundTrip = %v after %v, want the cause after 1s", err, time.Since(begin))
		}
		if body.Closed.Load() != 1 || destination.calls != 0 {
			t.Errorf("body closed %d times, %d calls; want 1 and 0", body.Closed.Load(), destination.calls)
		}
	})
}

func TestDecision_Response(t *testing.T) {
	http503 := fault.Decision{Abort: true, HTTPStatus: 503}
	grpc7 := fault.Decision{Abort: true, GRPCStatus: 7, IsGRPC: true}
	for _, tt := range []struct {
		name        string
		decision    fault.Decision
		method      string
		contentType string
		status      string
		grpcStatus  string
		text        string
	}{
		{"HTTP", http503, "GET", "", "503 Service Unavailable", "", "fault filter abort"},
		{"HTTP, odd status", fault.Decision{HTTPStatus: 599}, "GET", "", "599", "", "fault filter abort"},
		{"HTTP, no content", fault.Decision{HTTPStatus: 204}, "GET", "", "204 No Content", "", ""},
		{"HTTP, HEAD", http503, "HEAD", "", "503 Service Unavailable", "", ""},
		{"gRPC", grpc7, "POST", "application/grpc", "200 OK", "7", ""},
		{"gRPC with a suffix", grpc7, "POST", "application/grpc+proto", "200 OK", "7", ""},
		{"gRPC status for another call", grpc7, "POST", "application/json", "200 OK", "", "fault filter abort"},
		{"gRPC-Web is not gRPC", grpc7, "POST", "application/grpc-web", "200 OK", "", "fault filter abort"},
		{"HTTP status for a gRPC call", http503, "POST", "application/grpc", "200 OK", "14", ""},
		{"400 for gRPC", fault.Decision{HTTPStatus: 400}, "POST", "application/grpc", "200 OK", "13", ""},
		{"401 for gRPC", fault.Decision{HTTPStatus: 401}, "POST", "application/grpc", "200 OK", "16", ""},
		{"403 for gRPC", fault.Decision{HTTPStatus: 403}, "POST", "application/grpc", "200 OK", "7", ""},
		{"404 for gRPC", fault.Decision{HTTPStatus: 404}, "POST", "application/grpc", "200 OK", "12", ""},
		{"418 for gRPC", fault.Decision{HTTPStatus: 418}, "POST", "application/grpc", "200 OK", "2", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			req, _ := request(t.Context(), tt.method)
			if tt.contentType != "" {
				req.Header.Set("Content-Type", tt.contentType)
			}
			resp := tt.decision.Response(req)
			text, err := io.ReadAll(resp.Body)
			wantLength := int64(len(tt.text))
			if tt.method == "HEAD" {
				wantLength = 18 // of what a GET would get, as net/http tells it
			}
			if err != nil || string(text) != tt.text || resp.ContentLength != wantLength {
				t.Errorf("body %q of length %d, %v; want %q", text, resp.ContentLength, err, tt.text)
			}
			if err := resp.Body.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			if got := resp.Header.Get("Grpc-Status"); resp.Status != tt.status || got != tt.grpcStatus {
				t.Errorf("status %q, grpc-status %q; want %q, %q", resp.Status, got, tt.status, tt.grpcStatus)
			}
			wantType, wantMessage := "text/plain", ""
			if tt.grpcStatus != "" {
				wantType, wantMessage = "application/grpc", "fault filter abort"
			} else if resp.StatusCode == http.StatusNoContent {
				wantType = ""
			}
			if resp.Header.Get("Content-Type") != wantType || resp.Header.Get("Grpc-Message") != wantMessage {
				t.Errorf("header %v, want content type %q and message %q", resp.Header, wantType, wantMessage)
			}
			proto := "HTTP/1.1"
			if tt.grpcStatus != "" { // gRPC is spoken over HTTP/2 only
				proto = "HTTP/2.0"
			}
			if resp.Request != req || resp.Proto != proto || !resp.ProtoAtLeast(int(proto[5]-'0'), int(proto[7]-'0')) {
				t.Errorf("request %p, protocol %s %d.%d", resp.Request, resp.Proto, resp.ProtoMajor, resp.ProtoMinor)
			}
		})
	}
}

func TestTransport_InvalidConfig(t *testing.T) {
	rt := &fault.Transport{Base: &base{}, Config: always(0, 42)}
	for range 2 {
		req, body := request(t.Context(), "POST")
		if _, err := rt.RoundTrip(req); err == nil || body.Closed.Load() != 1 {
			t.Errorf("RoundTrip = %v with the body closed %d times, want an error and once", err, body.Closed.Load())
		}
	}
}

func TestTransport_CloseIdleConnections(t *testing.T) {
	destination := &base{}
	(&http.Client{Transport: &fault.Transport{Base: destination}}).CloseIdleConnections()
	if destination.idle != 1 {
		t.Errorf("forwarded %d times, want once", destination.idle)
	}
}

func TestTransport_Allocs(t *testing.T) {
	req, _ := request(t.Context(), "GET")
	bare := testing.AllocsPerRun(100, func() { (&base{}).RoundTrip(req) })
	destination := &base{}
	rt := &fault.Transport{Base: destination, Config: fault.Config{
		Delay: fault.Delay{Fraction: 1e-6, Fixed: time.Nanosecond},
		Abort: fault.Abort{Fraction: 1e-6, HTTPStatus: 503},
	}, Rand: func(uint32) uint32 { return 1 }}
	if n := testing.AllocsPerRun(100, func() { rt.RoundTrip(req) }); n > bare {
		t.Errorf("a call that meets no fault costs %v allocations, %v without", n, bare)
	}
}
