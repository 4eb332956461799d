package kubernetes

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

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
	externalName string        // what it is another name of, or ""
	ports        []servicePort // without those that are not TCP
	portless     bool          // it has no ports at all
	family       string        // "IPv4" or "IPv6": the addresses that come first
}

type servicePort struct {
	name   string
	number int
}

func (s *service) equal(other *service) bool {
	return s == other || s != nil && other != nil && s.err == nil && other.err == nil && s.selector == other.selector &&
		s.externalName == other.externalName && s.portless == other.portless && s.family == other.family && slices.Equal(s.ports, other.ports)
}

func decodeService(o kubernetes.Object) *service {
	var from struct {
		Spec struct {
			Type         string            `json:"type"`
			ExternalName string            `json:"externalName"`
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
	s := &service{family: "IPv4", portless: len(from.Spec.Ports) == 0}
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

// slice is what is kept of an EndpointSlice.
type slice struct {
	err error // it could not be read

	service     string // that it belongs to, "" for none
	addressType string // "IPv4", "IPv6" or "FQDN"
	ports       []slicePort
	portless    bool // it has no ports at all
	backends    []backend
	bad         string // an address that is none
	left        int    // how many of them
}

type slicePort struct {
	name   string
	number int // 0 means all
}

// backend is an endpoint of a slice.
type backend struct {
	address                     string
	ready, serving, terminating bool
	zone, node                  string
	forZones, forNodes          []string // the hints
	pod                         string   // its uid, or ""
}

func (s *slice) equal(other *slice) bool {
	return s == other || s != nil && other != nil && s.err == nil && other.err == nil && s.service == other.service && s.addressType == other.addressType &&
		s.portless == other.portless && s.bad == other.bad && s.left == other.left && slices.Equal(s.ports, other.ports) &&
		slices.EqualFunc(s.backends, other.backends, func(a, b backend) bool {
			return a.address == b.address && a.ready == b.ready && a.serving == b.serving && a.terminating == b.terminating && a.pod == b.pod &&
				a.zone == b.zone && a.node == b.node && slices.Equal(a.forZones, b.forZones) && slices.Equal(a.forNodes, b.forNodes)
		})
}

func decodeSlice(o kubernetes.Object) *slice {
	type hint struct {
		Name string `json:"name"`
	}
	var from struct {
		Metadata struct {
			Labels struct {
				Service string `json:"kubernetes.io/service-name"`
			} `json:"labels"`
		} `json:"metadata"`
		AddressType string `json:"addressType"`
		Ports       []struct {
			Name     string `json:"name"`
			Protocol string `json:"protocol"`
			Port     int    `json:"port"`
		} `json:"ports"`
		Endpoints []struct {
			Addresses  []string `json:"addresses"`
			Conditions struct {
				Ready       *bool `json:"ready"`
				Serving     *bool `json:"serving"`
				Terminating *bool `json:"terminating"`
			} `json:"conditions"`
			Zone      string `json:"zone"`
			NodeName  string `json:"nodeName"`
			TargetRef struct {
				Kind      string `json:"kind"`
				Namespace string `json:"namespace"`
				UID       string `json:"uid"`
			} `json:"targetRef"`
			Hints struct {
				ForZones []hint `json:"forZones"`
				ForNodes []hint `json:"forNodes"`
			} `json:"hints"`
		} `json:"endpoints"`
	}
	if err := json.Unmarshal(o.Raw, &from); err != nil {
		return &slice{err: fmt.Errorf("kubernetes: EndpointSlice %s/%s: %w", o.Namespace, o.Name, err)}
	}
	s := &slice{service: from.Metadata.Labels.Service, addressType: from.AddressType, portless: len(from.Ports) == 0}
	for _, p := range from.Ports {
		if isTCP(p.Protocol) {
			s.ports = append(s.ports, slicePort{p.Name, p.Port})
		}
	}
	names := func(hints []hint) (all []string) {
		for _, h := range hints {
			all = append(all, h.Name)
		}
		return all
	}
	s.backends = make([]backend, 0, len(from.Endpoints))
	for _, e := range from.Endpoints {
		b := backend{zone: e.Zone, node: e.NodeName, forZones: names(e.Hints.ForZones), forNodes: names(e.Hints.ForNodes)}
		if len(e.Addresses) > 0 {
			b.address = e.Addresses[0] // the others mean nothing
		}
		if s.addressType != "FQDN" {
			// The server takes addresses such as 10.01.0.1.
			ip, err := netip.ParseAddr(b.address)
			if err != nil {
				s.bad = b.address
				s.left++
				continue
			}
			b.address = ip.String()
		}
		is := func(condition *bool, otherwise bool) bool {
			if condition == nil {
				return otherwise
			}
			return *condition
		}
		b.ready, b.serving, b.terminating = is(e.Conditions.Ready, true), is(e.Conditions.Serving, true), is(e.Conditions.Terminating, false)
		if e.TargetRef.Kind == "Pod" && (e.TargetRef.Namespace == "" || e.TargetRef.Namespace == o.Namespace) {
			b.pod = e.TargetRef.UID
		}
		s.backends = append(s.backends, b)
	}
	return s
}

// pod is what is kept of a Pod.
type pod struct {
	err error // it could not be read

	uid     string
	labels  map[string]string
	account string // "namespace/name"
}

func (p *pod) equal(other *pod) bool {
	return p == other || p != nil && other != nil && p.err == nil && other.err == nil && p.uid == other.uid && p.account == other.account &&
		maps.Equal(p.labels, other.labels)
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
	if from.Spec.ServiceAccountName == "" {
		from.Spec.ServiceAccountName = "default" // as admission has it
	}
	p.account = o.Namespace + "/" + from.Spec.ServiceAccountName
	return p
}
