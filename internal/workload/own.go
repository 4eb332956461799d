package workload

import "cmp"

// Options has what is known of this process without its environment.
type Options struct {
	Namespace   string // "" means "default"
	Labels      map[string]string
	TrustDomain string
	Name        string
	Cluster     string
	Host        string // the host name
}

// Own describes the workload of this process.
type Own struct {
	Name, Namespace, Cluster, Mesh string

	// Labels are those that are sent to peers.
	Labels map[string]string
}

// exchanged are the labels that peers send each other.
var exchanged = []string{
	"service.istio.io/canonical-name", "service.istio.io/canonical-revision", "app", "version", "app.kubernetes.io/name",
	"app.kubernetes.io/version", workloadName,
}

// Find returns the workload of this process. Empty Options are taken from the environment variables that Istio's agent sets.
func Find(o Options, getenv func(string) string) Own {
	name := cmp.Or(o.Labels[workloadName], o.Name, getenv("ISTIO_META_WORKLOAD_NAME"), first(o.Labels, canonicalNames), o.Host)
	own := Own{
		Name: name, Namespace: cmp.Or(o.Namespace, "default"), Cluster: cmp.Or(o.Cluster, getenv("ISTIO_META_CLUSTER_ID"), "Kubernetes"),
		Mesh:   cmp.Or(getenv("ISTIO_META_MESH_ID"), o.TrustDomain, Unknown), // Istio's injector uses the trust domain too
		Labels: map[string]string{canonicalNames[0]: cmp.Or(first(o.Labels, canonicalNames), name)},
	}
	if revision := first(o.Labels, canonicalRevisions); revision != "" {
		own.Labels[canonicalRevisions[0]] = revision
	}
	for _, name := range exchanged {
		if v := o.Labels[name]; v != "" && own.Labels[name] == "" {
			own.Labels[name] = v
		}
	}
	return own
}

// Workload returns the workload of this process as peers see it.
func (o *Own) Workload() Workload { return Describe(o.Name, o.Namespace, o.Cluster, o.Labels) }
