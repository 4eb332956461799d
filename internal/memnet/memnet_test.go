package memnet_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/memnet"
)

func TestNetwork(t *testing.T) {
	leak.Check(t)
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Network
		says := func(text string) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) })
		}
		n.Serve(t, "10.0.0.1:80", says("one"))
		n.Serve(t, "10.0.0.2:80", says("two"))
		rt := &http.Transport{DialContext: n.DialContext}
		defer rt.CloseIdleConnections()
		for address, want := range map[string]string{"10.0.0.1": "one", "10.0.0.2": "two"} {
			resp, err := (&http.Client{Transport: rt}).Get("http://" + address)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if string(got) != want || err != nil {
				t.Errorf("%s answers %q, %v; want %q", address, got, err, want)
			}
		}
		if _, err := n.DialContext(t.Context(), "tcp", "10.0.0.3:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("without a listener: %v, want that the connection is refused", err)
		}
		if n.Dials() != 3 {
			t.Errorf("Dials = %d, want 3", n.Dials())
		}
	})
}

// A listener that accepts nothing holds up those who dial until they lose patience or it is closed.
func TestNetwork_NobodyAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n memnet.Network
		l := n.Listen("10.0.0.1:80")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := n.DialContext(ctx, "tcp", "10.0.0.1:80"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after a minute: %v", err)
		}
		time.AfterFunc(time.Minute, func() { l.Close() })
		if _, err := n.DialContext(t.Context(), "tcp", "10.0.0.1:80"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Close: %v", err)
		}
		n.Listen("10.0.0.1:80").Close() // the address is free again
	})
}
