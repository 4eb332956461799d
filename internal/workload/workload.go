// Package workload describes the workload of this process, and the one at the other end of a call, in the terms of Istio's telemetry.
// Metrics and spans share it.
package workload

import (
	"cmp"
	"strings"

	"github.com/nosidecar/mesh/discovery"
)

// The values for what is unknown. To Prometheus, an empty value is the same as no label.
const (
	Unknown = "unknown"
	latest  = "latest"
)

// Workload is the telemetry description of one end of a call.
type Workload struct {
	Name, Namespace, App, Version, Service, Revision, Cluster string
}

// The labels that describe a workload. The first one that is set counts.
var (
	canonicalNames     = []string{"service.istio.io/canonical-name", "app.kubernetes.io/name", "app"}
	canonicalRevisions = []string{"service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"}
	appNames           = []string{"app", "app.kubernetes.io/name", "service.istio.io/canonical-name"}
	versions           = []string{"version", "app.kubernetes.io/version", "service.istio.io/canonical-revision"}
)

const workloadName = "service.istio.io/workload-name"

func first(labels map[string]string, names []string) string {
	for _, name := range names {
		if v := labels[name]; v != "" {
			return v
		}
	}
	return ""
}

// Describe returns the workload with a name and labels. If there is no name, the canonical service is used instead.
func Describe(name, namespace, cluster string, labels map[string]string) Workload {
	w := Workload{Name: cmp.Or(labels[workloadName], name), Namespace: namespace, Cluster: cluster}
	w.App, w.Version = first(labels, appNames), first(labels, versions)
	w.Service, w.Revision = first(labels, canonicalNames), first(labels, canonicalRevisions)
	w.Name = cmp.Or(w.Name, w.Service)
	w.Service = cmp.Or(w.Service, w.Name)
	return w.complete()
}

// Nobody returns a workload about which nothing but the cluster is known.
func Nobody(cluster string) Workload { return Workload{Cluster: cluster}.complete() }

// complete sets empty fields to Unknown or latest, and bounds the others.
func (w Workload) complete() Workload {
	for _, field := range []*string{&w.Name, &w.Namespace, &w.App, &w.Version, &w.Service, &w.Cluster} {
		*field = cmp.Or(Bounded(*field), Unknown)
	}
	w.Revision = cmp.Or(Bounded(w.Revision), latest)
	if w.Name == Unknown && w.App == Unknown {
		w.Namespace = Unknown // Kiali drops series with only a namespace
	}
	return w
}

// Longest is the maximum length of values that others choose. It is that of names in Kubernetes.
const Longest = 253

// Bounded makes a text a valid label value: it cuts it to the maximum length and removes invalid UTF-8, with which a whole scrape would
// fail.
func Bounded(text string) string {
	if len(text) > Longest {
		text = strings.Clone(text[:Longest]) // without the rest in memory
	}
	return strings.ToValidUTF8(text, "")
}

// Account is the service account in a SPIFFE ID, /ns/NAMESPACE/sa/ACCOUNT.
type Account struct{ Namespace, Name string }

// AccountOf returns the account in a SPIFFE ID. It is empty if the ID has another form.
func AccountOf(id string) Account {
	_, path, _ := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/")
	rest, ok := strings.CutPrefix(path, "ns/")
	namespace, rest, _ := strings.Cut(rest, "/")
	name, isAccount := strings.CutPrefix(rest, "sa/")
	if !ok || !isAccount || namespace == "" {
		return Account{}
	}
	return Account{namespace, name}
}

// NamespaceOf returns the namespace in the host name of a service of the cluster, and "" for any other host.
func NamespaceOf(host string) string {
	_, rest, _ := strings.Cut(host, ".")
	namespace, rest, _ := strings.Cut(rest, ".")
	if rest == "svc" || strings.HasPrefix(rest, "svc.") {
		return namespace
	}
	return ""
}

// ByIdentity returns a workload about which only the SPIFFE ID is known. Its service account serves as its name, since Kiali drops a
// namespace without a workload.
func ByIdentity(id, cluster string) Workload {
	a := AccountOf(id)
	return Workload{Name: a.Name, Namespace: a.Namespace, App: a.Name, Service: a.Name, Cluster: cluster}.complete()
}

// AccountAt returns the service account of an endpoint: that of the SPIFFE ID that it has proved, or else the one that discovery tells of.
// namespace is that of the service.
func AccountAt(e *discovery.Endpoint, id, namespace string) Account {
	a := AccountOf(id)
	if a.Name != "" || e.ServiceAccount == "" {
		return a
	}
	if in, name, ok := strings.Cut(e.ServiceAccount, "/"); ok {
		return Account{in, name}
	}
	return Account{namespace, e.ServiceAccount}
}

// ByDiscovery returns the workload of an endpoint by its description in discovery and the SPIFFE ID that it has proved. namespace is that of
// the service.
func ByDiscovery(e *discovery.Endpoint, id, namespace, cluster string) Workload {
	a := AccountAt(e, id, namespace)
	w := Describe("", cmp.Or(a.Namespace, namespace), cluster, e.Labels)
	if w.Name == Unknown && a.Name != "" {
		w = Describe(a.Name, cmp.Or(a.Namespace, namespace), cluster, e.Labels)
		if w.App == Unknown {
			w.App = w.Name
		}
	}
	return w
}
