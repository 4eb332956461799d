package engine

import (
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
)

// Treat has change say more about the clusters of targets than the documents do, and puts the plan into force again.
func (e *Engine) Treat(change func(route.Target, *policy.Cluster)) error {
	e.mu.Lock()
	e.cluster = func(p *policy.Plan, t route.Target) policy.Cluster {
		c := p.Cluster(t)
		change(t, &c)
		return c
	}
	e.mu.Unlock()
	settle, err := e.Apply(e.Plan(), false)
	if err == nil {
		settle()
	}
	return err
}
