package kubernetes_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

var things = kubernetes.Resource{Group: "example.com", Version: "v1", Plural: "things", Kind: "Thing"}

// thing is a thing for kubetest.Server.Apply.
func thing(name, value string) string {
	return fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"namespace":"a","name":%q,"labels":{"value":%q}},"spec":{"value":%q}}`, name, value, value)
}

func valueOf(o kubernetes.Object) string {
	var thing struct{ Spec struct{ Value string } }
	if err := json.Unmarshal(o.Raw, &thing); err != nil {
		return err.Error()
	}
	return thing.Spec.Value
}

// text is a state in one line.
func text(s kubernetes.State[string]) string {
	var all, changed []string
	for key, value := range s.Objects {
		all = append(all, key.Name+"="+value)
	}
	slices.Sort(all)
	for _, key := range s.Changed {
		changed = append(changed, key.Name)
	}
	return strings.Join(all, " ") + " [" + strings.Join(changed, " ") + "]"
}

// watched is a watch that runs until the end of a test.
type watched struct {
	t      *testing.T
	states chan string // or errors, in parentheses
	stop   func()
}

// watch follows things in namespace a.
func watch(t *testing.T, c *kubernetes.Client, options ...func(*kubernetes.Watch[string])) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	w := &watched{t: t, states: make(chan string, 1000)}
	of := kubernetes.Watch[string]{Client: c, Resource: things, Namespace: "a", Decode: valueOf}
	for _, option := range options {
		option(&of)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for state, err := range of.All(ctx) {
			if err != nil {
				if _, ok := err.(*kubernetes.Error); !ok {
					w.states <- fmt.Sprintf("(of type %T)", err)
				}
				w.states <- "(" + err.Error() + ")"
				continue
			}
			w.states <- text(state)
		}
	}()
	w.stop = func() {
		cancel()
		<-done
	}
	t.Cleanup(w.stop)
	return w
}

// next waits for a state, or an error.
func (w *watched) next() string {
	w.t.Helper()
	timer := time.NewTimer(24 * time.Hour)
	defer timer.Stop()
	select {
	case got := <-w.states:
		return got
	case <-timer.C:
		w.t.Fatal("nothing was yielded")
		return ""
	}
}

// want waits for states, or for errors that contain what is in parentheses.
func (w *watched) want(want ...string) {
	w.t.Helper()
	for _, want := range want {
		if got := w.next(); !wanted(got, want) {
			w.t.Fatalf("got %s\nwant %s", got, want)
		}
	}
}

func wanted(got, want string) bool {
	if inner, ok := strings.CutPrefix(want, "("); ok && strings.HasPrefix(got, "(") && strings.Contains(got, strings.TrimSuffix(inner, ")")) {
		return true
	}
	return got == want
}

// first returns the first state of a watch of a server that gives the answers. If the process stood still, the client may have asked in
// another way, to which the server has no such answer: then it is all done again, and times says how often.
func first(t *testing.T, answers ...answer) (state string, times uint64) {
	t.Helper()
	stalls := await.WatchStalls(t)
	for times = 1; ; times++ {
		began := time.Now()
		s := kubetest.New(things)
		play(s, answers...)
		w := watch(t, s.Start(t))
		got := w.next()
		w.stop()
		if times == 10 || !stalls.Excuse(began) {
			return got, times
		}
	}
}

// nothing fails the test if something was yielded.
func (w *watched) nothing() {
	w.t.Helper()
	select {
	case got := <-w.states:
		w.t.Fatalf("got %s, want nothing", got)
	default:
	}
}

// answer answers one request.
type answer func(w http.ResponseWriter, r *http.Request)

// pass stands for the answer that the server gives by itself.
var pass answer

// script answers the next requests, in their order, and writes them down.
type script struct {
	mu      sync.Mutex
	answers []answer
	began   time.Time
	asked   []ask
}

type ask struct {
	at    time.Duration
	path  string
	query url.Values
}

// play lets a script answer the requests to a server. The requests after it are answered by the server.
func play(s *kubetest.Server, answers ...answer) *script {
	p := &script{answers: answers, began: time.Now()}
	s.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		p.mu.Lock()
		p.asked = append(p.asked, ask{time.Since(p.began), r.URL.Path, r.URL.Query()})
		var next answer
		if len(p.answers) > 0 {
			next, p.answers = p.answers[0], p.answers[1:]
		}
		p.mu.Unlock()
		if next != nil {
			next(w, r)
		}
		return next != nil
	})
	return p
}

// requests returns what was asked for so far.
func (p *script) requests() []ask {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.asked)
}

// kind says what a request is: "initial", "list", "cached", "more" or "from VERSION".
func (a ask) kind() string {
	q := a.query
	switch {
	case q.Get("sendInitialEvents") != "":
		return "initial"
	case q.Get("watch") != "":
		return "from " + q.Get("resourceVersion")
	case q.Get("continue") != "":
		return "more"
	case q.Get("resourceVersion") == "0":
		return "cached"
	}
	return "list"
}

func kinds(asked []ask) string {
	var all []string
	for _, a := range asked {
		all = append(all, a.kind())
	}
	return strings.Join(all, ", ")
}

// send answers a watch with events, and ends it. An empty event is a second without one.
func send(events ...string) answer {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		for _, e := range events {
			if e == "" {
				http.NewResponseController(w).Flush()
				time.Sleep(time.Second) // in a bubble
				continue
			}
			w.Write([]byte(e + "\n"))
		}
		http.NewResponseController(w).Flush()
	}
}

// hold is send without an end.
func hold(events ...string) answer {
	return func(w http.ResponseWriter, r *http.Request) {
		send(events...)(w, r)
		<-r.Context().Done()
	}
}

// raw answers with a body of some type.
func raw(code int, contentType, body string, header ...string) answer {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", contentType)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
		w.Write([]byte(body))
	}
}

// object is a thing as a server sends it, with a name, a uid, a resource version and a value.
func object(name, uid string, version int, value string) string {
	return fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"namespace":"a","name":%q,"uid":%q,"resourceVersion":"%d"},"spec":{"value":%q}}`,
		name, uid, version, value)
}

func added(name, uid string, version int, value string) string {
	return `{"type":"ADDED","object":` + object(name, uid, version, value) + `}`
}

func modified(name, uid string, version int, value string) string {
	return `{"type":"MODIFIED","object":` + object(name, uid, version, value) + `}`
}

func deleted(name, uid string, version int) string {
	return `{"type":"DELETED","object":` + object(name, uid, version, "gone") + `}`
}

func bookmark(version int) string {
	return fmt.Sprintf(`{"type":"BOOKMARK","object":{"kind":"Thing","apiVersion":"example.com/v1","metadata":{"resourceVersion":"%d","creationTimestamp":null},"spec":{},"status":{}}}`, version)
}

func marker(version int) string {
	return fmt.Sprintf(`{"type":"BOOKMARK","object":{"kind":"Thing","apiVersion":"example.com/v1","metadata":{"resourceVersion":"%d","annotations":{"k8s.io/initial-events-end":"true"}},"spec":{}}}`, version)
}

func failure(code int, reason string) string {
	return strings.TrimSpace(string(kubetest.Event("ERROR", kubetest.Status(code, reason, "message of "+reason))))
}

// selfSigned returns a certificate and its key in PEM.
func selfSigned(t *testing.T) (certificate, key []byte) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, DNSNames: []string{"kubernetes.default.svc"}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}
