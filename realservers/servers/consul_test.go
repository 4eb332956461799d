package servers

import (
	"net"
	"testing"
)

// A port may be taken between the moment in which it is free and that in which an agent listens.
func TestConsulWithAPortThatIsTaken(t *testing.T) {
	for taken := range 4 { // HTTP, gRPC, the servers' own, and gossip
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		calls := 0
		ports := func(t testing.TB, n int) []string {
			at := free(t, n)
			if calls++; calls == 1 {
				at[taken] = l.Addr().String()
			}
			return at
		}
		agents := startConsul(t, ports, func(ports portsOf) []*Consul {
			return []*Consul{newConsul(t, "server", ConsulConfig{Dev: true}, 1, ports)}
		})
		if calls != 2 || agents[0].HTTP == l.Addr().String() {
			t.Errorf("port %d: started in %d tries", taken, calls)
		}
		agents[0].Kill()
	}
}
