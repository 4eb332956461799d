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

// The others of a cluster do not wait for a leader that there cannot be.
func TestConsulClusterWithAPortThatIsTaken(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	calls := 0
	agents := startCluster(t, func(t testing.TB, n int) []string {
		at := free(t, n)
		if calls++; calls == 3 {
			at[3] = l.LocalAddr().String() // gossip needs UDP, too
		}
		return at
	}, 3, ConsulConfig{})
	if calls != 6 {
		t.Errorf("started after %d agents, want 6", calls)
	}
	for _, a := range agents {
		a.Kill()
	}
}
