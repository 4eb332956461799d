package kubernetes

import (
	"cmp"
	"context"
	"iter"
	"strings"
	"sync"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/internal/shared"
	"github.com/nosidecar/mesh/discovery/internal/source"
	"github.com/nosidecar/mesh/internal/kubernetes"
)

// Resolver is a [discovery.Resolver] that follows the Services of a cluster. The zero value works in a pod. It is safe for concurrent use,
// and must not be copied or changed once it is in use.
type Resolver struct {
	// Client reads from the API server. nil means that of [InCluster].
	Client *Client

	// Pods reports whether to read the pods of a service, for their labels and service accounts. Mutual TLS and subsets need them. An
	// endpoint of such a service is used only once its pod is known. Pods is called when a service is first called. nil means that the
	// pods of every service with a selector are read.
	Pods func(service discovery.Service) bool

	// Zone and Node are where this process runs, for services whose endpoints are meant for a zone or a node (trafficDistribution). An
	// empty Node means the one in the client's token, if the token names one. Hints are ignored while the zone or node is unknown.
	Zone, Node string

	// Region is the region of the endpoints, since EndpointSlices do not have one. The label topology.kubernetes.io/region or
	// istio-locality of a pod takes precedence. Empty means unknown.
	Region string

	// DNS resolves the names of Services of type ExternalName.
	DNS discovery.DNS

	// Need is called before endpoints of a namespace's services are yielded for the first time. The endpoints wait until it returns, so it
	// can read what else calls need from that namespace. It should return when ctx ends. nil means that nothing else is needed.
	Need func(ctx context.Context, namespace string)

	once   sync.Once
	client *kubernetes.Client
	place  place // where this process runs
	err    error

	mu         sync.Mutex
	namespaces map[string]*namespace
}

var _ discovery.Resolver = (*Resolver)(nil)

// init derives the unexported fields from the exported ones.
func (r *Resolver) init() {
	client := r.Client
	if client == nil {
		client, r.err = InCluster()
	}
	if r.err == nil {
		r.client = (*kubernetes.Client)(client)
		r.place = place{r.Zone, cmp.Or(r.Node, r.client.Identity().Node)}
	}
	r.namespaces = make(map[string]*namespace)
}

// Watch implements [discovery.Resolver]. Any number of calls for one service share its watches.
//
// A service is known if there is a Service with its name. A Service without endpoints, or one that was deleted, is an empty set. The name
// and namespace are those of [discovery.Service]. If it has none, Host may be name.namespace.svc, with or without cluster.local at the end,
// or a name in the client's namespace.
func (r *Resolver) Watch(ctx context.Context, service discovery.Service) iter.Seq2[[]discovery.Endpoint, error] {
	return source.Watch[*Resolver](ctx, func(wake func()) source.Source[discovery.Endpoint] {
		r.once.Do(r.init)
		name, in, ok := r.nameOf(service)
		switch {
		case r.err != nil:
			return source.Fixed[discovery.Endpoint]{Err: r.err}
		case !ok:
			return source.Fixed[discovery.Endpoint]{Err: shared.Unknown(service)}
		}
		return r.join(in, name, service, wake)
	})
}

// nameOf returns the name and the namespace of a service, and false if it cannot be in the cluster.
func (r *Resolver) nameOf(service discovery.Service) (name, namespace string, ok bool) {
	name, namespace = service.Name, service.Namespace
	if name == "" && r.client != nil {
		host := strings.TrimSuffix(service.Host, ".")
		short, inCluster := strings.CutSuffix(strings.TrimSuffix(strings.ToLower(host), ".cluster.local"), ".svc")
		switch name, namespace, _ = strings.Cut(short, "."); {
		case inCluster:
		case namespace == "" && name != "localhost":
			namespace = r.client.Namespace()
		default:
			return "", "", false
		}
	}
	name, namespace = strings.ToLower(name), strings.ToLower(namespace)
	return name, namespace, isName(name) && isName(namespace)
}

// isName reports whether a label of a host can be the name of something in a cluster. It becomes part of a request.
func isName(label string) bool {
	return label != "" && len(label) <= 63 && strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}
