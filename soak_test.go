package mesh_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
)

// TestSoak calls while endpoints, documents and certificates change all the time. See [meshtest.Soak] for what it asserts
// and for MESH_SOAK, which makes it longer.
func TestSoak(t *testing.T) {
	for _, test := range []struct {
		name, proto string
		mTLS        bool
	}{
		{"plaintext HTTP1", "HTTP/1.1", false},
		{"plaintext HTTP2", "HTTP/2.0", false},
		{"mTLS HTTP1", "HTTP/1.1", true},
		{"mTLS HTTP2", "HTTP/2.0", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			leak.Check(t)
			soak := meshtest.Soak{MTLS: test.mTLS, Transport: speaking(test.proto)}
			// net/http keeps a closed HTTP/2 connection until the ping that it would have sent is due: 30 s, by our default. Here,
			// those of the warm-up and of the test before must be gone when the heap is measured first.
			soak.Transport.HTTP2 = &http.HTTP2Config{SendPingTimeout: 500 * time.Millisecond}
			if test.proto == "HTTP/2.0" {
				soak.Documents = destinationRule("connectionPool: {http: {h2UpgradePolicy: UPGRADE}}")
			}
			soak.Serve = func(m *mesh.Mesh, ln net.Listener) func() {
				srv := &http.Server{Handler: m.Handler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })), Protocols: new(http.Protocols)}
				srv.Protocols.SetHTTP1(true)
				srv.Protocols.SetHTTP2(true)
				srv.Protocols.SetUnencryptedHTTP2(true)
				done := make(chan struct{})
				go func() {
					defer close(done)
					srv.Serve(m.Listen(ln))
				}()
				return func() {
					srv.Close()
					<-done
				}
			}
			soak.Dial = func(_ testing.TB, m *mesh.Mesh) (func(context.Context) error, func()) {
				c := m.Client()
				return func(ctx context.Context) error { return echo(ctx, c, test.proto) }, c.CloseIdleConnections
			}
			soak.Run(t)
		})
	}
}

// echo calls api, which answers with what it was sent.
func echo(ctx context.Context, c *http.Client, proto string) error {
	const said = "hello"
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://api/", strings.NewReader(said))
	if err != nil {
		return err
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (string(body) != said || resp.StatusCode != http.StatusOK || resp.Proto != proto) {
		err = fmt.Errorf("%s %s with %q", resp.Proto, resp.Status, body)
	}
	return err
}
