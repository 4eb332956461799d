package realservers

import (
	"testing"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/realservers/servers"
)

// The agents that the other tests of Consul use keep what they promise: three servers survive their leader's death, and a restart keeps
// what was written.
func TestConsulAgents(t *testing.T) {
	agents := servers.StartConsulCluster(t, 3, servers.ConsulConfig{ACL: "deny", TLS: true})
	edge := servers.StartConsulClient(t, "edge", agents, servers.ConsulConfig{ACL: "deny"})
	put := func(value string) bool {
		_, err := edge.Client().KV().Put(&api.KVPair{Key: "key", Value: []byte(value)}, nil)
		return err == nil
	}
	await.True(t, "a write to succeed", func() bool { return put("one") })
	leader, err := edge.Client().Status().Leader()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range agents {
		if self, err := a.Client().Agent().Self(); err != nil {
			t.Fatal(err)
		} else if self["Stats"]["raft"] != nil && self["Stats"]["consul"].(map[string]any)["leader"] == "true" {
			t.Logf("%s leads, at %s", a.Name, leader)
			a.Kill()
			await.True(t, "a write to succeed after the leader died", func() bool { return put("two") })
			a.Restart(t)
			pair, _, err := a.Client().KV().Get("key", nil)
			if err != nil || string(pair.Value) != "two" {
				t.Errorf("the restarted server has %v, %v", pair, err)
			}
			return
		}
	}
	t.Error("no server says that it leads")
}
