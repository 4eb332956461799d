package engine

import (
	"sync"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
)

// outlierDetector connects the outlier detection of a target with the hosts it ejects. It may outlive the cluster that made
// it; then its hosts are those of the next one.
type outlierDetector struct {
	*breaker.Outlier

	mu    sync.Mutex
	hosts map[string]*endpoint // that may be ejected
}

func newOutlierDetector(config breaker.OutlierConfig) (*outlierDetector, error) {
	d := &outlierDetector{hosts: make(map[string]*endpoint)}
	var err error
	d.Outlier, err = breaker.NewOutlier(config, d.event)
	return d, err
}

// watch keeps the host of an endpoint ejected while its tracker is.
func (d *outlierDetector) watch(e *endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hosts[e.host.ID()] = e
	e.host.SetEjected(e.tracker.Ejected())
}

// unwatch forgets an endpoint, unless the host of a newer cluster has taken its place.
func (d *outlierDetector) unwatch(h *balancer.Host) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.hosts[h.ID()]; e != nil && e.host == h {
		delete(d.hosts, h.ID())
		d.Forget(h.ID())
	}
}

func (d *outlierDetector) event(e breaker.Event) {
	d.mu.Lock()
	f, ok := d.hosts[e.Endpoint]
	if ok {
		// What counts is the state now: events and attachments may overtake one another.
		f.host.SetEjected(f.tracker.Ejected())
	}
	d.mu.Unlock()
	if !ok {
		return
	}
	if hook := f.cluster.engine.hooks.Ejection; hook != nil {
		hook(f.cluster.target, e)
	}
}
