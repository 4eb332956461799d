package realservers

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/kubernetes"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	cluster "github.com/nosidecar/mesh/kubernetes"
	"github.com/nosidecar/mesh/realservers/servers"
)

// deployment is the service web of the namespace shop. Nothing but the test controls it.
type deployment struct {
	t      *testing.T
	k      *servers.Kubernetes
	routes *routes
	pods   []*podServer
}

// routes leads from the addresses of pods, which may not be those of this machine, to servers here.
type routes struct {
	mu sync.Mutex
	to map[string]string
}

func (r *routes) transport() *http.Transport {
	var d net.Dialer
	return &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		r.mu.Lock()
		to := r.to[address]
		r.mu.Unlock()
		if to == "" {
			return nil, fmt.Errorf("no pod is at %s", address)
		}
		return d.DialContext(ctx, network, to)
	}}
}

// podServer is a pod with its endpoint.
type podServer struct {
	name, version, address, uid string
	conditions                  string
	server                      *httptest.Server

	gone atomic.Bool  // it is not to be called any more
	late atomic.Int64 // calls that came though
}

const (
	isReady       = "{ready: true, serving: true, terminating: false}"
	isNotReady    = "{ready: false, serving: false, terminating: false}"
	isTerminating = "{ready: false, serving: true, terminating: true}"
)

// add starts a pod, which is not among the endpoints until put.
func (d *deployment) add(version string) *podServer {
	d.t.Helper()
	p := &podServer{version: version, conditions: isReady}
	d.routes.mu.Lock()
	number := len(d.routes.to) + 1
	d.routes.mu.Unlock()
	p.name, p.address = fmt.Sprintf("web-%d", number), fmt.Sprintf("198.18.0.%d", number)
	p.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.gone.Load() {
			p.late.Add(1)
		}
		io.WriteString(w, p.version)
	}))
	d.t.Cleanup(p.server.Close)
	d.k.Apply(d.t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: %s, labels: {app: web, version: %s}}, "+
		"spec: {serviceAccountName: seller, containers: [{name: web, image: web}]}}", p.name, version))
	status, data, err := d.k.Do(d.t.Context(), http.MethodGet, "/api/v1/namespaces/shop/pods/"+p.name, "", nil)
	var pod struct{ Metadata struct{ UID string } }
	if err != nil || json.Unmarshal(data, &pod) != nil || pod.Metadata.UID == "" {
		d.t.Fatalf("pod %s: %d: %s: %v", p.name, status, data, err)
	}
	p.uid = pod.Metadata.UID
	d.routes.mu.Lock()
	d.routes.to[p.address+":8080"] = p.server.Listener.Addr().String()
	d.routes.mu.Unlock()
	d.pods = append(d.pods, p)
	return p
}

// put writes the EndpointSlice.
func (d *deployment) put() {
	d.t.Helper()
	var endpoints []string
	for _, p := range d.pods {
		endpoints = append(endpoints, fmt.Sprintf("{addresses: [%s], conditions: %s, targetRef: {kind: Pod, namespace: shop, name: %s, uid: %s}}",
			p.address, p.conditions, p.name, p.uid))
	}
	d.k.Apply(d.t, fmt.Sprintf("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: web-1, labels: {kubernetes.io/service-name: web}}, "+
		"addressType: IPv4, ports: [{name: http, port: 8080, protocol: TCP}], endpoints: [%s]}", strings.Join(endpoints, ", ")))
}

// callers call the service all the time.
type callers struct {
	t      *testing.T
	mesh   *mesh.Mesh
	d      *deployment
	stop   chan struct{}
	ended  sync.WaitGroup
	failed atomic.Int64
	first  atomic.Pointer[string] // failure
	made   []atomic.Int64
	v1, v2 atomic.Int64 // answers of each
}

// call begins to call web, until Close. No call may fail.
func (d *deployment) call(options ...mesh.Option) *callers {
	d.t.Helper()
	m, err := mesh.New(d.t.Context(), append(options, mesh.WithTransport(d.routes.transport()))...)
	if err != nil {
		d.t.Fatal(err)
	}
	c := &callers{t: d.t, mesh: m, d: d, stop: make(chan struct{}), made: make([]atomic.Int64, 4)}
	for i := range c.made {
		c.ended.Go(func() {
			for pace := time.NewTicker(time.Millisecond); ; <-pace.C {
				select {
				case <-c.stop:
					pace.Stop()
					return
				default:
				}
				c.one()
				c.made[i].Add(1)
			}
		})
	}
	d.t.Cleanup(c.Close)
	return c
}

func (c *callers) one() {
	resp, err := c.mesh.Client().Get("http://web.shop/")
	text := ""
	if err == nil {
		var body []byte
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		if text = resp.Status; resp.StatusCode == http.StatusOK {
			if string(body) == "v2" {
				c.v2.Add(1)
			} else {
				c.v1.Add(1)
			}
		} else {
			text += ": " + string(body)
		}
	}
	if err != nil || resp.StatusCode != http.StatusOK {
		c.failed.Add(1)
		failure := fmt.Sprintf("%s, %v", text, err)
		c.first.CompareAndSwap(nil, &failure)
	}
}

// Close ends the calls, and counts what failed.
func (c *callers) Close() {
	select {
	case <-c.stop:
		return
	default:
	}
	close(c.stop)
	c.ended.Wait()
	c.mesh.Close()
	if n := c.failed.Load(); n > 0 {
		c.t.Errorf("%d calls of %d failed, such as: %s", n, c.count(), *c.first.Load())
	}
	for _, p := range c.d.pods {
		if n := p.late.Load(); n > 0 {
			c.t.Errorf("%d calls went to %s after it was out", n, p.name)
		}
	}
}

func (c *callers) count() (n int64) {
	for i := range c.made {
		n += c.made[i].Load()
	}
	return n
}

// settle waits until no call is under way that has begun before.
func (c *callers) settle() {
	c.t.Helper()
	for i := range c.made {
		began := c.made[i].Load()
		await.True(c.t, "a call that begins now to end", func() bool { return c.made[i].Load() >= began+2 })
	}
}

// follow waits until these pods take the calls, and no others.
func (c *callers) follow(change string, pods ...*podServer) {
	c.t.Helper()
	var want, have []string
	for _, p := range pods {
		want = append(want, p.address+":8080")
	}
	slices.Sort(want)
	began := time.Now()
	if !await.Done(func() bool {
		have = nil
		for _, s := range c.mesh.Status().Services {
			for _, e := range s.Endpoints {
				if e.Healthy {
					have = append(have, e.Address)
				}
			}
		}
		slices.Sort(have)
		return slices.Equal(have, want)
	}) {
		c.t.Fatalf("after %s: calls go to %s, want %s", change, have, want)
	}
	c.t.Logf("%s: followed after %v", change, time.Since(began).Round(time.Millisecond))
	c.settle()
}

// shop starts an API server with the service web, and a client that may read what discovery needs.
func shop(t *testing.T) (*deployment, *kubernetes.Client) {
	t.Helper()
	k := servers.StartKubernetes(t, servers.KubernetesConfig{})
	token := k.ServiceAccount(t, "shop", "caller")
	k.Grant(t, "shop/caller", "shop", "services", "pods", "endpointslices.discovery.k8s.io")
	k.Apply(t, "{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: web}, spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: web}]}}")
	client, err := kubernetes.Kubeconfig(k.Kubeconfig(t, token, "shop"), "")
	if err != nil {
		t.Fatal(err)
	}
	return &deployment{t: t, k: k, routes: &routes{to: make(map[string]string)}}, client
}

const callerAccount = "system:serviceaccount:shop:caller"

// Whatever happens to pods, no call fails that one of them could have served; and calls go on while the API server is away.
func TestKubernetesEndpointsUnderLoad(t *testing.T) {
	leak.Check(t)
	d, client := shop(t)
	one := d.add("v1")
	d.put()
	c := d.call(mesh.WithEmptyPolicy(), mesh.WithDiscovery(&kubernetes.Resolver{Client: client}))
	c.follow("the start", one)

	for range 3 {
		d.add("v1")
	}
	d.put()
	c.follow("four replicas", d.pods...)

	for i, old := range slices.Clone(d.pods) {
		d.add("v2")
		d.put()
		c.follow("a new pod", d.pods...)
		old.conditions = isTerminating
		d.put()
		c.follow("an old pod that ends", d.pods[1:]...)
		old.gone.Store(true)
		d.pods = d.pods[1:]
		d.put()
		if i == 0 {
			d.k.Delete(t, "v1", "Pod", "shop", old.name)
		}
	}
	c.follow("the end of the rollout", d.pods...)

	for range 5 {
		p := d.pods[0]
		p.conditions = isNotReady
		d.put()
		c.follow("a pod that is not ready", d.pods[1:]...)
		p.gone.Store(true)
		c.settle()
		p.gone.Store(false)
		p.conditions = isReady
		d.put()
		c.follow("a pod that is ready again", d.pods...)
	}

	before := len(d.k.Requests(t, callerAccount))
	if before != 3 {
		t.Errorf("%d requests, want 3: the Service, its EndpointSlices and its pods", before)
	}
	calls := c.count()
	d.k.Kill()
	await.True(t, "many calls without an API server", func() bool { return c.count() > calls+1000 })
	c.follow("the death of the API server", d.pods...)
	d.k.Restart(t)
	d.pods = d.pods[1:]
	d.add("v3")
	d.put()
	c.follow("a change after it came back", d.pods...)
	var anew int
	after := d.k.Requests(t, callerAccount)[before:]
	for _, r := range after {
		if strings.Contains(r.URI, "sendInitialEvents") || r.Verb == "list" {
			anew++
		}
	}
	t.Logf("%d calls; after the restart of the API server %d requests, %d of which read everything anew", c.count(), len(after), anew)
	if len(after) > 9 {
		t.Errorf("%d requests by three watches after a restart, want few: %v", len(after), after)
	}
	c.Close()
}

// Many processes with many services each: what they ask for grows with what they call, and a restart of the API server is no reason to read
// everything anew.
func TestKubernetesManyClients(t *testing.T) {
	leak.Check(t)
	const processes, few, many = 10, 10, 60 // the last process calls many services
	d, _ := shop(t)
	name := func(i int) string { return fmt.Sprintf("s-%d", i) }
	slice := func(i, version int) string {
		return fmt.Sprintf("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: %[1]s, labels: {kubernetes.io/service-name: %[1]s}}, "+
			"addressType: IPv4, ports: [{name: http, port: 8080}], endpoints: [{addresses: [198.18.%[2]d.%[3]d]}]}", name(i), version, i)
	}
	for i := range many {
		d.k.Apply(t, fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: %s}, spec: {ports: [{name: http, port: 80}]}}", name(i)), slice(i, 1))
	}
	token := d.k.ServiceAccount(t, "shop", "caller")
	var latest sync.Map // "process service" -> address
	for p := range processes {
		client, err := kubernetes.Kubeconfig(d.k.Kubeconfig(t, token, "shop"), "")
		if err != nil {
			t.Fatal(err)
		}
		watcher := discovery.NewWatcher(&kubernetes.Resolver{Client: client}, nil)
		t.Cleanup(func() { watcher.Close() })
		called := few
		if p == processes-1 {
			called = many
		}
		for i := range called {
			id := fmt.Sprint(p, " ", i)
			watcher.Subscribe(discovery.Service{Host: name(i) + ".shop.svc"}, func(endpoints []discovery.Endpoint) {
				if len(endpoints) == 1 {
					latest.Store(id, endpoints[0].Address)
				} else {
					latest.Store(id, "none")
				}
			})
		}
	}
	const total = (processes-1)*few + many
	have := func(version int) func() bool {
		return func() bool {
			n := 0
			latest.Range(func(_, address any) bool {
				if strings.HasPrefix(address.(string), fmt.Sprintf("198.18.%d.", version)) {
					n++
				}
				return true
			})
			return n == total
		}
	}
	await.True(t, "all endpoints", have(1))
	began := d.k.Requests(t, callerAccount)
	t.Logf("%d requests for %d services of %d processes", len(began), total, processes)
	if most := 2*((processes-1)*few+many) + 2; len(began) > most {
		t.Errorf("%d requests, want at most %d", len(began), most)
	}
	d.k.Kill()
	d.k.Restart(t)
	for i := range many {
		d.k.Apply(t, slice(i, 2))
	}
	await.True(t, "all changes after a restart", have(2))
	after, anew := d.k.Requests(t, callerAccount)[len(began):], 0
	for _, r := range after {
		if strings.Contains(r.URI, "sendInitialEvents") || r.Verb == "list" {
			anew++
		}
	}
	const watches = 2*(processes-1)*few + 2
	t.Logf("%d requests by %d watches after a restart, %d of which read everything anew", len(after), watches, anew)
	if len(after) > 4*watches {
		t.Errorf("%d requests by %d watches after a restart, want few", len(after), watches)
	}
}

// A new version takes over from the old one as a VirtualService is edited three times. No call fails.
func TestKubernetesCanary(t *testing.T) {
	leak.Check(t)
	d, _ := shop(t)
	d.k.InstallCRDs(t, string(servers.IstioCRDs(t)))
	for _, namespace := range []string{"shop", "istio-system"} {
		d.k.Grant(t, "shop/caller", namespace, "services", "pods", "endpointslices.discovery.k8s.io", "*.networking.istio.io", "*.security.istio.io",
			"*.telemetry.istio.io", "*.extensions.istio.io")
	}
	for _, version := range []string{"v1", "v1", "v2", "v2"} {
		d.add(version)
	}
	d.put()
	edit := func(v1, v2 int) {
		t.Helper()
		d.k.Apply(t, fmt.Sprintf("{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {namespace: shop, name: web}, spec: {hosts: [web], http: ["+
			"{route: [{destination: {host: web, subset: v1}, weight: %d}, {destination: {host: web, subset: v2}, weight: %d}]}]}}", v1, v2))
	}
	d.k.Apply(t, "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {namespace: shop, name: web}, spec: {host: web, subsets: ["+
		"{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}}")
	edit(100, 0)
	token := d.k.ServiceAccount(t, "shop", "caller")
	c := d.call(cluster.Config{Kubeconfig: d.k.Kubeconfig(t, token, "shop")}.Option())
	// share waits until so many percent of the calls go to v2.
	share := func(change string, least, most int64) {
		t.Helper()
		began := time.Now()
		await.True(t, fmt.Sprintf("%s: %d to %d%% of the calls to go to v2", change, least, most), func() bool {
			c.settle()
			v1, v2 := c.v1.Load(), c.v2.Load()
			await.True(t, "500 calls", func() bool { return c.v1.Load()+c.v2.Load() > v1+v2+500 })
			v1, v2 = c.v1.Load()-v1, c.v2.Load()-v2
			percent := 100 * v2 / (v1 + v2)
			return percent >= least && percent <= most && (least > 0 || v2 == 0) && (most < 100 || v1 == 0)
		})
		t.Logf("%s: followed, and seen in 500 calls, after %v", change, time.Since(began).Round(time.Millisecond))
	}
	share("the start", 0, 0)
	edit(80, 20)
	share("the first edit", 10, 30)
	edit(50, 50)
	share("the second edit", 35, 65)
	edit(0, 100)
	share("the third edit", 100, 100)
	c.Close()
}
