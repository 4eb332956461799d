package balancergrpc

import (
	"fmt"
	"net"
	"net/http"
	"strconv"
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
}

func newService(c *Client, target, endpoint string) (*service, error) {
	host, port, err := splitTarget(endpoint)
	if err != nil {
		return nil, err
	}
	s := &service{client: c, target: target, host: host, port: port}
	s.well = &http.Response{StatusCode: http.StatusOK}
	s.hashes = c.Config.Algorithm == balancer.RingHash || c.Config.Algorithm == balancer.Maglev
	s.refusals = map[error]error{}
	for _, err := range []error{balancer.ErrNoEndpoints, balancer.ErrNoHealthy} {
		s.refusals[err] = fmt.Errorf("%w of %q", err, host)
	}
	s.balancer, err = balancer.New(c.Config, balancer.Hooks{Attach: s.attach, Outlier: c.Outlier})
	return s, err
}

// link is what the service keeps for a host of its balancer: the connections of the host.
type link struct {
	host     *balancer.Host
	endpoint atomic.Pointer[endpoint] // nil while gRPC has no balancer
}

// attach is called for each new host, which cannot be picked yet.
func (s *service) attach(h *balancer.Host) any {
	h.SetEjected(!s.hashes) // until it is connected to
	return &link{host: h}
}

func linkOf(h *balancer.Host) *link { return h.Value().(*link) }

// connected notes the state of the connections to an endpoint.
func (s *service) connected(e *endpoint) {
	down := !e.ready.Any()
	if s.hashes {
		down = e.failing.Load() != nil
	}
	e.link.host.SetEjected(down)
}

// disconnected notes that gRPC has closed all connections.
func (s *service) disconnected() {
	for _, h := range s.balancer.Hosts() {
		linkOf(h).endpoint.Store(nil)
		h.SetEjected(!s.hashes)
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
		e := linkOf(h).endpoint.Load()
		switch {
		case !h.TakesCalls():
		case s.client.Outlier != nil && s.client.Outlier.Ejected(h.ID()):
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
	if s.client.Outlier == nil || !h.TakesCalls() {
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
