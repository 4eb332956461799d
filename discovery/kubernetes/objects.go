package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/kubernetes"
)

// serviceName is the label that joins a slice to its service.
const serviceName = "kubernetes.io/service-name"

var (
	services = kubernetes.Resource{Version: "v1", Plural: "services", Kind: "Service"}
	slicesOf = kubernetes.Resource{Group: "discovery.k8s.io", Version: "v1", Plural: "endpointslices", Kind: "EndpointSlice"}
	podsOf   = kubernetes.Resource{Version: "v1", Plural: "pods", Kind: "Pod"}
)

// service is what is kept of a Service.
type service struct {
	err error // it could not be read

	selector     string        // of its pods, as in a URL; "" for none
	externalName string        // of a Service of type ExternalName, or ""
	ports        []servicePort // without those that are not TCP
	portless     bool          // it has no ports at all
	headless     bool          // its DNS name leads to the pods, on any port
	family       string        // "IPv4" or "IPv6": the addresses that come first
}

type servicePort struct {
	name   string
	number int
}

func (s *service) equal(other *service) bool { return reflect.DeepEqual(s, other) }

func decodeService(o kubernetes.Object) *service {
	var from struct {
		Spec struct {
			Type         string            `json:"type"`
			ExternalName string            `json:"externalName"`
			ClusterIP    string            `json:"clusterIP"`
			Selector     map[string]string `json:"selector"`
			IPFamilies   []string          `json:"ipFamilies"`
			Ports        []struct {
				Name     string `json:"name"`
				Protocol string `json:"protocol"`
				Port     int    `json:"port"`
			} `json:"ports"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(o.Raw, &from); err != nil {
		return &service{err: fmt.Errorf("kubernetes: Service %s/%s: %w", o.Namespace, o.Name, err)}
	}
	s := &service{family: "IPv4", portless: len(from.Spec.Ports) == 0, headless: from.Spec.ClusterIP == "None"}
	if len(from.Spec.IPFamilies) > 0 {
		s.family = from.Spec.IPFamilies[0]
	}
	if from.Spec.Type == "ExternalName" {
		s.externalName = from.Spec.ExternalName
	}
	for _, p := range from.Spec.Ports {
		if isTCP(p.Protocol) {
			s.ports = append(s.ports, servicePort{p.Name, p.Port})
		}
	}
	var terms []string
	for _, key := range slices.Sorted(maps.Keys(from.Spec.Selector)) {
		terms = append(terms, key+"="+from.Spec.Selector[key])
	}
	s.selector = strings.Join(terms, ",")
	return s
}

func isTCP(protocol string) bool { return protocol == "" || protocol == "TCP" }

// pod is what is kept of a Pod.
type pod struct {
	err error // it could not be read

	uid     string
	labels  map[string]string
	account string // "namespace/name"

	// place is where the pod runs according to its labels. If whole is set, nothing else counts.
	place discovery.Locality
	whole bool
}

func (p *pod) equal(other *pod) bool {
	return p.uid == other.uid && p.account == other.account && maps.Equal(p.labels, other.labels)
}

func decodePod(o kubernetes.Object) *pod {
	var from struct {
		Metadata struct {
			Labels map[string]string `json:"labels"`
		} `json:"metadata"`
		Spec struct {
			ServiceAccountName string `json:"serviceAccountName"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(o.Raw, &from); err != nil {
		return &pod{err: fmt.Errorf("kubernetes: Pod %s/%s: %w", o.Namespace, o.Name, err)}
	}
	p := &pod{uid: o.UID, labels: from.Metadata.Labels}
	p.place, p.whole = placeOf(p.labels)
	if from.Spec.ServiceAccountName == "" {
		from.Spec.ServiceAccountName = "default" // as the API server's admission does
	}
	p.account = o.Namespace + "/" + from.Spec.ServiceAccountName
	return p
}

// placeOf returns where a pod runs according to its labels. policy.WorkloadFromEnv reads those of the process in the same way.
func placeOf(labels map[string]string) (place discovery.Locality, whole bool) {
	if text := labels["istio-locality"]; text != "" { // region.zone.subzone; slashes cannot be in the value of a label
		place.Region, text, _ = strings.Cut(text, ".")
		place.Zone, place.SubZone, _ = strings.Cut(text, ".")
		return place, true
	}
	return discovery.Locality{
		Region: labels["topology.kubernetes.io/region"], Zone: labels["topology.kubernetes.io/zone"], SubZone: labels["topology.istio.io/subzone"],
	}, false
}
