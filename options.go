package mesh

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/tlsid"
)

// Option configures a [Mesh] in [New]. Options that say that they may be given several times add up. Of the others the last one
// wins; [WithIdentity] and [WithLateIdentity] are one option in this respect.
type Option func(*options) error

// options collects what the Options of New set.
type options struct {
	sources      []set
	feeds        []Feed
	empty        string // a source that holds no document; "" if there is none
	mayBeEmpty   bool
	workload     policy.Workload
	resolver     discovery.Resolver
	template     *http.Transport
	source       tlsid.Source // of the identity; nil for none
	sourceLate   bool         // New does not wait for it
	registryOnly bool         // refuse hosts outside the mesh
	protections  []engine.HostProtection
	observers    []Observer
	logger       *slog.Logger // nil means slog.Default
	inbound      ServerConfig
}

func newOptions(opts []Option) (*options, error) {
	o := &options{}
	for i, option := range opts {
		if option == nil {
			return nil, fmt.Errorf("mesh: New: option %d is nil", i+1)
		}
		if err := option(o); err != nil {
			return nil, err
		}
	}
	if o.empty != "" && !o.mayBeEmpty {
		return nil, errEmpty(o.empty)
	}
	if o.template == nil {
		standard, ok := http.DefaultTransport.(*http.Transport)
		if !ok {
			return nil, errors.New("mesh: http.DefaultTransport is not an *http.Transport: use WithTransport")
		}
		o.template = standard
	}
	if err := checkTemplate(o.template); err != nil {
		return nil, err
	}
	environment, err := policy.WorkloadFromEnv()
	if err != nil {
		return nil, err
	}
	environment.Address = cmp.Or(environment.Address, ownAddress())
	environment.Unlabelled = o.resolver == nil // DNS knows no labels
	o.workload = o.workload.Or(environment)
	return o, nil
}

// checkTemplate refuses a template with settings that the mesh cannot honour, in the words of the settings that replace them.
func checkTemplate(t *http.Transport) error {
	name := "the transport of WithTransport"
	if t == http.DefaultTransport {
		name = "http.DefaultTransport, the template without WithTransport,"
	}
	switch {
	//lint:ignore SA1019 DialTLS is deprecated, but still honoured by net/http
	case t.DialTLSContext != nil || t.DialTLS != nil:
		return fmt.Errorf("mesh: %s dials TLS itself: set TLSClientConfig and DialContext instead", name)
	case t.MaxConnsPerHost != 0:
		return fmt.Errorf("mesh: %s sets MaxConnsPerHost: remove it, and set connectionPool.tcp.maxConnections in a DestinationRule", name)
	}
	return nil
}

// ownAddress returns the first address of an interface that others can reach, and "" if there is none.
func ownAddress() string {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return ""
	}
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	return ""
}

// WithPolicyDir loads the documents of a folder: its .yaml, .yml and .json files, each with any number of documents. The path may
// also name a single file. The option may be given several times. If the folder holds no document, [New] fails; see
// [WithEmptyPolicy].
func WithPolicyDir(path string) Option {
	return func(o *options) error {
		sources, err := policy.ReadDir(path)
		if err != nil {
			return err
		}
		if holdsNothing(sources) {
			o.empty = path
		}
		o.sources = append(o.sources, set{path, sources})
		return nil
	}
}

// WithPolicy adds documents that the program holds itself, such as embedded ones. It may be given several times. Sources
// without any document are an error, see [WithEmptyPolicy]; giving no source is not.
func WithPolicy(sources ...policy.Source) Option {
	return func(o *options) error {
		const origin = "the sources of WithPolicy"
		if len(sources) > 0 && holdsNothing(sources) {
			o.empty = origin
		}
		o.sources = append(o.sources, set{origin, slices.Clone(sources)})
		return nil
	}
}

// WithPolicyFeed follows documents that change while the mesh runs, such as those of a folder (policy/file). [New] waits for
// the first set. Later ones take effect as they arrive, if they are valid; each is reported to the observers' PolicyLoad.
// The option may be given several times. All documents together make one load: the same kind, namespace and name twice is an
// error across feeds too. Where two documents claim a host, those of [WithPolicy] and [WithPolicyDir] come before those of
// feeds, and feeds come in the order of the options. A set without any document is refused, see [WithEmptyPolicy]. Documents
// that stand alone ([policy.Source]) are judged each by itself, and come last.
func WithPolicyFeed(feed Feed) Option {
	return func(o *options) error {
		if feed == nil {
			return errors.New("mesh: WithPolicyFeed: the feed is nil")
		}
		o.feeds = append(o.feeds, feed)
		return nil
	}
}

// WithEmptyPolicy accepts a folder, a feed or a source without any document. Otherwise that counts as a mistake, such as a
// wrong path or a truncated file, which would remove all authorization: [New] and [Mesh.Apply] fail, and a feed that becomes
// empty is reported like one that cannot be read, while its last documents stay in force, and so is a file of a feed that
// loses all of its text. Documents that are skipped do not count: see [policy.Plan.InForce].
func WithEmptyPolicy() Option {
	return func(o *options) error {
		o.mayBeEmpty = true
		return nil
	}
}

// WithDiscovery finds endpoints with r. Every service that r knows belongs to the mesh. The names that ServiceEntries with the
// resolution DNS have are looked up with [discovery.DNS]: with its Interval, Network and Resolver, if r is one.
//
// Without it endpoints are looked up with [discovery.DNS]. Then every host that DNS knows belongs to the mesh, and without a
// document has Istio's defaults: two retries of failed connections, refused streams, and gRPC's UNAVAILABLE and CANCELLED. Only
// a host that the template's Proxy sends to a proxy is outside.
func WithDiscovery(r discovery.Resolver) Option {
	return func(o *options) error {
		if r == nil {
			return errors.New("mesh: WithDiscovery: the resolver is nil: for DNS, leave the option out")
		}
		o.resolver = r
		return nil
	}
}

// WithTransport makes t the template of the transports that the mesh keeps for each endpoint: TLS configuration, dialer,
// buffer sizes, timeouts. It is cloned and never used for calls itself; the clone lacks what RegisterProtocol added. Hosts outside
// the mesh get a plain clone. nil means [http.DefaultTransport], as without the option.
//
// Endpoints are dialled directly: the template's Proxy applies only to hosts outside the mesh. HTTP/2 is spoken over TLS to all
// servers that offer it, as with ForceAttemptHTTP2, unless Protocols or TLSNextProto say otherwise. DialTLSContext and
// MaxConnsPerHost are errors: TLSClientConfig, and maxConnections of a DestinationRule, take their place.
func WithTransport(t *http.Transport) Option {
	return func(o *options) error {
		o.template = t
		return nil
	}
}

// WithWorkload says which workload the process is: documents select by its namespace and labels, and its locality decides
// which endpoints are near. Empty fields of w are taken from the environment (see [policy.WorkloadFromEnv]). The defaults of
// fields that are still empty are the namespace "default" in "cluster.local", no labels, no locality, and the first address
// of the machine's interfaces that others can reach. If the option is given several times, later fields take precedence.
func WithWorkload(w policy.Workload) Option {
	return func(o *options) error {
		o.workload = w.Or(o.workload)
		return nil
	}
}

// WithIdentity gives the process an identity: that of a SPIFFE Workload API (tlsid/spiffe), of files ([tlsid.Files]), or of
// a development CA ([tlsid.DevCA]). With it the mesh accepts mTLS connections ([Mesh.Listen]), and makes them where a
// DestinationRule says ISTIO_MUTUAL and, unless one says otherwise, to endpoints whose PeerAuthentication is STRICT, or whose
// label security.istio.io/tlsMode is "istio", and to those of a ServiceEntry that have a serviceAccount. To all others it sends
// plaintext. An endpoint must have one of the subjectAltNames of the document, or else be the service account that discovery
// names ([discovery.Endpoint].ServiceAccount).
//
// [New] waits for the first identity until its context ends, but no longer than 30 seconds, and then fails with the last
// error of the source.
func WithIdentity(source tlsid.Source) Option {
	return func(o *options) error {
		if source == nil {
			return errors.New("mesh: WithIdentity: the source is nil")
		}
		o.source, o.sourceLate = source, false
		return nil
	}
}

// WithLateIdentity is [WithIdentity] for a process that starts before its identity is available. New does not wait: until
// the identity arrives, calls that need it fail with an error that is [tlsid.ErrNoIdentity], TLS handshakes of [Mesh.Listen]
// fail too, and [Mesh.Status] is not Ready, which a readiness probe should check. Documents are compiled before the trust
// domain of the identity is known: unless it is "cluster.local", name it in [WithWorkload]. An identity in another trust
// domain is refused.
func WithLateIdentity(source tlsid.Source) Option {
	return func(o *options) error {
		if source == nil {
			return errors.New("mesh: WithLateIdentity: the source is nil")
		}
		o.source, o.sourceLate = source, true
		return nil
	}
}

// WithRegistryOnly refuses calls to hosts outside the mesh (those that no document names and discovery does not know) with
// [ErrNotInMesh]. No Sidecar opens what it closes, and one can close as much. Without [WithDiscovery] only hosts that documents name are part of the mesh. It is REGISTRY_ONLY of
// Istio's outboundTrafficPolicy. By default such calls pass with a plain transport, without any policy (ALLOW_ANY).
func WithRegistryOnly() Option {
	return func(o *options) error {
		o.registryOnly = true
		return nil
	}
}

// WithObserver attaches an observer. It may be given several times; the observers are called in that order.
func WithObserver(observer Observer) Option {
	return func(o *options) error {
		o.observers = append(o.observers, observer)
		return nil
	}
}

// WithProtection turns on protections that no document can express, for the named hosts, or for all if none is named. If
// several apply to a host, the last one wins.
func WithProtection(p Protection, hosts ...string) Option {
	return func(o *options) error {
		o.protections = append(o.protections, engine.HostProtection{Hosts: slices.Clone(hosts), Protection: engine.Protection(p)})
		return nil
	}
}

// WithServer sets what no document can express about requests to this process: limits, trusted proxies, traces, load
// reports. If it is given several times, the last one wins.
func WithServer(s ServerConfig) Option {
	return func(o *options) error {
		o.inbound = s
		return nil
	}
}

// Protection holds settings that no document can express, because Envoy has nothing like them. Its zero value is off; each
// part works by itself, and for each destination (host, port and subset) by itself.
type Protection struct {
	// Circuit stops calls to the destination while it fails as a whole. nil is off.
	Circuit *breaker.Config

	// RetryBudget bounds retries to a share of the requests. nil leaves it to the documents.
	RetryBudget *retry.BudgetConfig

	// RetryAfter waits before a retry as long as the response's Retry-After asks for. If that is more than 10 s, there is no retry.
	RetryAfter bool

	// StopNestedRetries does not retry a request that is itself a retry.
	StopNestedRetries bool

	// RateLimit bounds the requests per second, retries not counted. Its zero value is off.
	RateLimit limit.RateConfig

	// BodyIdle bounds the wait for the next bytes of a response body. 0 means no bound.
	BodyIdle time.Duration

	// Balancing replaces least requests, which is Istio's default, where the documents choose no other algorithm. It must
	// not be an algorithm that hashes. Its Locality, SlowStart and PanicFraction apply if they are set; otherwise those of
	// the documents do. Where some endpoints are slower than others at times, [balancer.PeakEWMA] with 10 Choices and an
	// Aperture of 10 gives the lowest tail latency. Where endpoints differ in capacity, [balancer.WeightedRoundRobin] follows
	// the load that they report (see [ServerConfig.ReportLoad]). nil changes nothing.
	Balancing *balancer.Config
}
