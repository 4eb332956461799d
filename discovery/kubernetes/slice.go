package kubernetes

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/nosidecar/mesh/internal/kubernetes"
)

// slice is what is kept of an EndpointSlice.
type slice struct {
	err error // it could not be read

	name        string
	service     string // the service that it belongs to, "" for none
	addressType string // "IPv4", "IPv6" or "FQDN"
	ports       []slicePort
	portless    bool // it has no ports at all
	backends    []backend
	bad         string // an invalid address
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
	return s.service == other.service && s.addressType == other.addressType && s.portless == other.portless &&
		s.bad == other.bad && s.left == other.left && slices.Equal(s.ports, other.ports) &&
		slices.EqualFunc(s.backends, other.backends, func(a, b backend) bool {
			return a.address == b.address && a.ready == b.ready && a.serving == b.serving && a.terminating == b.terminating && a.pod == b.pod &&
				a.zone == b.zone && a.node == b.node && slices.Equal(a.forZones, b.forZones) && slices.Equal(a.forNodes, b.forNodes)
		})
}

func decodeSlice(o kubernetes.Object) *slice {
	d := sliceDecoder{Skimmer: kubernetes.Skim(o.Raw), namespace: o.Namespace, shared: make(map[string]string)}
	d.slice.name, d.slice.portless = o.Name, true
	d.slice.backends = make([]backend, 0, min(len(o.Raw)/160, mostEndpoints)) // about as many as there are
	if !d.Members(d.member) {
		return &slice{name: o.Name, service: cmp.Or(d.slice.service, serviceOf(o)), err: fmt.Errorf("kubernetes: EndpointSlice %s/%s: %w", o.Namespace, o.Name, cmp.Or(d.tooMany, d.Err()))}
	}
	d.slice.leaveOut()
	return &d.slice
}

// serviceOf returns the service of a slice that could not be read otherwise, or "".
func serviceOf(o kubernetes.Object) (name string) {
	d := sliceDecoder{Skimmer: kubernetes.Skim(o.Raw), shared: make(map[string]string)}
	if d.Members(func(key []byte) bool {
		if string(key) == "metadata" {
			return d.member(key)
		}
		return d.Skip()
	}) {
		name = d.slice.service
	}
	return name
}

// mostEndpoints is how many endpoints a slice may have. A server accepts no more, and decoding more would take many times the memory of
// their text.
const mostEndpoints = 1000

// leaveOut drops endpoints with invalid addresses. The server accepts some, such as 10.01.0.1.
func (s *slice) leaveOut() {
	if s.addressType == "FQDN" {
		return
	}
	kept := s.backends[:0]
	for _, b := range s.backends {
		ip, err := netip.ParseAddr(b.address)
		if err != nil {
			s.bad = b.address
			s.left++
			continue
		}
		var canonical [64]byte
		if text := ip.AppendTo(canonical[:0]); string(text) != b.address {
			b.address = string(text)
		}
		kept = append(kept, b)
	}
	clear(s.backends[len(kept):])
	s.backends = kept
}

// sliceDecoder reads a slice. Large slices that change often are the most expensive objects to read.
type sliceDecoder struct {
	kubernetes.Skimmer
	slice     slice
	namespace string
	shared    map[string]string // texts that many endpoints share
	tooMany   error             // there are more than mostEndpoints
}

// share reads a text that many endpoints share.
func (d *sliceDecoder) share(into *string) bool {
	text, ok := d.Text()
	if !ok || text == nil {
		return ok
	}
	have, known := d.shared[string(text)]
	if !known {
		have = string(text)
		d.shared[have] = have
	}
	*into = have
	return true
}

func (d *sliceDecoder) member(key []byte) bool {
	switch string(key) {
	case "metadata":
		return d.Members(func(key []byte) bool {
			if string(key) == "labels" {
				return d.Members(func(key []byte) bool {
					if string(key) == serviceName {
						return d.share(&d.slice.service)
					}
					return d.Skip()
				})
			}
			return d.Skip()
		})
	case "addressType":
		return d.share(&d.slice.addressType)
	case "ports":
		d.slice.ports, d.slice.portless = nil, true
		return d.Items(d.port)
	case "endpoints":
		d.slice.backends = d.slice.backends[:0]
		return d.Items(d.endpoint)
	}
	return d.Skip()
}

func (d *sliceDecoder) port() bool {
	var p slicePort
	protocol := ""
	ok := d.Members(func(key []byte) bool {
		switch string(key) {
		case "name":
			return d.share(&p.name)
		case "protocol":
			return d.share(&protocol)
		case "port":
			return d.Int(&p.number)
		}
		return d.Skip()
	})
	d.slice.portless = false
	if isTCP(protocol) {
		d.slice.ports = append(d.slice.ports, p)
	}
	return ok
}

func (d *sliceDecoder) endpoint() bool {
	if len(d.slice.backends) == mostEndpoints {
		d.tooMany = fmt.Errorf("it has more than %d endpoints", mostEndpoints)
		return false
	}
	b := backend{ready: true, serving: true} // unless the slice says otherwise
	ok := d.Members(func(key []byte) bool {
		switch string(key) {
		case "addresses":
			first := true // the others have no meaning
			return d.Items(func() bool {
				text, ok := d.Text()
				if first {
					b.address = string(text)
				}
				first = false
				return ok
			})
		case "conditions":
			return d.Members(func(key []byte) bool {
				switch string(key) {
				case "ready":
					return d.Bool(&b.ready)
				case "serving":
					return d.Bool(&b.serving)
				case "terminating":
					return d.Bool(&b.terminating)
				}
				return d.Skip()
			})
		case "zone":
			return d.share(&b.zone)
		case "nodeName":
			return d.share(&b.node)
		case "targetRef":
			return d.targetRef(&b)
		case "hints":
			return d.Members(func(key []byte) bool {
				switch string(key) {
				case "forZones":
					return d.hints(&b.forZones)
				case "forNodes":
					return d.hints(&b.forNodes)
				}
				return d.Skip()
			})
		}
		return d.Skip()
	})
	d.slice.backends = append(d.slice.backends, b)
	return ok
}

// targetRef reads which pod an endpoint is.
func (d *sliceDecoder) targetRef(b *backend) bool {
	var kind, namespace, uid []byte
	ok := d.Members(func(key []byte) (ok bool) {
		switch string(key) {
		case "kind":
			kind, ok = d.Text()
		case "namespace":
			namespace, ok = d.Text()
		case "uid":
			uid, ok = d.Text()
		default:
			ok = d.Skip()
		}
		return ok
	})
	if string(kind) == "Pod" && (len(namespace) == 0 || string(namespace) == d.namespace) {
		b.pod = string(uid)
	}
	return ok
}

func (d *sliceDecoder) hints(into *[]string) bool {
	*into = nil
	return d.Items(func() bool {
		name := ""
		ok := d.Members(func(key []byte) bool {
			if string(key) == "name" {
				return d.share(&name)
			}
			return d.Skip()
		})
		*into = append(*into, name)
		return ok
	})
}
