package tlsid_test

import (
	"crypto/tls"
	"net"
	"testing"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

// BenchmarkListener measures a connection from dial to close, beside bare ones.
func BenchmarkListener(b *testing.B) {
	e := newEnds(b, time.Hour, time.Hour)
	plaintext := func(c net.Conn) net.Conn { return c }
	secured := func(c net.Conn) net.Conn { return tls.Client(c, e.client) }
	for _, bench := range []struct {
		name   string
		listen func(net.Listener) net.Listener
		client func(net.Conn) net.Conn
	}{
		{"plaintext/bare", func(l net.Listener) net.Listener { return l }, plaintext},
		{"plaintext/disable", func(l net.Listener) net.Listener {
			return tlsid.NewListener(l, tlsid.ListenerConfig{Mode: always(tlsid.Disable)})
		}, plaintext},
		{"plaintext/permissive", func(l net.Listener) net.Listener {
			return tlsid.NewListener(l, tlsid.ListenerConfig{TLS: e.server, Mode: always(tlsid.Permissive)})
		}, plaintext},
		{"tls/bare", func(l net.Listener) net.Listener { return tls.NewListener(l, e.server) }, secured},
		{"tls/strict", func(l net.Listener) net.Listener {
			return tlsid.NewListener(l, tlsid.ListenerConfig{TLS: e.server})
		}, secured},
	} {
		b.Run(bench.name, func(b *testing.B) {
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			l := bench.listen(inner)
			defer l.Close()
			go func() {
				buf := make([]byte, 1)
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Read(buf)
					c.Write(buf)
					c.Close()
				}
			}()
			buf := make([]byte, 1)
			b.ReportAllocs()
			for b.Loop() {
				raw, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					b.Fatal(err)
				}
				c := bench.client(raw)
				c.Write([]byte("x"))
				if _, err := c.Read(buf); err != nil {
					b.Fatal(err)
				}
				c.Close()
			}
		})
	}
}
