package transports_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/internal/transports"
)

// What dials is what net/http would dial with.
func TestDial(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	withContext, without := errors.New("DialContext"), errors.New("Dial")
	dialContext := func(context.Context, string, string) (net.Conn, error) { return nil, withContext }
	dial := func(string, string) (net.Conn, error) { return nil, without }
	for _, test := range []struct {
		name string
		of   *http.Transport
		want error
	}{
		{"neither", &http.Transport{}, nil},
		{"DialContext", &http.Transport{DialContext: dialContext}, withContext},
		//lint:ignore SA1019 programs may still set it
		{"Dial", &http.Transport{Dial: dial}, without},
		//lint:ignore SA1019 as above
		{"both", &http.Transport{DialContext: dialContext, Dial: dial}, withContext},
	} {
		conn, err := transports.Dial(test.of)(t.Context(), "tcp", ln.Addr().String())
		if err != test.want {
			t.Errorf("%s: error %v, want %v", test.name, err, test.want)
		}
		if conn != nil {
			conn.Close()
		}
	}
}

// closer counts how often its idle connections were closed.
type closer struct {
	http.RoundTripper
	closed int
}

func (c *closer) CloseIdleConnections() { c.closed++ }

// Layers without a transport of their own use that of net/http, so they close its connections, too.
func TestCloseIdle(t *testing.T) {
	standard := http.DefaultTransport
	defer func() { http.DefaultTransport = standard }()
	var own, def closer
	http.DefaultTransport = &def
	transports.CloseIdle(&own)
	transports.CloseIdle(nil)
	transports.CloseIdle(struct{ http.RoundTripper }{&own}) // has no method for it
	if own.closed != 1 || def.closed != 1 {
		t.Errorf("idle connections were closed %d and %d times, want once each", own.closed, def.closed)
	}
}
