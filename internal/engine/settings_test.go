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
		"Cluster":    func(c *clusterConfig) { c.Missing = true },
		"service":    func(c *clusterConfig) { c.service = discovery.Service{Host: "a"} },
		"entry":      func(c *clusterConfig) { c.entry = new(policy.ServiceEntry) },
		"documented": func(c *clusterConfig) { c.documented = true },
		"peers":      func(c *clusterConfig) { c.peers = plan.Peers("default") },
		"circuit":    func(c *clusterConfig) { c.circuit = breaker.Config{ConsecutiveFailures: 1} },
		"hasCircuit": func(c *clusterConfig) { c.hasCircuit = true },
		"budget":     func(c *clusterConfig) { c.budget = retry.BudgetConfig{Off: true} },
		"rate":       func(c *clusterConfig) { c.rate = limit.RateConfig{PerSecond: 1} },
		"bodyIdle":   func(c *clusterConfig) { c.bodyIdle = 1 },
	}
	empty := func() *clusterConfig { return &clusterConfig{treatment: new(treatment)} }
	if !empty().equal(empty()) {
		t.Error("settings do not equal their like")
	}
	fields := append(reflect.VisibleFields(reflect.TypeFor[treatment]()), reflect.VisibleFields(reflect.TypeFor[clusterConfig]())...)
	for _, field := range fields {
		if len(field.Index) > 1 || field.Name == "treatment" {
			continue // of an embedded one, which is tested by itself
		}
		change := changes[field.Name]
		if change == nil {
			t.Errorf("%s is not tested: does equal look at it?", field.Name)
			continue
		}
		changed := empty()
		change(changed)
		if changed.equal(empty()) || empty().equal(changed) {
			t.Errorf("%s makes no difference", field.Name)
		}
	}
}
