package engine

import (
	"testing"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// TestSuccessor_KeepsItsEndpoints: during a reload, discovery may tell the new cluster of an endpoint first, and then the one that it replaces, which
// has calls left. What ejects endpoints goes on to eject that of the new cluster.
func TestSuccessor_KeepsItsEndpoints(t *testing.T) {
	for name, ejects := range map[string]func(*policy.Cluster){
		"accrual": func(c *policy.Cluster) { c.Accrual = accrualConfig{Failures: 2, Min: time.Minute, Max: time.Hour} },
		"outlier": func(c *policy.Cluster) {
			c.Eject, c.Outlier = true, breaker.OutlierConfig{Consecutive5xx: 2, MaxEjectedFraction: 1}
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, ends := range []bool{false, true} {
				e := scaled(t, 0)
				target := route.Target{Host: "a", Port: 80}
				config := e.clusterConfig(e.Plan(), target)
				with := *config.treatment
				ejects(&with.Cluster)
				config.treatment = &with
				var clusters [2]*cluster // before and after
				e.mu.Lock()
				for i := range clusters {
					var err error
					if clusters[i], err = newClusterLocked(e, target, config, clusters[0]); err != nil {
						t.Fatal(err)
					}
				}
				e.mu.Unlock()
				endpoints := []discovery.Endpoint{{Address: "10.0.0.1", Port: 80}}
				clusters[1].update(endpoints)
				clusters[0].update(endpoints)
				if ends {
					clusters[0].close()
				}
				host := clusters[1].balancer.Hosts()[0]
				for range 2 {
					if e := host.Value().(*endpoint); e.tracker != nil {
						e.tracker.Report(500)
					} else if a := e.cluster.accruals.find(host.ID()); a != nil {
						a.report(500, 0)
					}
				}
				if !host.Ejected() {
					t.Errorf("the endpoint is not ejected; the cluster before has ended: %v", ends)
				}
			}
		})
	}
}
