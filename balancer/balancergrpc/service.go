package balancergrpc

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	grpcbalancer "google.golang.org/grpc/balancer"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/internal/orca"
)

// service is the state of a service for one ClientConn. It outlives the balancers that gRPC makes for it.
type service struct {
	client     *Client
	target     string
	host       string
	port       int
	balancer   *balancer.Balancer
	hashes     bool // the algorithm sends a call where its key belongs, even if it must wait
	refusals   map[error]error
	well       *http.Response // what the outlier detection gets for a successful call
	told, seen atomic.Bool    // the resolver has reported to gRPC; our balancer got the latest report
	spareSince time.Time      // guarded by Client.mu

	ejected atomic.Bool  // there may be endpoints to readmit
	checked atomic.Int64 // when that was last checked, from start
	start   time.Time
}

func newService(c *Client, target, endpoint string) (*service, error) {
	host, port, err := splitTarget(endpoint)
	if err != nil {
		return nil, err
	}
	s := &service{client: c, target: target, host: host, port: port, start: time.Now()}
	s.well = &http.Response{StatusCode: http.StatusOK}
	s.hashes = c.Config.Algorithm == balancer.RingHash || c.Config.Algorithm == balancer.Maglev
	s.refusals = map[error]error{}
	for _, err := range []error{balancer.ErrNoEndpoints, balancer.ErrNoHealthy} {
		s.refusals[err] = fmt.Errorf("%w of %q", err, host)
	}
	s.balancer, err = balancer.New(c.Config, balancer.Hooks{Attach: s.attach})
	return s, err
}

// link is what the service keeps for a host of its balancer: the connections of the host, and why it is not picked.
type link struct {
	host     *balancer.Host
	endpoint atomic.Pointer[endpoint] // nil while gRPC has no balancer

	mu   sync.Mutex  // held to change what follows
	down bool        // not connected to
	out  atomic.Bool // ejected by the outlier detection
}

// attach is called for each new host, which cannot be picked yet.
func (s *service) attach(h *balancer.Host) any {
	l := &link{host: h, down: !s.hashes} // until it is connected to
	if s.client.Outlier != nil {
		// Asking makes the endpoint known: the share that may be ejected is of all endpoints, not only those called so far.
		if s.client.Outlier.Ejected(h.ID()) {
			l.out.Store(true)
			s.ejected.Store(true)
		}
	}
	h.SetEjected(l.down || l.out.Load())
	return l
}

func linkOf(h *balancer.Host) *link { return h.Value().(*link) }

// set applies change to the reasons why the host is not picked.
func (l *link) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
	l.host.SetEjected(l.down || l.out.Load())
}

// connected notes the state of the connections to an endpoint.
func (s *service) connected(e *endpoint) {
	down := !e.ready.Any()
	if s.hashes {
		down = e.failing.Load() != nil
	}
	e.link.set(func() { e.link.down = down })
}

// disconnected notes that gRPC has closed all connections.
func (s *service) disconnected() {
	for _, h := range s.balancer.Hosts() {
		l := linkOf(h)
		l.endpoint.Store(nil)
		l.set(func() { l.down = !s.hashes })
	}
}

// outlook is what a call that finds no host can expect.
type outlook uint8

const (
	ejected      outlook = iota // there are connections, but to hosts that are ejected
	disconnected                // there are none, and none can be made
	hopeful                     // a host is being connected to
)

// outlook also returns why no connection can be made. A pick sees an endpoint fail before it sees the picker that follows, so the
// reason is the endpoint's.
func (s *service) outlook() (best outlook, reason error) {
	best = disconnected
	for _, h := range s.balancer.Hosts() {
		l := linkOf(h)
		e := l.endpoint.Load()
		switch {
		case h.Endpoint().Draining:
		case l.out.Load():
			if e != nil && e.ready.Any() {
				best = ejected
			}
		case e == nil:
			return hopeful, nil
		default:
			failing := e.failing.Load()
			if failing == nil {
				return hopeful, nil
			}
			reason = *failing
		}
	}
	return best, reason
}

// targets returns what to connect to.
func (s *service) targets() ([]target, error) {
	var failed error
	hosts := s.balancer.Hosts()
	targets := make([]target, 0, len(hosts))
	for _, h := range hosts {
		e := h.Endpoint()
		port := e.DialPort(s.port)
		if port == 0 {
			failed = fmt.Errorf("balancergrpc: neither the target nor the endpoint %s has a port, or the endpoint does not serve that of the target", e.Address)
			continue
		}
		targets = append(targets, target{h.ID(), net.JoinHostPort(e.Address, strconv.Itoa(port)), linkOf(h)})
	}
	return targets, failed
}

// readmission is how often ejected hosts are checked for readmission.
const readmission = 100 * time.Millisecond

// pick picks a host that the outlier detection does not eject.
func (s *service) pick(info balancer.PickInfo) (*balancer.Host, error) {
	outlier := s.client.Outlier
	if outlier == nil {
		return s.balancer.Pick(info)
	}
	if s.ejected.Load() {
		now := int64(time.Since(s.start))
		if last := s.checked.Load(); now-last >= int64(readmission) && s.checked.CompareAndSwap(last, now) {
			s.readmit()
		}
	}
	looked := false
	for {
		h, err := s.balancer.Pick(info)
		if err == balancer.ErrNoHealthy && !looked && s.ejected.Load() {
			looked = true
			s.readmit()
			continue
		}
		if err != nil || h.Ejected() || !outlier.Ejected(h.ID()) {
			return h, err // an ejected host is picked in panic mode
		}
		l := linkOf(h)
		l.set(func() { l.out.Store(true) })
		s.ejected.Store(true)
		h.Release(0, false)
	}
}

func (s *service) readmit() {
	s.ejected.Store(false)
	for _, h := range s.balancer.Hosts() {
		l := linkOf(h)
		if !l.out.Load() {
			continue
		}
		if s.client.Outlier.Ejected(h.ID()) {
			s.ejected.Store(true)
		} else {
			l.set(func() { l.out.Store(false) })
		}
	}
}

// done ends a call. latency is 0 if there was nothing to learn.
func (s *service) done(h *balancer.Host, info *grpcbalancer.DoneInfo, latency time.Duration) {
	if s.client.Config.Algorithm == balancer.WeightedRoundRobin {
		if load, ok := orca.FromMetadata(info.Trailer); ok {
			h.Report(load.Utilization, load.Requests, load.Errors)
		}
	}
	code, err := resultOf(info)
	if code == 0 && err == nil {
		h.Release(0, false)
		return
	}
	h.Release(latency, err != nil || code >= http.StatusInternalServerError)
	if s.client.Outlier == nil {
		return
	}
	resp := s.well
	switch {
	case err != nil:
		resp = nil
	case code != http.StatusOK:
		resp = &http.Response{StatusCode: code}
	}
	s.client.Outlier.Report(h.ID(), resp, err)
}
