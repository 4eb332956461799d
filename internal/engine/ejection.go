package engine

import (
	"sync"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/internal/smallmap"
)

// outlierDetector connects the outlier detection of a target with the hosts it ejects. It may outlive the cluster that made
// it; then its hosts are those of the next one.
type outlierDetector struct {
	*breaker.Outlier

	mu    sync.Mutex
	hosts smallmap.Map[string, *endpoint] // that may be ejected
}

func newOutlierDetector(config breaker.OutlierConfig) (*outlierDetector, error) {
	d := new(outlierDetector)
	var err error
	event := d.event
	if d.Outlier, err = breaker.NewOutlier(config, event); err != nil {
		return nil, err
	}
	d.OnWithheld = event
	return d, nil
}

// watch keeps the host of an endpoint ejected while its tracker is.
func (d *outlierDetector) watch(e *endpoint) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e.replaces(d.hosts.Get(e.host.ID())) {
		d.hosts.Set(e.host.ID(), e)
	}
	e.host.SetEjected(e.tracker.Ejected())
}

// unwatch forgets an endpoint, unless the host of a newer cluster has taken its place.
func (d *outlierDetector) unwatch(h *balancer.Host) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.hosts.Get(h.ID()); e != nil && e.host == h {
		d.hosts.Delete(h.ID())
		d.Forget(h.ID())
	}
}

// event is told of ejections, of their ends, and of those that are withheld.
func (d *outlierDetector) event(e breaker.Event) {
	d.mu.Lock()
	f := d.hosts.Get(e.Endpoint)
	if f != nil {
		// The state now is set, not that of the event: events and attachments may overtake one another.
		f.host.SetEjected(f.tracker.Ejected())
	}
	d.mu.Unlock()
	if f == nil {
		return
	}
	hook := f.cluster.engine.hooks.Ejection
	if e.Limit > 0 {
		hook = f.cluster.engine.hooks.EjectionWithheld
	}
	if hook != nil {
		hook(f.cluster.target, e)
	}
}
