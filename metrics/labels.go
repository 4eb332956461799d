package metrics

import (
	"strings"

	"github.com/nosidecar/mesh/internal/workload"
)

const unknown = workload.Unknown

// identity has all labels about the two ends of a call. It is the same for all calls of one path, so it is the key of paths.
type identity struct {
	inbound       bool // the reporter is the destination
	from, to      workload.Workload
	fromID, toID  string // principals
	host          string // destination_service
	hostName      string // destination_service_name
	hostNamespace string // destination_service_namespace
}

// service has the labels of a destination.
type service struct{ host, name, namespace string }

// named returns the service of a host. A host without a dot is a name in the workload's namespace.
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
	host = workload.Bounded(host)
	if rest, ok := strings.CutSuffix(host, c.suffix); ok {
		if name, namespace, ok := strings.Cut(rest, "."); ok {
			return service{host, name, namespace}
		}
	}
	return service{host, host, c.namespace} // a host of a ServiceEntry, or one that DNS knows
}

// The service names of all hosts outside the mesh. The hosts themselves are not labels: callers could choose any number of them.
const (
	passedThrough = "PassthroughCluster"
	blackHole     = "BlackHoleCluster"
)
