package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nosidecar/mesh/discovery/internal/source"
)

const (
	defaultDNSInterval = 30 * time.Second
	dnsLookupTimeout   = 15 * time.Second

	// refreshGap is the least time between two lookups when callers ask for one.
	refreshGap = time.Second
)

// Lookup is the part of net.Resolver that [DNS] uses.
type Lookup interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, records []*net.SRV, err error)
}

// DNS is a [Resolver] that polls the domain name system: the addresses of a service, on the port the caller asks for, or
// with SRV its targets, each with a port and a weight. It tries [Service.Names] in order until one exists, and stays with
// that one. For a service of the cluster it leaves out name.namespace, which outside the cluster can belong to anyone:
// "orders.shop" is a domain that can be bought.
//
// It yields when the set changes, whatever the order of the answers, and each time in a random order, so that the clients of
// a service do not all begin with the same endpoint. It looks again sooner if a subscriber of the watcher could not connect
// (see [Subscription.Refresh]). When a lookup fails it yields the error and tries again soon, then less and less often. A
// name that does not exist is [ErrUnknownService], unless it existed before. IP addresses and "localhost" are their own
// endpoints and are never looked up.
//
// The zero value is ready. It is safe for concurrent use and must not be changed while in use.
type DNS struct {
	// Interval is the time between lookups, plus or minus up to a tenth at random. 0 means 30 seconds.
	Interval time.Duration

	// Network is "ip4" for A records, "ip6" for AAAA records and "ip" for both. Empty means A, and AAAA for a name that
	// has no A: a host with both is then one endpoint, not two. Anything else is an error.
	Network string

	// SRV asks for SRV records. Names that begin with "_", such as "_grpc._tcp.orders.example.com", always do. Of the
	// targets only those with the lowest priority value are endpoints.
	SRV bool

	// SRVPrefix goes in front of the name when SRV is set, such as "_grpc._tcp". Empty means that the name itself has the
	// records, as in Consul.
	SRVPrefix string

	// Resolver makes the lookups. nil means net.DefaultResolver.
	Resolver Lookup
}

// check returns an error that names the field if d cannot be used.
func (d DNS) check() error {
	if d.Interval < 0 {
		return fmt.Errorf("discovery: DNS.Interval is %v, want 0 or more", d.Interval)
	}
	switch d.Network {
	case "", "ip", "ip4", "ip6":
		return nil
	}
	return fmt.Errorf("discovery: DNS.Network is %q, want ip4, ip6, ip or none", d.Network)
}

// Watch implements [Resolver]. It makes one lookup at a time. A DNS with invalid fields yields only an error.
func (d DNS) Watch(ctx context.Context, service Service) iter.Seq2[[]Endpoint, error] {
	return source.Watch[DNS](ctx, func(func()) source.Source[Endpoint] { return d.follow(service) })
}

func (d DNS) follow(service Service) source.Source[Endpoint] {
	if err := d.check(); err != nil {
		return source.Fixed[Endpoint]{Err: err}
	}
	host := canonical(strings.Trim(service.Host, "[]"))
	if _, err := netip.ParseAddr(host); err == nil || host == "localhost" {
		return source.Fixed[Endpoint]{Endpoints: []Endpoint{{Address: host}}}
	}
	w := &dnsWatch{DNS: d, service: service, names: dnsNames(service), gap: refreshGap}
	w.Interval = cmp.Or(d.Interval, defaultDNSInterval)
	return w
}

// dnsWatch is one Watch of a DNS.
type dnsWatch struct {
	DNS
	service Service
	names   []string // to look up, in order; only the one that exists, once there is an answer

	last     []Endpoint // sorted
	known    bool       // whether there ever was an answer
	missing  bool       // whether the last thing yielded was ErrUnknownService
	failures int

	asked bool          // whether a subscriber that could not connect caused the latest lookup, or those that failed since
	gap   time.Duration // the least time between requested lookups
}

// Step implements source.Source: it makes a lookup and yields its result.
func (w *dnsWatch) Step(ctx context.Context, asked bool, yield func([]Endpoint, error) bool) source.Turn {
	if w.failures == 0 {
		w.asked = asked
	}
	name, now, err := w.lookup(ctx, w.names)
	switch {
	case ctx.Err() != nil:
		return source.Turn{}
	case now == nil:
		w.failed(err, yield)
		return source.Turn{After: backoff(w.failures, w.Interval), Least: -1}
	case err != nil && !yield(nil, fmt.Errorf("discovery: look up %s: %w", w.service.Host, err)):
		return source.Turn{}
	}
	changed := !w.known || !slices.EqualFunc(now, w.last, equalDNS)
	if changed {
		shuffled := slices.Clone(now)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		yield(shuffled, nil)
	}
	if changed || !w.asked {
		w.gap = refreshGap
	} else {
		w.gap = min(2*w.gap, w.Interval)
	}
	w.names, w.last, w.known, w.missing, w.failures = []string{name}, now, true, false, 0
	return source.Turn{After: max(1, w.Interval*9/10+rand.N(w.Interval/5+1)), Least: w.gap}
}

// Stop implements source.Source.
func (w *dnsWatch) Stop() {}

// failed yields the error of a lookup without an answer. ErrUnknownService is yielded only once.
func (w *dnsWatch) failed(err error, yield func([]Endpoint, error) bool) {
	w.failures++
	absent := isNotFound(err) && !w.known
	if absent && w.missing {
		return
	}
	w.missing = absent
	if absent {
		yield(nil, fmt.Errorf("%w: %w", unknown(w.service), err))
		return
	}
	yield(nil, fmt.Errorf("discovery: look up %s: %w", w.service.Host, err))
}

// dnsNames returns the names to look up for the service, in order.
func dnsNames(service Service) []string {
	names := service.Names()
	if service.Name == "" {
		return names
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == service.Name+"."+service.Namespace })
}

// lookup returns the first name that exists, and its endpoints, sorted. A nil slice means that there is no answer. The error
// may come with an answer that was unusable in part.
func (d DNS) lookup(ctx context.Context, names []string) (string, []Endpoint, error) {
	var notFound error
	for _, name := range names {
		endpoints, err := d.lookupName(ctx, name)
		if endpoints == nil && isNotFound(err) {
			if notFound == nil {
				notFound = err // the error for the host itself says more than those for its short forms
			}
			continue
		}
		return name, endpoints, err
	}
	return "", nil, notFound
}

func (d DNS) lookupName(ctx context.Context, name string) ([]Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, dnsLookupTimeout)
	defer cancel()
	var resolver Lookup = net.DefaultResolver
	if d.Resolver != nil {
		resolver = d.Resolver
	}
	if strings.HasPrefix(name, "_") {
		return lookupSRV(ctx, resolver, name)
	}
	if d.SRV {
		if d.SRVPrefix != "" {
			name = d.SRVPrefix + "." + name
		}
		return lookupSRV(ctx, resolver, name)
	}
	addrs, err := resolver.LookupNetIP(ctx, cmp.Or(d.Network, "ip"), name)
	if err != nil {
		return nil, err
	}
	is4 := func(addr netip.Addr) bool { return addr.Unmap().Is4() }
	only4 := d.Network == "" && slices.ContainsFunc(addrs, is4)
	endpoints := make([]Endpoint, 0, len(addrs))
	for _, addr := range addrs {
		if !only4 || is4(addr) {
			endpoints = append(endpoints, Endpoint{Address: addr.Unmap().String()})
		}
	}
	return tidy(endpoints), nil
}

func lookupSRV(ctx context.Context, resolver Lookup, name string) ([]Endpoint, error) {
	_, records, err := resolver.LookupSRV(ctx, "", "", name)
	if err != nil && len(records) == 0 {
		return nil, err
	}
	endpoints := make([]Endpoint, 0, len(records))
	for _, r := range records {
		// RFC 2782: a lower priority value comes first; the target "." means that there is no such service here.
		if target := strings.TrimSuffix(r.Target, "."); target != "" && r.Priority == lowest(records) {
			endpoints = append(endpoints, Endpoint{Address: target, Port: int(r.Port), Weight: uint32(r.Weight)})
		}
	}
	return tidy(endpoints), err
}

func lowest(records []*net.SRV) uint16 {
	return slices.MinFunc(records, func(a, b *net.SRV) int { return cmp.Compare(a.Priority, b.Priority) }).Priority
}

// tidy sorts endpoints, so that sets can be compared, and drops duplicates.
func tidy(endpoints []Endpoint) []Endpoint {
	slices.SortFunc(endpoints, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Weight, b.Weight))
	})
	return slices.CompactFunc(endpoints, equalDNS)
}

// equalDNS compares what the domain name system says about endpoints.
func equalDNS(a, b Endpoint) bool {
	return a.Address == b.Address && a.Port == b.Port && a.Weight == b.Weight
}

func isNotFound(err error) bool {
	dnsErr, ok := errors.AsType[*net.DNSError](err)
	return ok && dnsErr.IsNotFound
}
