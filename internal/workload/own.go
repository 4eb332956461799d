package workload

import "cmp"

// Options are what is known of this process before its environment is asked.
type Options struct {
	Namespace   string // "" means "default"
	Labels      map[string]string
	TrustDomain string
	Name        string
	Cluster     string
	Host        string // the name of the host
}

// Own is who this process is.
type Own struct {
	Name, Namespace, Cluster, Mesh string

	// Labels are those that peers are told.
	Labels map[string]string
}

// exchanged are the labels that peers tell each other.
var exchanged = []string{
	"service.istio.io/canonical-name", "service.istio.io/canonical-revision", "app", "version", "app.kubernetes.io/name",
	"app.kubernetes.io/version", workloadName,
}

// Find returns who this process is. What the Options leave empty is taken from the variables that Istio's agent sets.
func Find(o Options, getenv func(string) string) Own {
	name := cmp.Or(o.Labels[workloadName], o.Name, getenv("ISTIO_META_WORKLOAD_NAME"), first(o.Labels, canonicalNames), o.Host)
	own := Own{
		Name: name, Namespace: cmp.Or(o.Namespace, "default"), Cluster: cmp.Or(o.Cluster, getenv("ISTIO_META_CLUSTER_ID"), "Kubernetes"),
		Mesh:   cmp.Or(getenv("ISTIO_META_MESH_ID"), o.TrustDomain, Unknown), // Istio's injector has the trust domain, too
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

// Workload returns this process as peers see it.
func (o *Own) Workload() Workload { return Describe(o.Name, o.Namespace, o.Cluster, o.Labels) }
