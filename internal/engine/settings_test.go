package engine

import (
	"reflect"
	"testing"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
)

func TestClusterConfigEqual_EveryField(t *testing.T) {
	plan, findings := policy.Compile([]policy.Source{{Name: "peers.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default}
spec: {mtls: {mode: STRICT}}
`)}}, policy.Workload{})
	if err := findings.Err(); err != nil {
		t.Fatal(err)
	}
	changes := map[string]func(*clusterConfig){
		"Cluster":     func(c *clusterConfig) { c.Missing = true },
		"service":     func(c *clusterConfig) { c.service = discovery.Service{Host: "a"} },
		"entry":       func(c *clusterConfig) { c.entry = new(policy.ServiceEntry) },
		"documented":  func(c *clusterConfig) { c.documented = true },
		"peers":       func(c *clusterConfig) { c.peers = plan.Peers("default") },
		"trustDomain": func(c *clusterConfig) { c.trustDomain = "a" },
		"circuit":     func(c *clusterConfig) { c.circuit = breaker.Config{ConsecutiveFailures: 1} },
		"hasCircuit":  func(c *clusterConfig) { c.hasCircuit = true },
		"budget":      func(c *clusterConfig) { c.budget = retry.BudgetConfig{Off: true} },
		"rate":        func(c *clusterConfig) { c.rate = limit.RateConfig{PerSecond: 1} },
		"bodyIdle":    func(c *clusterConfig) { c.bodyIdle = 1 },
	}
	empty := func() *clusterConfig { return &clusterConfig{Cluster: new(policy.Cluster)} }
	if !empty().equal(empty()) {
		t.Error("settings do not equal their like")
	}
	for i := range reflect.TypeFor[clusterConfig]().NumField() {
		name := reflect.TypeFor[clusterConfig]().Field(i).Name
		change := changes[name]
		if change == nil {
			t.Errorf("%s is not tested: does equal look at it?", name)
			continue
		}
		changed := empty()
		change(changed)
		if changed.equal(empty()) || empty().equal(changed) {
			t.Errorf("%s makes no difference", name)
		}
	}
}
