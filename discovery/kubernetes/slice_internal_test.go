package kubernetes

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/kubernetes"
)

// reference reads a slice with encoding/json.
func reference(o kubernetes.Object) (*slice, error) {
	type names []struct{ Name string }
	var from struct {
		Metadata    struct{ Labels map[string]*string }
		AddressType string
		Ports       []struct {
			Name, Protocol string
			Port           int
		}
		Endpoints []struct {
			Addresses  []string
			Conditions struct{ Ready, Serving, Terminating *bool }
			Zone       string
			NodeName   string
			TargetRef  struct{ Kind, Namespace, UID string }
			Hints      struct{ ForZones, ForNodes names }
		}
	}
	if err := json.Unmarshal(o.Raw, &from); err != nil {
		return nil, err
	}
	s := &slice{addressType: from.AddressType, portless: len(from.Ports) == 0}
	if name := from.Metadata.Labels[serviceName]; name != nil {
		s.service = *name
	}
	for _, p := range from.Ports {
		if isTCP(p.Protocol) {
			s.ports = append(s.ports, slicePort{p.Name, p.Port})
		}
	}
	for _, e := range from.Endpoints {
		or := func(condition *bool, otherwise bool) bool {
			return condition == nil && otherwise || condition != nil && *condition
		}
		b := backend{zone: e.Zone, node: e.NodeName, ready: or(e.Conditions.Ready, true), serving: or(e.Conditions.Serving, true), terminating: or(e.Conditions.Terminating, false)}
		for _, h := range e.Hints.ForZones {
			b.forZones = append(b.forZones, h.Name)
		}
		for _, h := range e.Hints.ForNodes {
			b.forNodes = append(b.forNodes, h.Name)
		}
		if e.TargetRef.Kind == "Pod" && (e.TargetRef.Namespace == "" || e.TargetRef.Namespace == o.Namespace) {
			b.pod = e.TargetRef.UID
		}
		if len(e.Addresses) > 0 {
			b.address = e.Addresses[0]
		}
		if s.addressType != "FQDN" {
			ip, err := netip.ParseAddr(b.address)
			if err != nil {
				s.bad, s.left = b.address, s.left+1
				continue
			}
			b.address = ip.String()
		}
		s.backends = append(s.backends, b)
	}
	return s, nil
}

// maker makes slices at random, some of which are wrong.
type maker struct {
	*rand.Rand
	wrong int // one of so many values is of another type
}

// of returns one of the values, nothing, null, or what is wrong.
func (m maker) of(values ...any) any {
	if m.IntN(m.wrong) == 0 {
		return []any{7.5, "text", true, []any{1}, map[string]any{"a": nil}}[m.IntN(5)]
	}
	return values[m.IntN(len(values))]
}

func (m maker) list(n int, item func() any) any {
	all := make([]any, m.IntN(n+1))
	for i := range all {
		all[i] = item()
	}
	return m.of(all, all, all, nil)
}

func (m maker) object(fields map[string]any) any {
	for key := range fields {
		if m.IntN(8) == 0 {
			delete(fields, key)
		}
	}
	return m.of(fields, fields, fields, fields, nil)
}

func (m maker) slice() any {
	type f = map[string]any
	hint := func() any { return m.object(f{"name": m.of("z1", "z2", nil)}) }
	condition := func() any { return m.of(true, false, nil) }
	return f{"kind": "EndpointSlice", "metadata": m.object(f{"name": "a", "labels": m.object(f{serviceName: m.of("orders", nil, "\u00fcber \"x\""), "app": "x"})}),
		"addressType": m.of("IPv4", "IPv6", "FQDN", nil),
		"ports": m.list(3, func() any {
			return m.object(f{"name": m.of("http", "", nil), "protocol": m.of("TCP", "UDP", nil), "port": m.of(80, 0, 8080, nil), "appProtocol": m.of("http")})
		}),
		"endpoints": m.list(5, func() any {
			return m.object(f{"addresses": m.list(3, func() any { return m.of("10.0.0.1", "fd00::0:1", "10.01.0.1", "<host>", nil) }), "zone": m.of("z1", nil), "nodeName": m.of("n1", nil),
				"conditions": m.object(f{"ready": condition(), "serving": condition(), "terminating": condition()}),
				"targetRef":  m.object(f{"kind": m.of("Pod", "Node"), "namespace": m.of("shop", "other", nil), "uid": m.of("u1", "u2"), "name": "one"}),
				"hints":      m.object(f{"forZones": m.list(2, hint), "forNodes": m.list(2, hint)})})
		})}
}

// What is read of a slice is what encoding/json reads of it.
func TestDecodeSlice(t *testing.T) {
	read, refused := 0, 0
	for seed := range uint64(5000) {
		m := maker{rand.New(rand.NewPCG(seed, 1)), 50}
		if seed%4 == 0 {
			m.wrong = 1 << 30
		}
		raw, err := json.Marshal(m.slice())
		if err != nil {
			t.Fatal(err)
		}
		o := kubernetes.Object{Key: kubernetes.Key{Namespace: "shop", Name: "a"}, Raw: raw}
		got := decodeSlice(o)
		want, err := reference(o)
		switch {
		case (err != nil) != (got.err != nil):
			t.Fatalf("seed %d: %v, want %v for\n%s", seed, got.err, err, raw)
		case err != nil:
			refused++
		case !got.equal(want):
			t.Fatalf("seed %d: %+v\nwant %+v for\n%s", seed, *got, *want, raw)
		default:
			read++
		}
	}
	if read < 1000 || refused < 1000 {
		t.Errorf("%d slices were read, and %d refused: want many of both", read, refused)
	}
}

// A server that says more than servers store does not decide how much memory it takes.
func TestDecodeSliceOfTooMany(t *testing.T) {
	of := func(n int) *slice {
		all := strings.Repeat(`,{"addresses":["10.0.0.1"]}`, n)[1:]
		return decodeSlice(kubernetes.Object{Key: kubernetes.Key{Namespace: "shop", Name: "a"},
			Raw: []byte(`{"metadata":{"labels":{"` + serviceName + `":"orders"}},"addressType":"IPv4","endpoints":[` + all + `]}`)})
	}
	if s := of(mostEndpoints); s.err != nil || len(s.backends) != mostEndpoints {
		t.Errorf("%d of %d endpoints are read (%v)", len(s.backends), mostEndpoints, s.err)
	}
	for _, n := range []int{mostEndpoints + 1, 100 * mostEndpoints} {
		s := of(n)
		if s.err == nil || s.err.Error() != "kubernetes: EndpointSlice shop/a: it has more than 1000 endpoints" || s.service != "orders" || s.backends != nil {
			t.Errorf("%d endpoints are read of %d (%v)", len(s.backends), n, s.err)
		}
	}
}

// The service of a slice that cannot be read is known, wherever its label stands.
func TestDecodeSliceWithoutEndpoints(t *testing.T) {
	const metadata = `"metadata":{"labels":{"` + serviceName + `":"orders"}}`
	for _, raw := range []string{`{"endpoints":7,` + metadata + `}`, `{` + metadata + `,"endpoints":7}`} {
		if s := decodeSlice(kubernetes.Object{Key: kubernetes.Key{Namespace: "shop", Name: "a"}, Raw: []byte(raw)}); s.err == nil || s.service != "orders" {
			t.Errorf("%s is of %q (%v)", raw, s.service, s.err)
		}
	}
}

// What could not be read is told to the services of the last good state too, when that begins and when it is over.
func TestGoodTouchesBoth(t *testing.T) {
	key := kubernetes.Key{Namespace: "shop", Name: "a"}
	good, kept := &slice{name: "a", service: "orders"}, newGood[*slice]()
	broken := &slice{name: "a", err: errors.New("not a slice")} // of which it cannot even be read which service it is of
	for i, step := range []struct {
		state *slice // nil: it is gone
		want  string // what is touched
		fault bool   // of orders, afterwards
	}{
		{good, "[orders]", false},
		{broken, "[ orders]", true},
		{&slice{name: "a", service: "orders"}, "[ orders]", false},
		{broken, "[ orders]", true},
		{nil, "[ orders]", false},
	} {
		state := kubernetes.State[*slice]{Objects: map[kubernetes.Key]*slice{}, Changed: []kubernetes.Key{key}}
		if step.state != nil {
			state.Objects[key] = step.state
		}
		touched := make(map[string]bool)
		kept.take(state, func(about string) { touched[about] = true })
		if got := fmt.Sprint(slices.Sorted(maps.Keys(touched))); got != step.want {
			t.Errorf("step %d touches %s, want %s", i, got, step.want)
		}
		if got := len(kept.faults("orders")) > 0; got != step.fault {
			t.Errorf("step %d: orders has a fault: %t, want %t", i, got, step.fault)
		}
	}
}
