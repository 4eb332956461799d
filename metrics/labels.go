package metrics

import (
	"cmp"
	"strings"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/peermeta"
)

// What stands for what is not known. Prometheus takes an empty value for a label that is not there.
const (
	unknown = "unknown"
	latest  = "latest"
)

// workload is what the labels say about one side of a call.
type workload struct {
	name, namespace, app, version, service, revision, cluster string
}

// The labels of workloads that say what they are, the first that is set.
var (
	canonicalNames     = []string{"service.istio.io/canonical-name", "app.kubernetes.io/name", "app"}
	canonicalRevisions = []string{"service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"}
	appNames           = []string{"app", "app.kubernetes.io/name", "service.istio.io/canonical-name"}
	versions           = []string{"version", "app.kubernetes.io/version", "service.istio.io/canonical-revision"}
)

const workloadName = "service.istio.io/workload-name"

// exchanged are the labels that peers tell each other.
var exchanged = []string{
	"service.istio.io/canonical-name", "service.istio.io/canonical-revision", "app", "version", "app.kubernetes.io/name",
	"app.kubernetes.io/version", workloadName,
}

func first(labels map[string]string, names []string) string {
	for _, name := range names {
		if v := labels[name]; v != "" {
			return v
		}
	}
	return ""
}

// describe returns the workload of a name and labels. Without a name the canonical service stands for it.
func describe(name, namespace, cluster string, labels map[string]string) workload {
	w := workload{name: cmp.Or(labels[workloadName], name), namespace: namespace, cluster: cluster}
	w.app, w.version = first(labels, appNames), first(labels, versions)
	w.service, w.revision = first(labels, canonicalNames), first(labels, canonicalRevisions)
	w.name = cmp.Or(w.name, w.service)
	w.service = cmp.Or(w.service, w.name)
	return w.complete()
}

// complete fills in what is not known, and bounds the rest.
func (w workload) complete() workload {
	for _, field := range []*string{&w.name, &w.namespace, &w.app, &w.version, &w.service, &w.cluster} {
		*field = cmp.Or(bounded(*field), unknown)
	}
	w.revision = cmp.Or(bounded(w.revision), latest)
	if w.name == unknown && w.app == unknown {
		w.namespace = unknown // alone it would make Kiali drop the series
	}
	return w
}

// longest bounds values that others choose: it is the longest name of Kubernetes.
const longest = 253

// bounded returns a text as the value of a label: not too long, and UTF-8, without which a whole scrape would fail.
func bounded(text string) string {
	if len(text) > longest {
		text = text[:longest]
	}
	return strings.ToValidUTF8(text, "")
}

// identity is everything that the labels say about who called whom. It is the same for all calls of one path, and so what series
// are kept by.
type identity struct {
	inbound       bool // the reporter is the destination
	from, to      workload
	fromID, toID  string // principals
	host          string // destination_service
	hostName      string // destination_service_name
	hostNamespace string // destination_service_namespace
}

// account is the service account in a SPIFFE ID, /ns/NAMESPACE/sa/ACCOUNT.
type account struct{ namespace, name string }

func accountOf(id string) account {
	_, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	rest, ok := strings.CutPrefix(path, "ns/")
	namespace, rest, _ := strings.Cut(rest, "/")
	name, isAccount := strings.CutPrefix(rest, "sa/")
	if !ok || !isAccount || namespace == "" {
		return account{}
	}
	return account{namespace, name}
}

// byIdentity returns the workload of which only the SPIFFE ID is known. Its service account stands for it, since Kiali drops a
// namespace without a workload.
func byIdentity(id, cluster string) workload {
	a := accountOf(id)
	return workload{name: a.name, namespace: a.namespace, app: a.name, service: a.name, cluster: cluster}.complete()
}

// byDiscovery returns the workload of an endpoint by what discovery says, and by the SPIFFE ID that it was found to have. namespace
// is that of the service.
func byDiscovery(e *discovery.Endpoint, id, namespace, cluster string) workload {
	a := accountOf(id)
	if a.name == "" && e.ServiceAccount != "" {
		if in, name, ok := strings.Cut(e.ServiceAccount, "/"); ok {
			a = account{in, name}
		} else {
			a = account{namespace, e.ServiceAccount}
		}
	}
	w := describe("", cmp.Or(a.namespace, namespace), cluster, e.Labels)
	if w.name == unknown && a.name != "" {
		w = describe(a.name, cmp.Or(a.namespace, namespace), cluster, e.Labels)
		if w.app == unknown {
			w.app = w.name
		}
	}
	return w
}

// byMetadata returns the workload that a peer says it is.
func byMetadata(m *peermeta.Metadata, cluster string) workload {
	return describe(m.Workload, m.Namespace, cmp.Or(m.Cluster, cluster), m.Labels)
}

// service is a destination as the labels name it.
type service struct{ host, name, namespace string }

// named returns the service of a host. One without a dot is a name in the own namespace.
func (c *settings) named(host string) service {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if host == "" {
		return service{unknown, unknown, unknown}
	}
	if !strings.Contains(host, ".") && !strings.Contains(host, ":") {
		host += "." + c.namespace + c.suffix
	} else if strings.HasSuffix(host, ".svc") {
		host += "." + c.domain
	}
	host = bounded(host)
	if rest, ok := strings.CutSuffix(host, c.suffix); ok {
		if name, namespace, ok := strings.Cut(rest, "."); ok {
			return service{host, name, namespace}
		}
	}
	return service{host, host, c.namespace} // of a ServiceEntry, or what DNS knows
}

// The names for hosts outside the mesh, which have no others: callers choose them without bound.
const (
	passedThrough = "PassthroughCluster"
	blackHole     = "BlackHoleCluster"
)
