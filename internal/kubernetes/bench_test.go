package kubernetes_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

var slices100 = kubernetes.Resource{Group: "discovery.k8s.io", Version: "v1", Plural: "endpointslices", Kind: "EndpointSlice"}

// sliceOf returns an EndpointSlice of 100 endpoints as a server sends it, about 27 KB. Each version differs in one endpoint.
func sliceOf(n, version int) []byte {
	var all []string
	for i := range 100 {
		all = append(all, fmt.Sprintf(`{"addresses":["10.%d.%d.%d"],"conditions":{"ready":%v,"serving":true,"terminating":false},"nodeName":"node-%03d","zone":"zone-%d","targetRef":{"kind":"Pod","namespace":"default","name":"web-7f9c9d7b6f-%05d","uid":"5b5a2c1e-8f1b-4c7e-9a51-%012d"}}`,
			n/250, n%250, i, i != version%100, i%30, i%3, n*100+i, n*100+i))
	}
	return fmt.Appendf(nil, `{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"web-%03d","generateName":"web-","namespace":"default","uid":"u-%d","resourceVersion":"%d","generation":%d,"creationTimestamp":"2026-01-01T00:00:00Z","labels":{"app":"web","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"web"},"ownerReferences":[{"apiVersion":"v1","kind":"Service","name":"web","uid":"5b5a2c1e-8f1b-4c7e-9a51-000000000000","controller":true,"blockOwnerDeletion":true}]},"addressType":"IPv4","endpoints":[%s],"ports":[{"name":"http","protocol":"TCP","port":8080}]}`,
		n, n, version, version, strings.Join(all, ","))
}

// churn is the body of a watch: a service of 10,000 endpoints, of which one changes every time.
type churn struct {
	ctx     context.Context
	pause   time.Duration // between events, if there is any
	next    [][]byte      // lines that are yet to be read
	left    int           // events
	version int
	events  [][]byte // slices 0 to 99 without their versions
	began   time.Time
	sent    int
}

const place = "@VERSION@"

func newChurn(ctx context.Context, events int, pause time.Duration) *churn {
	c := &churn{ctx: ctx, left: events, version: 1000, pause: pause}
	for n := range 100 {
		line := bytes.ReplaceAll(kubetest.Event("MODIFIED", sliceOf(n, 123456789)), []byte("123456789"), []byte(place))
		c.events = append(c.events, line)
		c.next = append(c.next, bytes.ReplaceAll(bytes.Replace(line, []byte("MODIFIED"), []byte("ADDED"), 1), []byte(place), fmt.Append(nil, n+1)))
	}
	c.next = append(c.next, kubetest.Event("BOOKMARK", []byte(`{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"1000","annotations":{"k8s.io/initial-events-end":"true"}}}`)))
	return c
}

// Read implements io.Reader.
func (c *churn) Read(p []byte) (int, error) {
	if len(c.next) == 0 {
		if c.left == 0 {
			<-c.ctx.Done()
			return 0, c.ctx.Err()
		}
		if c.began.IsZero() {
			c.began = time.Now()
		}
		if due := c.began.Add(time.Duration(c.sent) * c.pause); c.pause > 0 && time.Until(due) > 5*time.Millisecond {
			time.Sleep(time.Until(due))
		}
		c.left--
		c.sent++
		c.version++
		c.next = append(c.next, bytes.ReplaceAll(c.events[c.version%100], []byte(place), fmt.Append(nil, c.version)))
	}
	n := copy(p, c.next[0])
	if c.next[0] = c.next[0][n:]; len(c.next[0]) == 0 {
		c.next = c.next[1:]
	}
	return n, nil
}

// Close implements io.Closer.
func (c *churn) Close() error { return nil }

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// endpoint is what is kept of one.
type endpoint struct {
	Addresses  []string
	Conditions struct{ Ready, Serving, Terminating *bool }
	NodeName   string
	Zone       string
	TargetRef  struct{ Namespace, Name, UID string }
}

func endpointsOf(o kubernetes.Object) []endpoint {
	var slice struct{ Endpoints []endpoint }
	if err := json.Unmarshal(o.Raw, &slice); err != nil {
		panic(err)
	}
	return slice.Endpoints
}

// follow reads a churn to its end.
func follow(b *testing.B, events int, pause time.Duration) (states int) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c, err := kubernetes.New(kubernetes.Config{Server: "https://10.0.0.1", Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: newChurn(r.Context(), events, pause), Request: r}, nil
	})})
	if err != nil {
		b.Fatal(err)
	}
	last := fmt.Sprint(1000 + events)
	of := kubernetes.Watch[[]endpoint]{Client: c, Resource: slices100, Namespace: "default"}
	done := false
	of.Decode = func(o kubernetes.Object) []endpoint {
		done = done || o.ResourceVersion == last
		return endpointsOf(o)
	}
	for state, err := range of.All(ctx) {
		if err != nil {
			b.Fatal(err)
		}
		if states++; done || events == 0 || len(state.Objects) != 100 {
			break
		}
	}
	return states
}

// BenchmarkChurn reads changes of a service of 10,000 endpoints as fast as they can be read: the time of one event of 27 KB.
func BenchmarkChurn(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(sliceOf(50, 123456))))
	b.ReportMetric(float64(follow(b, b.N, 0)), "states")
}

// BenchmarkChurnPaced reads 1,000 changes a second for some seconds, and reports the share of a core and the memory that it takes. An
// operation is a second of it. What reads from the network is not part of it.
func BenchmarkChurnPaced(b *testing.B) {
	runtime.GC()
	before, began := cpu(), time.Now()
	states := follow(b, 1000*b.N, time.Millisecond)
	took := time.Since(began)
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	b.ReportMetric(float64(cpu()-before)/float64(took)*100, "%core")
	b.ReportMetric(float64(states)/float64(b.N), "states/op")
	b.ReportMetric(float64(m.HeapSys-m.HeapReleased)/(1<<20), "MiB-heap")
}

func cpu() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEvent decodes one event.
func BenchmarkEvent(b *testing.B) {
	line := kubetest.Event("MODIFIED", sliceOf(50, 123456))
	b.ReportAllocs()
	b.SetBytes(int64(len(line)))
	for b.Loop() {
		if _, n, err := kubernetes.ReadEvents(bytes.NewReader(line), slices100, "default"); n != 1 || err != io.EOF {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkInitial reads a service of 10,000 endpoints from the beginning.
func BenchmarkInitial(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if n := follow(b, 0, 0); n != 1 {
			b.Fatal(n)
		}
	}
}
