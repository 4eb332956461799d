package mesh_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// TestStatus_Documents: the documents in force have a number, a version and a time, and so has the last load that was refused.
func TestStatus_Documents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var loads []mesh.PolicyLoad
		m := newMesh(t, yamlOf("orders")+"---"+yamlOf("payments"), mesh.WithDiscovery(new(discovery.Memory)),
			mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) { loads = append(loads, l) }}))
		began := time.Now()
		first := m.Status()
		if d := first.Documents; d.Number != 1 || d.Count != 2 || d.Version == "" || !d.Loaded.Equal(began) || d.Refused.Number != 0 || first.Uncalled != 2 || !first.Ready {
			t.Errorf("status after New: %+v, want the first load of 2 documents, and 2 hosts that were not called", first)
		}
		advance(time.Minute)
		if m.Apply(yaml(broken)...) == nil {
			t.Fatal("a broken document is in force")
		}
		refused := m.Status()
		if d := refused.Documents; d.Number != 1 || d.Version != first.Documents.Version || d.Refused.Number != 2 ||
			!d.Refused.At.Equal(began.Add(time.Minute)) || !strings.Contains(d.Refused.Error, "spec.htp") || d.Refused.Version == "" || !refused.Ready {
			t.Errorf("status after a load that was refused: %+v, want the first load in force, and what was refused when and why", refused)
		}
		advance(time.Minute)
		if err := m.Apply(yaml(yamlOf("orders"))...); err != nil {
			t.Fatal(err)
		}
		third := m.Status().Documents
		if third.Number != 3 || third.Count != 1 || third.Version == first.Documents.Version || third.Refused.Number != 2 || !third.Loaded.Equal(began.Add(2*time.Minute)) {
			t.Errorf("status after another load: %+v, want the third load", third)
		}
		if err := m.Apply(policy.Source{Name: "elsewhere.yaml", Data: []byte(yamlOf("orders") + "---" + yamlOf("payments"))}); err != nil {
			t.Fatal(err)
		}
		if d := m.Status().Documents; d.Version != first.Documents.Version {
			t.Errorf("the version of the same content is %s, and was %s", d.Version, first.Documents.Version)
		}
		if len(loads) != 4 {
			t.Fatalf("observers were told of %d loads, want 4", len(loads))
		}
		for i, load := range loads {
			want := []string{first.Documents.Version, refused.Documents.Refused.Version, third.Version, first.Documents.Version}[i]
			if load.Number != i+1 || load.Version != want {
				t.Errorf("observers were told of load %d, version %s; want %d, %s", load.Number, load.Version, i+1, want)
			}
		}
	})
}

// TestStatus_FeedThatFails: a set that cannot be read has a number, and no version.
func TestStatus_FeedThatFails(t *testing.T) {
	feed := make(failingFeed, 1)
	loads := make(chan mesh.PolicyLoad, 2)
	m := newMesh(t, "", mesh.WithPolicyFeed(feed), mesh.WithObserver(mesh.Observer{PolicyLoad: func(l mesh.PolicyLoad) { loads <- l }}))
	next(t, loads)
	feed <- errors.New("the disk is away")
	if load := next(t, loads); load.Number != 2 || load.Version != "" || load.Err == nil {
		t.Errorf("observers are told %+v, want load 2 without a version", load)
	}
	if d := m.Status().Documents; d.Number != 1 || d.Refused.Number != 2 || d.Refused.Error != "the disk is away" {
		t.Errorf("status: %+v, want the first load in force and the second refused", d)
	}
}

// failingFeed yields a document, and then what it is sent.
type failingFeed chan error

func (f failingFeed) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		if !yield(yaml(yamlOf("orders")), nil) {
			return
		}
		for {
			select {
			case err := <-f:
				if !yield(nil, err) {
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

const ejectsOne = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api}
spec:
  host: api
  trafficPolicy:
    loadBalancer: {simple: LEAST_REQUEST}
    outlierDetection: {consecutive5xxErrors: 1, interval: 1s, baseEjectionTime: 30s, maxEjectionPercent: 100}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: api}
spec: {hosts: [api], http: [{route: [{destination: {host: api}}], retries: {attempts: 0}}]}
`

// TestStatus_Services: destinations that were called show their endpoints, ejections, circuits and calls; others are a number.
func TestStatus_Services(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		release := make(chan struct{})
		good := f.Add(t, func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
		})
		good.Locality = discovery.Locality{Region: "eu", Zone: "eu-1"}
		bad := f.Add(t, fails(http.StatusServiceUnavailable))
		gone := f.Add(t, says("gone"))
		gone.Draining = true
		f.Registry.Set("api", good)
		var changes []breaker.Change
		m := f.Mesh(t, ejectsOne+"---"+yamlOf("payments"), mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 1}}, "api"),
			mesh.WithObserver(mesh.Observer{Circuit: func(_ route.Target, c breaker.Change) { changes = append(changes, c) }}))
		if s := m.Status(); len(s.Services) != 0 || s.Uncalled != 2 {
			t.Errorf("before the first call: %+v, want no service and 2 that were not called", s)
		}

		var call sync.WaitGroup
		call.Go(func() { get(t, m.Client(), "http://api/") })
		synctest.Wait()
		f.Registry.Set("api", good, bad, gone)
		synctest.Wait() // the good one has a call, so the next goes to the bad one
		if a := get(t, m.Client(), "http://api/"); a.status != http.StatusServiceUnavailable {
			t.Fatalf("status %d, want that of the bad one", a.status)
		}
		s := m.Status()
		if len(s.Services) != 1 || s.Uncalled != 1 || len(s.Services[0].Endpoints) != 3 {
			t.Fatalf("status %+v, want one service with 3 endpoints, and one that was not called", s)
		}
		api := s.Services[0]
		if api.Host != "api.default.svc.cluster.local" || api.Port != 80 || api.Circuit != "open" || api.InFlight != 1 {
			t.Errorf("service %+v, want an open circuit and a call in flight", api)
		}
		for i, want := range []string{
			"10.0.0.1:80 eu/eu-1 healthy=true  0001-01-01T00:00:00Z 1",
			"10.0.0.2:80  healthy=false consecutive_5xx 2000-01-01T00:00:30Z 0",
			"10.0.0.3:80  healthy=false draining 0001-01-01T00:00:00Z 0",
		} {
			e := api.Endpoints[i]
			if got := fmt.Sprintf("%s %s healthy=%v %s %s %d", e.Address, e.Locality, e.Healthy, e.Reason, e.Until.UTC().Format(time.RFC3339), e.InFlight); got != want {
				t.Errorf("endpoint %q, want %q", got, want)
			}
		}
		if len(changes) != 1 || changes[0].Failures != 1 || changes[0].Calls != 1 {
			t.Errorf("circuit %+v, want that one failure opened it", changes)
		}
		close(release)
		call.Wait()
		if s := m.Status(); s.Services[0].InFlight != 0 || s.Services[0].Endpoints[0].InFlight != 0 {
			t.Errorf("after the call: %+v, want none in flight", s.Services[0])
		}
	})
}

// TestStatus_EjectionWithheld: an endpoint that fails and stays says so until it answers well.
func TestStatus_EjectionWithheld(t *testing.T) {
	for _, test := range []struct {
		endpoints int
		want      []string // sorted
	}{
		{1, []string{"healthy=true consecutive_5xx 1/1 10 100"}},
		{2, []string{"healthy=false", "healthy=true consecutive_5xx 1/1 10 100"}},
		{3, []string{"healthy=false", "healthy=true consecutive_5xx 1/1 10 67", "healthy=true consecutive_5xx 1/1 10 67"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			f := new(meshtest.Fleet)
			var recovered atomic.Bool
			var list []discovery.Endpoint
			for range test.endpoints {
				list = append(list, f.Add(t, func(w http.ResponseWriter, _ *http.Request) {
					if !recovered.Load() {
						w.WriteHeader(http.StatusBadGateway)
					}
				}))
			}
			f.Registry.Set("api", list...)
			m := f.Mesh(t, strings.Replace(ejectsOne, "baseEjectionTime: 30s, maxEjectionPercent: 100", "baseEjectionTime: 1h", 1))
			began := time.Now()
			status := func() (got []string) {
				for _, e := range m.Status().Services[0].Endpoints {
					text := fmt.Sprintf("healthy=%v", e.Healthy)
					if w := e.Withheld; !w.Since.IsZero() {
						text += fmt.Sprintf(" %s %d/%d %v %v", w.Reason, w.Failures, w.Calls, w.MaxEjectionPercent, w.Needed)
						if !w.Since.Equal(began) {
							t.Errorf("an endpoint stays since %v, want %v", w.Since, began)
						}
					}
					got = append(got, text)
				}
				slices.Sort(got)
				return got
			}
			calls := func() {
				for range 50 {
					get(t, m.Client(), "http://api/")
				}
			}
			calls()
			if got := status(); !slices.Equal(got, test.want) {
				t.Errorf("of %d endpoints that fail:\n%q, want\n%q", test.endpoints, got, test.want)
			}
			recovered.Store(true)
			for range 3 {
				calls()
				advance(time.Second)
			}
			for _, text := range status() {
				if text != "healthy=true" && text != "healthy=false" {
					t.Errorf("%s after all have answered well", text)
				}
			}
		})
	}
}

// TestStatus_Identity: a mesh is ready as long as it has the identity that it was promised.
func TestStatus_Identity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTown(t)
		w.TTL = time.Hour
		id, err := w.Identity("default", "web")
		if err != nil {
			t.Fatal(err)
		}
		source := make(lateSource, 1)
		m := newMesh(t, "", mesh.WithLateIdentity(source), mesh.WithDiscovery(new(discovery.Memory)))
		if s := m.Status(); s.Ready || len(s.NotReady) != 1 || s.NotReady[0] != tlsid.ErrNoIdentity.Error() || s.Identity.ID != "" {
			t.Errorf("before there is an identity: %+v", s)
		}
		source <- id
		synctest.Wait()
		const who = "spiffe://cluster.local/ns/default/sa/web"
		if s := m.Status(); !s.Ready || s.NotReady != nil || s.Identity.ID != who || !s.Identity.Expires.Equal(id.NotAfter()) || s.Identity.Error != "" {
			t.Errorf("with an identity: %+v", s)
		}
		advance(2 * time.Hour)
		if s := m.Status(); s.Ready || len(s.NotReady) != 1 || !strings.Contains(s.NotReady[0], "expired") || s.Identity.ID != who || !strings.Contains(s.Identity.Error, "expired") {
			t.Errorf("after it has expired: %+v", s)
		}
	})
	m := newMesh(t, "")
	m.Close()
	if s := m.Status(); s.Ready || fmt.Sprint(s.NotReady) != "[the mesh is closed]" {
		t.Errorf("after Close: %+v", s)
	}
}

// TestStatus_Bounded: a status is as small as a page, whatever there is.
func TestStatus_Bounded(t *testing.T) {
	var documents strings.Builder
	const hosts, endpoints = 300, 500
	for i := range hosts {
		fmt.Fprintf(&documents, "---%s", yamlOf(fmt.Sprintf("api-%d", i)))
	}
	many := make([]discovery.Endpoint, endpoints)
	for i := range many {
		many[i] = discovery.Endpoint{Address: fmt.Sprintf("10.0.%d.%d", i/250, i%250), Port: 80}
	}
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		api := f.Add(t, says("ok"))
		for i := range hosts {
			f.Registry.Set(fmt.Sprintf("api-%d", i), api)
		}
		m := f.Mesh(t, documents.String())
		for i := range hosts {
			get(t, m.Client(), fmt.Sprintf("http://api-%d/", i))
			if i == 0 {
				advance(time.Second) // it is the one that was called longest ago
			}
		}
		f.Registry.Set("api-7", many...)
		synctest.Wait()
		s := m.Status()
		if len(s.Services) != 250 || s.ServicesOmitted != hosts-250 || s.Uncalled != 0 {
			t.Errorf("%d services, %d omitted and %d not called; want 250, %d and 0", len(s.Services), s.ServicesOmitted, s.Uncalled, hosts-250)
		}
		for _, service := range s.Services {
			switch service.Host {
			case "api-0.default.svc.cluster.local":
				t.Error("the service that was called longest ago is not omitted")
			case "api-7.default.svc.cluster.local":
				if len(service.Endpoints) != 100 || service.EndpointsOmitted != endpoints-100 {
					t.Errorf("%d endpoints, %d omitted; want 100 and %d", len(service.Endpoints), service.EndpointsOmitted, endpoints-100)
				}
			}
		}
		if m.Apply(yaml(strings.Repeat("---\n"+broken, 1000))...) == nil {
			t.Fatal("broken documents are in force")
		}
		if n := len(m.Status().Documents.Refused.Error); n < 1000 || n > 5000 {
			t.Errorf("the error of a load with 1000 mistakes has %d bytes, want some thousand", n)
		}
	})
}

// TestStatus_JSON: what has nothing to say is not there, and lists are never null.
func TestStatus_JSON(t *testing.T) {
	m := newMesh(t, "", mesh.WithWorkload(policy.Workload{Namespace: "shop", Labels: map[string]string{"app": "web"}, Address: "192.0.2.1"}))
	data, err := json.Marshal(m.Status())
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	if _, identity := fields["identity"]; identity || len(fields) != 5 || fields["ready"] != true || fields["uncalled"] != 0.0 || fmt.Sprint(fields["services"]) != "[]" {
		t.Errorf("%s, want ready, workload, documents, services and uncalled", data)
	}
	if w := fmt.Sprint(fields["workload"]); w != "map[address:192.0.2.1 labels:map[app:web] namespace:shop]" {
		t.Errorf("the workload is %s, want the one of WithWorkload", w)
	}
	if d := fields["documents"].(map[string]any); d["refused"] != nil || d["number"] != 1.0 {
		t.Errorf("%s, want the first load and none that was refused", data)
	}
}

// TestStatus_Concurrent: a status may be asked for while calls, reloads and registrations go on, and by observers.
func TestStatus_Concurrent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := new(meshtest.Fleet)
		good, bad := f.Add(t, says("ok")), f.Add(t, fails(http.StatusServiceUnavailable))
		f.Registry.Set("api", good, bad)
		var m *mesh.Mesh
		asked := 0
		ask := func() {
			if asked++; m != nil && m.Status().Documents.Number == 0 {
				t.Error("no documents are in force")
			}
		}
		m = f.Mesh(t, ejectsOne, mesh.WithProtection(mesh.Protection{Circuit: &breaker.Config{ConsecutiveFailures: 3}}),
			mesh.WithObserver(mesh.Observer{
				Ejection: func(route.Target, breaker.Event) { m.Status() }, Circuit: func(route.Target, breaker.Change) { m.Status() },
				PolicyLoad: func(mesh.PolicyLoad) { ask() },
			}))
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for range 50 {
					_, _ = try(m.Client(), "http://api/")
					advance(time.Second)
				}
			})
		}
		all.Go(func() {
			for range 50 {
				if err := m.Apply(yaml(ejectsOne)...); err != nil {
					t.Error(err)
				}
				f.Registry.Set("api", good)
				f.Registry.Set("api", good, bad)
				advance(time.Second)
			}
		})
		all.Go(func() {
			for range 100 {
				if s := m.Status(); !s.Ready {
					t.Errorf("not ready: %v", s.NotReady)
				}
				advance(time.Second / 2)
			}
		})
		all.Wait()
		if asked != 51 {
			t.Errorf("observers were told of %d loads, want 51", asked)
		}
	})
}
