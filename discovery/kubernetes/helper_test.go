package kubernetes_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/kubernetes"
	api "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

var orders = discovery.Service{Host: "orders.shop.svc.cluster.local", Name: "orders", Namespace: "shop"}

func newServer() *kubetest.Server {
	return kubetest.New(api.Resource{Version: "v1", Plural: "services", Kind: "Service"}, api.Resource{Version: "v1", Plural: "pods", Kind: "Pod"},
		api.Resource{Group: "discovery.k8s.io", Version: "v1", Plural: "endpointslices", Kind: "EndpointSlice"})
}

// serviceOf returns a Service of the namespace shop.
func serviceOf(name, spec string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Service, metadata: {namespace: shop, name: %s}, spec: {%s}}", name, spec)
}

// sliceOf returns a slice of IPv4 addresses on port 8080 of a service. An endpoint is "ADDRESS more fields".
func sliceOf(name, service string, endpoints ...string) string {
	return rawSlice(name, service, "addressType: IPv4, ports: [{name: http, port: 8080, protocol: TCP}]", endpoints...)
}

func rawSlice(name, service, fields string, endpoints ...string) string {
	var all []string
	for _, e := range endpoints {
		address, more, _ := strings.Cut(e, " ")
		if more != "" {
			more = ", " + more
		}
		all = append(all, fmt.Sprintf("{addresses: [%q]%s}", address, more))
	}
	return fmt.Sprintf("{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {namespace: shop, name: %s, labels: {kubernetes.io/service-name: %s}}, "+
		"endpoints: [%s], %s}", name, service, strings.Join(all, ", "), fields)
}

// podOf returns a Pod. Its uid is that of targetRef.
func podOf(name, uid, labels, account string) string {
	return fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {namespace: shop, name: %s, uid: %s, labels: {%s}}, spec: {serviceAccountName: %s}}",
		name, uid, labels, account)
}

func ref(uid string) string {
	return "targetRef: {kind: Pod, namespace: shop, name: any, uid: " + uid + "}"
}

const http80 = "ports: [{name: http, port: 80, protocol: TCP}]"

// text returns endpoints as text: "ADDRESS:PORTS ZONE draining ACCOUNT LABELS", without what is not set.
func text(endpoints []discovery.Endpoint) string {
	var all []string
	for _, e := range endpoints {
		var ports []string
		for _, p := range e.Ports {
			ports = append(ports, fmt.Sprintf("%s:%d>%d", p.Name, p.Number, p.Target))
		}
		parts := []string{strings.TrimSuffix(e.Address+" "+strings.Join(ports, ","), " ")}
		if e.Locality != (discovery.Locality{}) {
			parts = append(parts, e.Locality.String())
		}
		if e.Draining {
			parts = append(parts, "draining")
		}
		if e.ServiceAccount != "" {
			parts = append(parts, e.ServiceAccount)
		}
		if len(e.Labels) > 0 {
			parts = append(parts, fmt.Sprint(e.Labels)[3:])
		}
		all = append(all, strings.Join(parts, " "))
	}
	return strings.Join(all, "; ")
}

// listener is what a watch of a service has yielded so far.
type listener struct {
	t      *testing.T
	cancel context.CancelFunc
	ended  chan struct{}

	mu      sync.Mutex
	answers []string // sets, and "unknown"
	errs    []string
}

// listen watches a service, until Close or the end of the test.
func listen(t *testing.T, r discovery.Resolver, service discovery.Service) *listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &listener{t: t, cancel: cancel, ended: make(chan struct{})}
	t.Cleanup(l.Close)
	go func() {
		defer close(l.ended)
		for endpoints, err := range r.Watch(ctx, service) {
			l.mu.Lock()
			switch {
			case errors.Is(err, discovery.ErrUnknownService):
				l.answers = append(l.answers, "unknown")
			case err != nil:
				l.errs = append(l.errs, err.Error())
			default:
				l.answers = append(l.answers, text(endpoints))
			}
			l.mu.Unlock()
		}
	}()
	return l
}

// Close ends the watch and waits for it.
func (l *listener) Close() {
	l.cancel()
	<-l.ended
}

// last returns the last answer, "none" if there is none, after a second in which everything that is under way comes.
func (l *listener) last() string {
	time.Sleep(time.Second)
	synctest.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.answers) == 0 {
		return "none"
	}
	return l.answers[len(l.answers)-1]
}

// want checks the last answer.
func (l *listener) want(after, want string) {
	l.t.Helper()
	if got := l.last(); got != want {
		l.t.Errorf("after %s: %s, want %s; errors: %q", after, got, want, l.errors())
	}
}

func (l *listener) errors() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.errs)
}

// number returns how many answers there were.
func (l *listener) number() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.answers)
}

func clientOf(t *testing.T, s *kubetest.Server) *kubernetes.Client {
	return (*kubernetes.Client)(s.Memory(t))
}
