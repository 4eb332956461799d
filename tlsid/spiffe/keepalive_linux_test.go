package spiffe_test

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/tlsid/spiffe"
)

// An API over TCP that vanishes with its machine is noticed, although nothing is sent to it.
func TestSource_KeepsTCPAlive(t *testing.T) {
	ln := rawtest.Listen(t)
	peers := make(chan net.Addr, 1)
	rawtest.Serve(t, ln, func(c net.Conn) {
		select {
		case peers <- c.RemoteAddr():
		default:
		}
		io.Copy(io.Discard, c) // until the source closes
	})
	follow(t, spiffe.Source{Addr: "tcp://" + ln.Addr().String()})
	local := await.Receive(t, "a connection", peers).(*net.TCPAddr).Port
	await.True(t, "a keep-alive within 15 s", func() bool {
		table, err := os.ReadFile("/proc/self/net/tcp")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			if len(f) > 5 && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", local)) { // sl local remote state queues tr:tm->when
				timer, when, _ := strings.Cut(f[5], ":")
				jiffies, err := strconv.ParseUint(when, 16, 64)
				return err == nil && timer == "02" && jiffies <= 15*100
			}
		}
		return false
	})
}
