package mesh

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/places"
	"github.com/nosidecar/mesh/policy/limit"
)

// ServerConfig holds settings for the requests to this process that no document can express. Its zero value limits nothing,
// trusts no proxy and has the defaults of [tlsid.ListenerConfig].
type ServerConfig struct {
	// MaxRequests is how many requests may be in their handlers at once. Those beyond it get a 503 with x-envoy-overloaded,
	// which callers in the mesh do not retry. 0 means no limit.
	MaxRequests int

	// RateLimit bounds the requests per second. Those beyond it get a 429. Its zero value is off.
	RateLimit limit.RateConfig

	// TrustedHops is how many proxies before this process append to x-forwarded-for. The address that remoteIpBlocks are
	// compared to is that many entries from its end; see [authz.NewRequest]. 0 means the address of the peer.
	TrustedHops int

	// RestartTraces removes the trace headers (W3C and B3) of requests from outside the mesh, so that no outside caller
	// decides what is sampled here. Their x-request-id is removed in any case.
	RestartTraces bool

	// ReportLoad tells callers with an identity how loaded this process is, in the format of ORCA: in the header
	// endpoint-load-metrics of the answers of [Mesh.Handler], and for gRPC in the trailer endpoint-load-metrics-bin, if the
	// answer has its status in the trailer. Callers that balance with [balancer.WeightedRoundRobin] use it. A report covers
	// the time since the previous one, at least a second: how many handlers returned, how many of their requests failed, and
	// the utilization. Requests that were refused, or were ended because they are no longer allowed, do not count. A report
	// is made when a request ends, so the first answer after a pause has an old one.
	//
	// If a handler sets the header or the trailer itself, callers get that report instead. A handler that adds to the header,
	// such as an httputil.ReverseProxy in front of a server that reports, sends two reports, and callers use neither or the
	// other server's. A proxy should remove endpoint-load-metrics and endpoint-load-metrics-bin in ModifyResponse: callers
	// take a forwarded trailer for the proxy's own report.
	ReportLoad bool

	// Utilization returns the utilization of this process for ReportLoad; 1 means full use. It is called about once a second,
	// on the goroutine of a request that has released everything it held. If the result is not positive and finite, no load
	// is reported. nil means the mean number of requests in flight, which says little at high load: the share of busy workers
	// is a better measure.
	Utilization func() float64

	// HTTP1Only has the listeners of [Mesh.Listen] offer HTTP/1.1 alone over TLS, for an http.Server for which HTTP/2 is off.
	HTTP1Only bool

	// HandshakeTimeout, MaxPending and MaxPendingPerIP bound what connections may cost before they are served; see
	// [tlsid.ListenerConfig].
	HandshakeTimeout            time.Duration
	MaxPending, MaxPendingPerIP int
}

// server is the state of the inbound side.
type server struct {
	ServerConfig
	observed bool // some observer follows requests
	pool     *limit.Pool
	rate     *limit.Rate
	certs    atomic.Pointer[forwardedCerts]

	handled  atomic.Bool              // Handler was called
	warned   atomic.Bool              // that the workload is open to all
	told     atomic.Pointer[[]uint16] // the ports that get requests over other listeners
	unseen   atomic.Int32             // listeners of Listen over which no request has come to a Handler
	requests sync.Pool                // of *inbound
	running  running
	loads    loadCounter
	pending  places.Places

	mu        sync.Mutex                // held while the listeners change
	listeners atomic.Pointer[[]watched] // not closed yet; copied on write
}

func (s *server) init(config ServerConfig, m *Mesh) error {
	s.ServerConfig = config
	var errs [2]error
	s.pool, errs[0] = limit.NewPool(limit.PoolConfig{MaxRequests: config.MaxRequests})
	s.rate, errs[1] = limit.NewRate(config.RateLimit)
	if config.MaxRequests < 0 {
		return errors.New("mesh: WithServer: MaxRequests is negative")
	}
	if config.TrustedHops < 0 {
		return errors.New("mesh: WithServer: TrustedHops is negative")
	}
	if config.HandshakeTimeout < 0 {
		return errors.New("mesh: WithServer: HandshakeTimeout is negative")
	}
	if config.Utilization != nil && !config.ReportLoad {
		return errors.New("mesh: WithServer: Utilization is set, but not ReportLoad")
	}
	s.loads.init(&config)
	s.certs.Store(new(forwardedCerts))
	s.pending.Most = mostPending
	s.running.init(m)
	s.requests.New = func() any {
		in := &inbound{mesh: m}
		in.ends = in
		s.running.place(&in.entry)
		return in
	}
	return errors.Join(errs[:]...)
}
