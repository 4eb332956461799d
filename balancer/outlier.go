package balancer

import (
	"net/http"
	"sync/atomic"
	"time"
)

// Outlier finds failing endpoints. *breaker.Outlier implements it. Endpoints are named by their IDs. It must be safe for
// concurrent use, and Ejected must be fast. If it has a method Forget(endpoint string), that is called for endpoints that no
// longer take calls, so that they do not count among those that may be ejected.
type Outlier interface {
	// Report records how a call ended: with a connection error; or with a response, and the error from reading its body, if
	// any.
	Report(endpoint string, resp *http.Response, err error)

	// Ejected reports whether the endpoint should get no calls now.
	Ejected(endpoint string) bool
}

// outliers keeps the hosts that an Outlier ejects out of the picks.
type outliers struct {
	Outlier
	forget  func(endpoint string) // does nothing if the Outlier needs none
	ejected atomic.Bool           // there may be hosts to readmit
	checked atomic.Int64          // when that was last checked, on the balancer's clock
}

// readmission is how often ejected hosts are checked for readmission.
const readmission = 100 * time.Millisecond

func newOutliers(o Outlier) *outliers {
	if o == nil {
		return nil
	}
	known := &outliers{Outlier: o, forget: func(string) {}}
	if f, ok := o.(interface{ Forget(endpoint string) }); ok {
		known.forget = f.Forget
	}
	return known
}

// add makes the host of a new endpoint known: the share that may be ejected is of all endpoints, not only of those called so far.
func (o *outliers) add(h *Host) {
	if o.Ejected(h.id) {
		h.state.Or(outlying)
		o.ejected.Store(true)
	}
}

// pick picks a host that the Outlier does not eject.
func (o *outliers) pick(b *Balancer, info *PickInfo) (*Host, error) {
	if o.ejected.Load() {
		now := b.now()
		if last := o.checked.Load(); now-last >= int64(readmission) && o.checked.CompareAndSwap(last, now) {
			o.readmit(b)
		}
	}
	looked := false
	for {
		h, err := b.pick(info)
		if err == ErrNoHealthy && !looked && o.ejected.Load() {
			looked = true
			o.readmit(b)
			continue
		}
		if err != nil || h.Ejected() || !o.Ejected(h.id) {
			return h, err // an ejected host is picked in panic mode
		}
		h.eject(outlying, true)
		o.ejected.Store(true)
		h.Release(0, false)
	}
}

func (o *outliers) readmit(b *Balancer) {
	o.ejected.Store(false)
	for _, h := range b.Hosts() {
		if h.state.Load()&outlying == 0 {
			continue
		}
		if o.Ejected(h.id) {
			o.ejected.Store(true)
		} else {
			h.eject(outlying, false)
		}
	}
}

// updated forgets the hosts that take no calls after an Update. A readmission during the Update may not have known of new ones yet.
func (o *outliers) updated(hosts, removed []*Host) {
	for _, list := range [][]*Host{hosts, removed} {
		for _, h := range list {
			if h.state.Load()&outlying != 0 {
				o.ejected.Store(true)
			}
			if !h.TakesCalls() {
				o.forget(h.id)
			}
		}
	}
}
