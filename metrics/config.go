package metrics

import (
	"cmp"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/nosidecar/mesh/internal/peermeta"
	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/policy"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says how metrics are kept, and who this process is. Its zero value works: what is empty is taken from the environment, by
// the variables that Istio's agent sets.
type Config struct {
	// Registerer is where the metrics are registered. nil means [prometheus.DefaultRegisterer].
	Registerer prometheus.Registerer

	// Workload is what [mesh.WithWorkload] was given: the namespace, the labels, the locality, the address and the domain of the
	// cluster count here. What it leaves empty is taken from the environment, see [policy.WorkloadFromEnv].
	Workload policy.Workload

	// Name is the name of the workload, such as that of its Deployment. The label service.istio.io/workload-name comes before it. ""
	// means ISTIO_META_WORKLOAD_NAME, else the canonical service that the labels name, else the name of the host.
	Name string

	// Service is the service that this process serves, destination_service of requests to it. It must be what callers call it, or
	// every edge of a graph appears twice. A name without a dot is one of the own namespace. "" means the canonical service in the
	// own namespace.
	Service string

	// Cluster is the name of the cluster. "" means ISTIO_META_CLUSTER_ID, else "Kubernetes".
	Cluster string

	// Owner is what the workload is deployed by, in the form of Istio. "" means ISTIO_META_OWNER, else a Deployment of that name.
	Owner string

	// Version is the tag of istio_build. "" means the version of this module in the program.
	Version string

	// MaxIdentities bounds the sets of labels: one takes about 3 kB, and each scrape about 57 kB of text. Calls beyond it are counted in
	// mesh_metrics_overflow_total only. 0 means 1000.
	MaxIdentities int

	// MaxEndpoints is how many endpoints have a histogram of their own, mesh_attempt_duration_milliseconds, which shows the one that is
	// slow among many. The others share one. Each is 44 series, so that there are none by default.
	MaxEndpoints int

	// IdleExpiry is after how long without a call a set of labels is forgotten. 0 means one hour; it is at least a minute.
	IdleExpiry time.Duration

	// NativeHistograms adds native buckets to the classic ones. Recording a call then takes about three times as long.
	NativeHistograms bool

	// Dropped are functions that tell how much of something, such as "access_log", was dropped so far. Each is asked at every scrape,
	// and shown in mesh_dropped_total.
	Dropped map[string]func() uint64
}

// settings are a Config with its defaults.
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
		return nil, fmt.Errorf("metrics: what peers would be told of this workload is longer than %d bytes: shorten its labels", peermeta.MaxSize)
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
