package limit_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	h2 "golang.org/x/net/http2"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy/limit"
)

// Every body that GetBody returns is closed, also those that net/http loses because it has no connection to send them over.
func TestConns_BodiesOfGetBodyAreClosed(t *testing.T) {
	for _, tt := range []struct {
		name    string
		config  limit.PoolConfig
		trailer http.Header
	}{
		{"the call shares its connection", limit.PoolConfig{}, nil},
		{"the call has its own connection", limit.PoolConfig{MaxRequestsPerConnection: 1}, nil},
		{"the connections are counted", limit.PoolConfig{MaxConnections: 2}, nil},
		{"only net/http's transport can send the request", limit.PoolConfig{}, http.Header{"Later": nil}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := conns(t, newPool(t, tt.config), goingAwayOnce(t))
			var bodies []*leak.Body
			body := func() (io.ReadCloser, error) {
				bodies = append(bodies, &leak.Body{Reader: strings.NewReader("body")})
				return bodies[len(bodies)-1], nil
			}
			first, _ := body()
			req := httptest.NewRequest(http.MethodPost, "https://orders", first)
			req.GetBody, req.Trailer = body, tt.trailer
			resp, err := c.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if len(bodies) < 2 {
				t.Error("net/http did not ask for a body")
			}
			for i, b := range bodies {
				await.True(t, fmt.Sprintf("body %d of %d is closed", i+1, len(bodies)), func() bool { return b.Closed.Load() > 0 })
			}
		})
	}
}

// goingAwayOnce returns a template whose first connection over HTTP/2 says, once some of a body came, that its call was not processed. The
// other connections answer.
func goingAwayOnce(t *testing.T) *http.Transport {
	secure := httptest.NewUnstartedServer(nil)
	secure.StartTLS() // for its certificate
	secure.Close()
	config := &tls.Config{Certificates: secure.TLS.Certificates, NextProtos: []string{"h2"}}
	ln := rawtest.Listen(t)
	var served atomic.Int64
	rawtest.Serve(t, ln, func(nc net.Conn) { answerBodies(tls.Server(nc, config), served.Add(1) == 1) })
	return &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, ln.Addr().String())
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
}

// answerBodies answers each request at the end of its body, or goes away as soon as some of a body came.
func answerBodies(nc net.Conn, away bool) {
	if _, err := io.ReadFull(nc, make([]byte, len(h2.ClientPreface))); err != nil {
		return
	}
	f := h2.NewFramer(nc, nc)
	f.WriteSettings()
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return
		}
		data, ok := frame.(*h2.DataFrame)
		switch {
		case ok && away:
			f.WriteGoAway(0, h2.ErrCodeNo, nil)
		case ok && data.StreamEnded(), !ok && frame.Header().Type == h2.FrameHeaders && frame.Header().Flags.Has(h2.FlagHeadersEndStream): // after trailers
			f.WriteHeaders(h2.HeadersFrameParam{StreamID: frame.Header().StreamID, EndStream: true, EndHeaders: true, BlockFragment: []byte{0x88}}) // 200
		}
	}
}
