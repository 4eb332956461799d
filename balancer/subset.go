package balancer

import "github.com/nosidecar/mesh/discovery"

// Subset returns the endpoints that have all the labels. It returns endpoints itself if labels is empty, and never changes
// it.
func Subset(endpoints []discovery.Endpoint, labels map[string]string) []discovery.Endpoint {
	if len(labels) == 0 {
		return endpoints
	}
	var subset []discovery.Endpoint
	for _, e := range endpoints {
		if hasLabels(e.Labels, labels) {
			subset = append(subset, e)
		}
	}
	return subset
}

func hasLabels(has, want map[string]string) bool {
	for name, value := range want {
		if v, ok := has[name]; !ok || v != value {
			return false
		}
	}
	return true
}
