// Package kubetest is a small API server for tests. It lists and watches objects as kube-apiserver does, and misbehaves as it is told.
package kubetest

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/memnet"
)

// Server is an API server without etcd. Its methods are safe for concurrent use. Its fields must be set before it serves.
type Server struct {
	Namespace       string // that clients take for their own
	Token           string // that requests must have; see SetToken
	NoWatchList     bool   // refuse to stream lists, with 422
	IgnoreWatchList bool   // do not know of streamed lists, as old servers
	Torn            bool   // write watches in pieces of few bytes

	mu        sync.Mutex
	kinds     map[id]*kind
	served    []kubernetes.Resource
	rv        uint64
	changed   chan struct{} // closed with every change
	bookmarks int           // sent so far
	ends      int           // of all watches so far
	watches   int
	denied    map[denial]bool
	requests  []string
	intercept func(w http.ResponseWriter, r *http.Request) bool
	snapshots map[uint64][]*object // of lists that have more pages
	uids      int
}

// id tells kinds apart, whatever their version.
type id struct{ group, plural string }

type kind struct {
	objects map[kubernetes.Key]*object
	history []record
	floor   uint64 // resource versions below it are expired
	ends    int    // of the watches of this kind so far
}

// object is one state of one object. It is never changed.
type object struct {
	key    kubernetes.Key
	uid    string
	rv     uint64
	fields map[string]any // without kind and apiVersion
	tail   []byte         // fields as JSON without the first brace
	labels map[string]string
}

// record is what happened at one resource version. Without now it was deleted, without before it was created.
type record struct {
	rv          uint64
	before, now *object
}

type denial struct{ plural, namespace string }

// New returns a server of these resources. Those of one group and plural are versions of the same objects.
func New(resources ...kubernetes.Resource) *Server {
	s := &Server{kinds: make(map[id]*kind), rv: 1, changed: make(chan struct{}), denied: make(map[denial]bool), snapshots: make(map[uint64][]*object)}
	for _, r := range resources {
		s.Install(r)
	}
	return s
}

// Start serves HTTP/2 over TLS at 127.0.0.1 until the end of the test, and returns a client of it.
func (s *Server) Start(t testing.TB) *kubernetes.Client {
	t.Helper()
	return client(t, s.Serve(t))
}

// Serve serves as Start does, and returns what a client needs.
func (s *Server) Serve(t testing.TB) kubernetes.Config {
	t.Helper()
	server := httptest.NewUnstartedServer(s)
	server.EnableHTTP2 = true
	server.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 100} // as an API server has it
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return kubernetes.Config{Server: server.URL, CA: ca, Token: s.Token, Namespace: s.Namespace}
}

// Memory serves over connections in memory until the end of the test, and returns a client of it.
func (s *Server) Memory(t testing.TB) *kubernetes.Client {
	t.Helper()
	return client(t, kubernetes.Config{
		Server: "https://kubernetes.default.svc", Token: s.Token, Namespace: s.Namespace, Transport: s.Transport(t),
	})
}

// Transport serves as Memory does, and returns what leads there.
func (s *Server) Transport(t testing.TB) http.RoundTripper {
	return plain{memnet.Transport(t, s.ServeHTTP)}
}

// plain sends what would be encrypted in plain text.
type plain struct{ *http.Transport }

// RoundTrip implements http.RoundTripper.
func (p plain) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := r.Clone(r.Context())
	sent.URL.Scheme = "http"
	return p.Transport.RoundTrip(sent)
}

func client(t testing.TB, config kubernetes.Config) *kubernetes.Client {
	t.Helper()
	c, err := kubernetes.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// Install serves a resource. What was known of its kind before is expired.
func (s *Server) Install(r kubernetes.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.served, r) {
		s.served = append(s.served, r)
	}
	if at := idOf(r); s.kinds[at] == nil {
		s.kinds[at] = &kind{objects: make(map[kubernetes.Key]*object), floor: s.rv}
	}
}

// Uninstall no longer serves a resource. Watches of it end. With its last version, the objects are deleted.
func (s *Server) Uninstall(r kubernetes.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.served = slices.DeleteFunc(s.served, func(have kubernetes.Resource) bool { return have == r })
	k := s.kinds[idOf(r)]
	if !slices.ContainsFunc(s.served, func(have kubernetes.Resource) bool { return idOf(have) == idOf(r) }) {
		for _, o := range k.objects {
			s.putLocked(k, o, nil)
		}
		delete(s.kinds, idOf(r))
	}
	k.ends++
	s.tellLocked()
}

// Reestablish does what an edited CRD does: watches of the kind end, and what they know is expired.
func (s *Server) Reestablish(r kubernetes.Resource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rv++
	k := s.kinds[idOf(r)]
	k.floor, k.history = s.rv, nil
	k.ends++
	s.tellLocked()
}

// Expire makes all resource versions so far expire. Open watches go on.
func (s *Server) Expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rv++
	for _, k := range s.kinds {
		k.floor = s.rv
	}
	s.tellLocked()
}

// EndWatches ends all open watches as if their time were over.
func (s *Server) EndWatches() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends++
	s.tellLocked()
}

// Bookmark sends a bookmark to all open watches, of a resource version that no object has.
func (s *Server) Bookmark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rv++
	s.bookmarks++
	s.tellLocked()
}

// Deny answers 403 to requests for a resource in a namespace, or in all if that is empty. Open watches go on.
func (s *Server) Deny(plural, namespace string) { s.deny(plural, namespace, true) }

// Allow ends what Deny began.
func (s *Server) Allow(plural, namespace string) { s.deny(plural, namespace, false) }

func (s *Server) deny(plural, namespace string, denied bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[denial{plural, namespace}] = denied
}

// SetToken sets the token that requests must have from now on.
func (s *Server) SetToken(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Token = token
}

// Intercept hands requests to a function first, which reports whether it has answered. nil ends that.
func (s *Server) Intercept(f func(w http.ResponseWriter, r *http.Request) (answered bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercept = f
}

// Requests returns the requests so far, such as "GET /api/v1/pods?watch=1".
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Watches returns how many watches are open.
func (s *Server) Watches() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watches
}

// Version returns the resource version of the last change.
func (s *Server) Version() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rv
}

// Delete deletes an object, if it is there.
func (s *Server) Delete(kindName, namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.served {
		if r.Kind != kindName {
			continue
		}
		k := s.kinds[idOf(r)]
		if o := k.objects[kubernetes.Key{Namespace: namespace, Name: name}]; o != nil {
			s.putLocked(k, o, nil)
			s.tellLocked()
		}
		return
	}
	panic("kubetest: nothing serves " + kindName)
}

// Apply creates objects, or replaces them. A document is YAML or JSON, and may be several. What the server sets is set where it is absent:
// the uid, the time of creation, the generation. An object that is as it was does not change; one with another uid is deleted and created.
func (s *Server) Apply(documents ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, text := range documents {
		for _, fields := range parse(text) {
			s.applyLocked(fields)
		}
	}
	s.tellLocked()
}

func (s *Server) applyLocked(fields map[string]any) {
	k := s.kindLocked(fmt.Sprint(fields["apiVersion"]), fmt.Sprint(fields["kind"]))
	delete(fields, "apiVersion")
	delete(fields, "kind")
	metadata, _ := fields["metadata"].(map[string]any)
	name, _ := metadata["name"].(string)
	if name == "" {
		panic("kubetest: an object without name")
	}
	namespace, _ := metadata["namespace"].(string)
	key := kubernetes.Key{Namespace: namespace, Name: name}
	old := k.objects[key]
	if uid, ok := metadata["uid"].(string); ok && old != nil && uid != old.uid {
		s.putLocked(k, old, nil)
		old = nil
	}
	generation := float64(1)
	if old != nil {
		before := old.fields["metadata"].(map[string]any)
		for _, field := range []string{"uid", "creationTimestamp"} {
			setDefault(metadata, field, before[field])
		}
		generation, _ = before["generation"].(float64)
		if differ(fields, old.fields, "metadata", "status") {
			generation++
		}
	} else {
		s.uids++
		setDefault(metadata, "uid", fmt.Sprintf("00000000-0000-0000-0000-%012d", s.uids))
		setDefault(metadata, "creationTimestamp", time.Now().UTC().Format(time.RFC3339))
	}
	setDefault(metadata, "generation", generation)
	if old != nil {
		metadata["resourceVersion"] = fmt.Sprint(old.rv)
		if !differ(fields, old.fields) {
			return
		}
	}
	metadata["resourceVersion"] = fmt.Sprint(s.rv + 1)
	s.putLocked(k, old, newObject(key, s.rv+1, fields))
}

func newObject(key kubernetes.Key, rv uint64, fields map[string]any) *object {
	metadata := fields["metadata"].(map[string]any)
	o := &object{key: key, rv: rv, uid: metadata["uid"].(string), fields: fields, labels: map[string]string{}}
	labels, _ := metadata["labels"].(map[string]any)
	for name, value := range labels {
		o.labels[name] = fmt.Sprint(value)
	}
	data, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	o.tail = data[1:]
	return o
}

// putLocked records a change: from an object, to another. One of the two may be nil.
func (s *Server) putLocked(k *kind, before, now *object) {
	s.rv++
	if now == nil {
		delete(k.objects, before.key)
		before = before.at(s.rv)
	} else {
		k.objects[now.key] = now
	}
	k.history = append(k.history, record{s.rv, before, now})
}

// at returns the object as it is sent when it is deleted: as it was, with a new resource version.
func (o *object) at(rv uint64) *object {
	fields := make(map[string]any, len(o.fields))
	for name, value := range o.fields {
		fields[name] = value
	}
	metadata := make(map[string]any)
	for name, value := range o.fields["metadata"].(map[string]any) {
		metadata[name] = value
	}
	metadata["resourceVersion"] = fmt.Sprint(rv)
	fields["metadata"] = metadata
	return newObject(o.key, rv, fields)
}

func (s *Server) tellLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// kindLocked returns the kind that a document is of.
func (s *Server) kindLocked(apiVersion, kindName string) *kind {
	for _, r := range s.served {
		if r.Kind == kindName && r.APIVersion() == apiVersion {
			return s.kinds[idOf(r)]
		}
	}
	panic(fmt.Sprintf("kubetest: nothing serves %s %s", apiVersion, kindName))
}

func idOf(r kubernetes.Resource) id { return id{r.Group, r.Plural} }
