package metrics

import (
	"cmp"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/metrics/internal/peermeta"
	"github.com/nosidecar/mesh/policy"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says how metrics are kept, and which workload this process is. Its zero value works: empty fields are taken from the
// mesh and from the environment variables that Istio's agent sets.
type Config struct {
	// Registerer is where the metrics are registered. Nil means [prometheus.DefaultRegisterer].
	Registerer prometheus.Registerer

	// Workload is the workload that this process is. Its namespace, labels, locality, address, trust domain and cluster domain are used
	// here. Empty fields are those of the mesh, which has them from [mesh.WithWorkload] and the environment. So this is needed only if
	// metrics should say something else, or to have New report labels that are too long to be sent to peers: those of the mesh are not
	// used then.
	Workload policy.Workload

	// Name is the name of the workload, such as that of its Deployment. The label service.istio.io/workload-name takes precedence.
	// Empty means ISTIO_META_WORKLOAD_NAME, otherwise the canonical service in the labels, otherwise the host name.
	Name string

	// Service is the service that this process serves, which is the destination_service of requests to it. It must be the name that
	// callers use, or every edge of a service graph appears twice. A name without a dot is in the workload's namespace. Empty means
	// the canonical service in the workload's namespace.
	Service string

	// Cluster is the name of the cluster. Empty means ISTIO_META_CLUSTER_ID, otherwise "Kubernetes".
	Cluster string

	// Owner is the object that the workload belongs to, in Istio's format. Empty means ISTIO_META_OWNER, otherwise a Deployment with
	// the name of the workload.
	Owner string

	// Version is the tag of istio_build. Empty means the version of this module in the program.
	Version string

	// MaxIdentities is the maximum number of sets of labels. One takes about 4 kB of memory, and 57 kB of text in each scrape. Calls
	// that would need more are counted only in mesh_metrics_overflow_total. 0 means 1000.
	MaxIdentities int

	// MaxEndpoints is the number of endpoints with histograms of their own in mesh_attempt_duration_milliseconds, which shows a slow
	// endpoint among many. All other endpoints share theirs. An endpoint has 44 series: two histograms, of successful and of failed
	// attempts. 0 means that there are no such histograms.
	MaxEndpoints int

	// IdleExpiry is how long a set of labels is kept without a call. It must be at least a minute. 0 means one hour.
	IdleExpiry time.Duration

	// NativeHistograms adds native buckets to the classic ones. Recording a call then takes two to three times as long. A Prometheus
	// that takes native buckets drops the classic ones, which the dashboards of Istio and of this module need, unless
	// always_scrape_classic_histograms is set.
	NativeHistograms bool

	// Dropped has functions that return how many items of a kind, such as "access_log", were dropped so far. Each function is called
	// at every scrape, and its result is exported as mesh_dropped_total. It must return at once, and be safe for concurrent use, since
	// scrapes may overlap.
	Dropped map[string]func() uint64
}

// settings is a Config with its defaults applied.
type settings struct {
	registerer        prometheus.Registerer
	own               workload.Workload
	metadata          peermeta.Metadata
	address           string
	suffix            string // of the services of the cluster
	namespace, domain string
	served            service
	version           string
	most              int
	endpoints         int
	idle              time.Duration
	native            bool
	dropped           map[string]func() uint64
}

// of returns c with the workload of a mesh for what it does not say about its own.
func (c Config) of(s mesh.Status) Config {
	w := &s.Workload
	place := strings.SplitN(w.Locality, "/", 3)
	place = append(place, "", "")
	c.Workload = c.Workload.Or(policy.Workload{
		Namespace: w.Namespace, Labels: w.Labels, Address: w.Address, TrustDomain: w.TrustDomain, ClusterDomain: w.ClusterDomain,
		Locality: discovery.Locality{Region: place[0], Zone: place[1]},
	})
	return c
}

func (c Config) settings(getenv func(string) string, hostname func() (string, error)) (*settings, error) {
	if c.MaxIdentities < 0 {
		return nil, errors.New("metrics: MaxIdentities is negative")
	}
	if c.MaxEndpoints < 0 {
		return nil, errors.New("metrics: MaxEndpoints is negative")
	}
	if c.IdleExpiry != 0 && c.IdleExpiry < time.Minute {
		return nil, fmt.Errorf("metrics: IdleExpiry is %v, which is less than a minute: series would be gone before they are scraped", c.IdleExpiry)
	}
	environment, err := policy.WorkloadFromEnv()
	if err != nil {
		return nil, err
	}
	w := c.Workload.Or(environment)
	host, err := hostname()
	if err != nil {
		return nil, fmt.Errorf("metrics: the name of the host: %w", err)
	}
	s := &settings{
		registerer: c.Registerer, native: c.NativeHistograms, dropped: c.Dropped,
		namespace: cmp.Or(w.Namespace, "default"), domain: cmp.Or(w.ClusterDomain, "cluster.local"), address: w.Address,
		most: cmp.Or(c.MaxIdentities, 1000), endpoints: c.MaxEndpoints, idle: cmp.Or(c.IdleExpiry, time.Hour),
		version: cmp.Or(c.Version, moduleVersion()),
	}
	if s.registerer == nil {
		s.registerer = prometheus.DefaultRegisterer
	}
	s.suffix = ".svc." + s.domain
	own := workload.Find(workload.Options{
		Namespace: s.namespace, Labels: w.Labels, TrustDomain: w.TrustDomain, Name: c.Name, Cluster: c.Cluster, Host: host,
	}, getenv)
	s.metadata = peermeta.Metadata{
		Name: host, Namespace: s.namespace, Workload: own.Name, Cluster: own.Cluster, Labels: own.Labels,
		Owner:  cmp.Or(c.Owner, getenv("ISTIO_META_OWNER"), "kubernetes://apis/apps/v1/namespaces/"+s.namespace+"/deployments/"+own.Name),
		Region: w.Locality.Region, Zone: w.Locality.Zone,
	}
	if len(s.metadata.Encode()) > peermeta.MaxSize {
		return nil, fmt.Errorf("metrics: the metadata of this workload for its peers is longer than %d bytes: shorten its labels", peermeta.MaxSize)
	}
	s.own = own.Workload()
	s.served = s.named(cmp.Or(c.Service, s.own.Service+"."+s.namespace+".svc."+s.domain))
	return s, nil
}

const module = "github.com/nosidecar/mesh"

// moduleVersion returns the version of this module in the program.
func moduleVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return unknown
	}
	if info.Main.Path == module {
		return cmp.Or(info.Main.Version, unknown)
	}
	for _, m := range info.Deps {
		if m.Path == module {
			return cmp.Or(m.Version, unknown)
		}
	}
	return unknown
}
