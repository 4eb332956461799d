package consul

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/internal/shared"
	"github.com/nosidecar/mesh/discovery/internal/source"
)

// Config says where a [Resolver] looks. The zero value looks in the datacenter of the agent.
type Config struct {
	// Places are where services are looked up, in order. The endpoints of a service are those of the first place with endpoints that take
	// calls. The next place is queried only if there are none, and is watched from then on. An error does not lead to the next
	// place: the last endpoints stay in use. Empty means one zero Place.
	Places []Place

	// Connect selects only endpoints that use mTLS with the certificates of Consul Connect: services that are registered as
	// native, and sidecar proxies.
	Connect bool
}

// Place is a part of what an agent can see. The zero value is the agent's own.
type Place struct {
	Datacenter string

	// Namespace and Partition exist only in Consul Enterprise. Other editions answer with an error.
	Namespace, Partition string

	// Peer is the name of a cluster peering.
	Peer string
}

// Resolver is a [discovery.Resolver] that follows the services of Consul. It is safe for concurrent use.
type Resolver struct {
	client *api.Client
	config Config

	mu      sync.Mutex
	watched map[target]*watched
}

var _ discovery.Resolver = (*Resolver)(nil)

// New returns a resolver that uses the client. A nil client means that of [NewClient] for the environment. An error says what is
// wrong with the config or with the environment.
func New(client *api.Client, config Config) (*Resolver, error) {
	if client == nil {
		var err error
		if client, err = NewClient(nil); err != nil {
			return nil, err
		}
	}
	config.Places = slices.Clone(config.Places)
	if len(config.Places) == 0 {
		config.Places = []Place{{}}
	}
	for i, place := range config.Places {
		if place.Peer != "" && place.Datacenter != "" {
			return nil, fmt.Errorf("consul: Config.Places[%d] has Datacenter %q and Peer %q, want one of them: a peer has its own datacenter",
				i, place.Datacenter, place.Peer)
		}
	}
	return &Resolver{client: client, config: config, watched: make(map[target]*watched)}, nil
}

// Watch implements [discovery.Resolver]. Any number of calls for one service share one query.
//
// If Consul knows no instance of a service, healthy or not, Watch yields [discovery.ErrUnknownService]. If the service had instances before, it
// yields an empty set.
func (r *Resolver) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return source.Watch[*Resolver](ctx, func(wake func()) source.Source[discovery.Endpoint] {
		t, ok := targetOf(service)
		if !ok {
			return source.Fixed[discovery.Endpoint]{Err: shared.Unknown(service)}
		}
		return r.join(t, service, wake)
	})
}

// target is what is watched for a host.
type target struct {
	name       string // in lower case
	query      bool   // it is a prepared query
	datacenter string // "" means the configured places
}

// targetOf returns what to look up for a service, and false if it cannot exist in Consul.
func targetOf(service discovery.Service) (target, bool) {
	if service.Name != "" {
		return target{name: strings.ToLower(service.Name)}, service.Namespace == "default" && isName(service.Name)
	}
	t := target{}
	labels := strings.Split(strings.TrimSuffix(strings.ToLower(service.Host), "."), ".")
	t.name = labels[0]
	ok := isName(t.name)
	switch rest := strings.Join(labels[1:], "."); rest {
	case "":
		ok = ok && t.name != "localhost"
	case "default", "default.svc", "service.consul", "virtual.consul":
	case "query.consul":
		t.query = true
	default:
		t.datacenter = strings.TrimSuffix(strings.TrimPrefix(rest, "service."), ".consul")
		ok = ok && "service."+t.datacenter+".consul" == rest && isName(t.datacenter)
	}
	return t, ok
}

// isName reports whether a label of a host can be the name of something in Consul. It becomes part of the path of a request.
func isName(label string) bool {
	return label != "" && strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// places returns where a target is looked up.
func (r *Resolver) places(t target) []Place {
	if t.datacenter == "" {
		return r.config.Places
	}
	place := r.config.Places[0]
	place.Datacenter, place.Peer = t.datacenter, ""
	return []Place{place}
}
