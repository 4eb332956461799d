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

	"github.com/nosidecar/mesh/internal/pause"
)

const (
	defaultDNSInterval = 30 * time.Second
	dnsLookupTimeout   = 15 * time.Second

	// refreshGap is the least time between two lookups, where callers ask for one.
	refreshGap = time.Second
)

// Lookup is the part of net.Resolver that [DNS] uses.
type Lookup interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, records []*net.SRV, err error)
}

// DNS is a [Resolver] that polls the domain name system: the addresses of a service, on the port the caller asks for, or with
// SRV its targets, each with a port and a weight. It tries [Service.Names] in order until one exists, and stays with that one.
// Of the names of a service of the cluster it leaves out name.namespace, which outside the cluster can belong to anyone:
// "orders.shop" is a domain that can be bought.
//
// It yields when the set changes, whatever the order of the answers, and each time in a random order, so that the
// clients of a service do not all begin with the same endpoint. A watcher whose subscribers could not connect has it look
// again sooner (see [Subscription.Refresh]). When a lookup fails it yields the error and tries again
// soon, then less and less often. A name that does not exist is [ErrUnknownService], unless it existed before. IP
// addresses and "localhost" are their own endpoints and are never looked up.
//
// The zero value is ready. It is safe for concurrent use and must not be changed while in use.
type DNS struct {
	// Interval is the time between lookups, give or take a tenth at random. 0 or less means 30 seconds.
	Interval time.Duration

	// Network is "ip4" for A records, "ip6" for AAAA records and "ip" for both. Empty means A, and AAAA for a name that
	// has no A: a host with both is then one endpoint, not two.
	Network string

	// SRV asks for SRV records. Names that begin with "_", such as "_grpc._tcp.orders.example.com", always do. Of the
	// targets only those with the lowest priority value are endpoints.
	SRV bool

	// SRVPrefix goes in front of the name when SRV is set, such as "_grpc._tcp". Empty means that the records are
	// those of the name itself, as in Consul.
	SRVPrefix string

	// Resolver makes the lookups. Nil means net.DefaultResolver.
	Resolver Lookup
}

// Watch implements [Resolver]. It makes one lookup at a time.
func (d DNS) Watch(ctx context.Context, service Service) iter.Seq2[[]Endpoint, error] {
	return func(yield func([]Endpoint, error) bool) {
		if ctx.Err() != nil {
			return
		}
		host := canonical(strings.Trim(service.Host, "[]"))
		if _, err := netip.ParseAddr(host); err == nil || host == "localhost" {
			yieldOnce(ctx, yield, []Endpoint{{Address: host}}, nil)
			return
		}
		interval := d.Interval
		if interval <= 0 {
			interval = defaultDNSInterval
		}
		names := dnsNames(service)
		var (
			last     []Endpoint // sorted
			known    bool       // whether there ever was an answer
			missing  bool       // whether the last thing yielded was ErrUnknownService
			failures int
			asked    bool         // whether somebody could not connect
			gap      = refreshGap // the least time between lookups that are asked for
		)
		refresh, _ := ctx.Value(refreshKey{}).(<-chan struct{}) // nil: nobody asks
		for {
			select {
			case <-refresh: // which comes in time for this lookup
			default:
			}
			name, now, err := d.lookup(ctx, names)
			if ctx.Err() != nil {
				return
			}
			if now == nil {
				failures++
				absent := isNotFound(err) && !known
				if absent {
					err = fmt.Errorf("%w: %w", unknown(service), err)
				} else {
					err = fmt.Errorf("discovery: look up %s: %w", service.Host, err)
				}
				if !(absent && missing) && !yield(nil, err) {
					return
				}
				missing = absent
				if pause.For(ctx, backoff(failures, interval)) != nil {
					return
				}
				continue
			}
			if err != nil && !yield(nil, fmt.Errorf("discovery: look up %s: %w", service.Host, err)) {
				return
			}
			changed := !known || !slices.EqualFunc(now, last, equalDNS)
			if changed {
				shuffled := slices.Clone(now)
				rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
				if !yield(shuffled, nil) {
					return
				}
			}
			if changed || !asked {
				gap = refreshGap
			} else {
				gap = min(2*gap, interval)
			}
			names = []string{name}
			last, known, missing, failures = now, true, false, 0
			var ok bool
			if asked, ok = sleepUnless(ctx, interval*9/10+rand.N(interval/5+1), refresh, gap); !ok {
				return
			}
		}
	}
}

// dnsNames returns the names to look up for the service, in order.
func dnsNames(service Service) []string {
	names := service.Names()
	if service.Name == "" {
		return names
	}
	return slices.DeleteFunc(names, func(name string) bool { return name == service.Name+"."+service.Namespace })
}

// lookup returns the first name that exists, and its endpoints, sorted. A nil slice means that there is no answer. The
// error may come with an answer of which a part was unusable.
func (d DNS) lookup(ctx context.Context, names []string) (string, []Endpoint, error) {
	var notFound error
	for _, name := range names {
		endpoints, err := d.lookupName(ctx, name)
		if endpoints == nil && isNotFound(err) {
			if notFound == nil {
				notFound = err // the host's own says more than those of its short forms
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
	network := d.Network
	if network == "" {
		network = "ip"
	}
	addrs, err := resolver.LookupNetIP(ctx, network, name)
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

// tidy sorts endpoints, so that sets can be compared, and drops what is there twice.
func tidy(endpoints []Endpoint) []Endpoint {
	slices.SortFunc(endpoints, func(a, b Endpoint) int {
		return cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Weight, b.Weight))
	})
	return slices.CompactFunc(endpoints, equalDNS)
}

// equalDNS compares what the domain name system tells of an endpoint.
func equalDNS(a, b Endpoint) bool {
	return a.Address == b.Address && a.Port == b.Port && a.Weight == b.Weight
}

func isNotFound(err error) bool {
	dnsErr, ok := errors.AsType[*net.DNSError](err)
	return ok && dnsErr.IsNotFound
}
