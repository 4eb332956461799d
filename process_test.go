package mesh_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/rpc"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// The documents of the seed about security, enforced between processes. Each process is this test program, started again
// as one service, with an identity of its own that it reads from files.

// processVariable holds the description of the service that a process is to be.
const processVariable = "MESH_TEST_PROCESS"

// workload describes a service.
type workload struct {
	Namespace, Account string
	Labels             map[string]string
	Identity           string   // the folder with its files
	Documents          []string // of the seed
	Endpoints          discovery.Static
}

// process is a service that runs.
type process struct {
	workload
	address string
	rpc     *rpc.Client
}

// village is where processes get their identities from.
type village struct {
	*tlsid.DevCA
	folder    string
	documents []string
}

func newVillage(t *testing.T, documents ...string) *village {
	t.Helper()
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ca.RotateEvery = -1
	return &village{ca, t.TempDir(), documents}
}

// start starts a service that runs as namespace/account with the label app=account, and that knows the others. It ends
// with the test.
func (v *village) start(t *testing.T, namespace, account string, others discovery.Static) *process {
	t.Helper()
	p := &process{workload: workload{
		Namespace: namespace, Account: account, Labels: map[string]string{"app": account, "version": "v1"},
		Identity: filepath.Join(v.folder, namespace, account), Documents: v.documents, Endpoints: others,
	}}
	if err := v.WriteFiles(p.Identity, namespace, account); err != nil {
		t.Fatal(err)
	}
	description, err := json.Marshal(p.workload)
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	command := exec.Command(program)
	command.Env = append(os.Environ(), processVariable+"="+string(description),
		"GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")) // the race detector's way to end is to sleep for a second
	command.Stderr = &stderr
	stdin, err := command.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	p.rpc = rpc.NewClient(pipes{stdout, stdin})
	t.Cleanup(func() {
		p.rpc.Close() // it ends by itself then
		timer := time.AfterFunc(time.Minute, func() { command.Process.Kill() })
		defer timer.Stop()
		if err := command.Wait(); err != nil {
			t.Errorf("%s: %v\n%s", account, err, stderr.Bytes())
		}
	})
	p.ask(t, "Address", struct{}{}, &p.address)
	return p
}

// ask calls a method of the [Process].
func (p *process) ask(t *testing.T, method string, args, reply any) {
	t.Helper()
	if err := p.rpc.Call("Process."+method, args, reply); err != nil {
		t.Fatalf("%s: %v", p.Account, err)
	}
}

// endpoint is where the service is, and who it must prove to be.
func (p *process) endpoint(t *testing.T, account string) discovery.Endpoint {
	t.Helper()
	e := endpointOf(t, p.address)
	e.ServiceAccount, e.Labels = account, p.Labels
	return e
}

// call has the service call another one through its mesh.
func (p *process) call(t *testing.T, c Call) Answer {
	t.Helper()
	var a Answer
	p.ask(t, "Call", c, &a)
	return a
}

// pipes are the way from parent to child and back.
type pipes struct {
	io.ReadCloser
	io.WriteCloser
}

func (p pipes) Close() error { return errors.Join(p.WriteCloser.Close(), p.ReadCloser.Close()) }

// beProcess is the main function of a service. TestMain calls it where processVariable is set.
func beProcess(description string) error {
	var w workload
	if err := json.Unmarshal([]byte(description), &w); err != nil {
		return err
	}
	p := &Process{meshes: make(map[string]*mesh.Mesh)}
	for _, proto := range protos {
		m, err := p.newMesh(&w, proto)
		if err != nil {
			return err
		}
		defer m.Close()
		p.meshes[proto] = m
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	p.address = l.Addr().String()
	m := p.meshes[protos[0]]
	inside := m.Handler(http.HandlerFunc(p.serve))
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Seen-Proto", r.Proto)
		w.Header().Set("Seen-From", r.RemoteAddr)
		inside.ServeHTTP(w, r)
	})}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(m.Listen(l)) })
	defer serving.Wait()
	defer server.Close()

	asked := rpc.NewServer()
	if err := asked.Register(p); err != nil {
		return err
	}
	asked.ServeConn(pipes{os.Stdin, os.Stdout})
	return nil
}

// protos are the protocols that are tested, as requests have them.
var protos = []string{"HTTP/1.1", "HTTP/2.0"}

// speaking returns a transport that speaks one protocol only.
func speaking(proto string) *http.Transport {
	t := &http.Transport{Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(proto == "HTTP/1.1")
	t.Protocols.SetHTTP2(proto == "HTTP/2.0")
	return t
}

// Process is a service, as its parent sees it.
type Process struct {
	address string
	meshes  map[string]*mesh.Mesh // by the protocol of their calls

	mu     sync.Mutex
	served int // requests that the handler got
}

type flagsKey struct{}

func (p *Process) newMesh(w *workload, proto string) (*mesh.Mesh, error) {
	options := []mesh.Option{
		mesh.WithIdentity(tlsid.Files{Dir: w.Identity}),
		mesh.WithWorkload(policy.Workload{Namespace: w.Namespace, Labels: w.Labels}),
		mesh.WithDiscovery(w.Endpoints),
		mesh.WithTransport(speaking(proto)),
		mesh.WithObserver(mesh.Observer{CallEnd: func(ctx context.Context, c *mesh.Call) {
			if flags, ok := ctx.Value(flagsKey{}).(*mesh.Call); ok {
				*flags = *c
			}
		}}),
	}
	for _, name := range w.Documents {
		options = append(options, mesh.WithPolicyDir("policy/testdata/seed/"+name))
	}
	return mesh.New(context.Background(), options...)
}

// serve is the handler of the service, behind its mesh.
func (p *Process) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.served++
	p.mu.Unlock()
	w.Header().Set("Served-By", p.address)
	if r.Header.Get("Fail-At") == p.address {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintf(w, "%s %s of %s", r.Method, r.RequestURI, mesh.PeerID(r.Context()))
}

// Address tells where the service listens.
func (p *Process) Address(_ struct{}, address *string) error {
	*address = p.address
	return nil
}

// Served tells how many requests the handler got.
func (p *Process) Served(_ struct{}, n *int) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	*n = p.served
	return nil
}

// Call is a call that a service is to make through its mesh.
type Call struct {
	Proto, Method, URL string
	Header             http.Header
}

// Answer is what came of it.
type Answer struct {
	Status   int
	Body     string
	Header   http.Header
	Err      string
	Attempts int

	// Expected and Presented are the IDs of a [tlsid.MismatchError].
	Expected, Presented string
}

// Call makes a call. One that a document's fault injection aborts is made again.
func (p *Process) Call(c Call, a *Answer) error {
	for {
		var seen mesh.Call
		req, err := http.NewRequestWithContext(context.WithValue(context.Background(), flagsKey{}, &seen), c.Method, c.URL, nil)
		if err != nil {
			return err
		}
		req.Header = c.Header
		resp, err := p.meshes[c.Proto].Client().Do(req)
		if err == nil {
			var body []byte
			body, err = io.ReadAll(resp.Body)
			resp.Body.Close()
			*a = Answer{Status: resp.StatusCode, Body: string(body), Header: resp.Header}
		}
		if err != nil {
			*a = Answer{Err: err.Error()}
			var mismatch *tlsid.MismatchError
			if errors.As(err, &mismatch) {
				a.Expected, a.Presented = mismatch.Expected.String(), mismatch.Presented.String()
			}
		}
		a.Attempts = seen.Attempts
		if seen.Flags&mesh.FlagFaultInjected == 0 {
			return nil
		}
	}
}

// stranger returns a client without a mesh, which uses an identity by hand. It talks to servers that are expected.
func stranger(t *testing.T, source tlsid.Source, proto string, expected tlsid.Expected) *http.Client {
	t.Helper()
	keeper := tlsid.Keep(source, tlsid.Hooks{})
	t.Cleanup(keeper.Close)
	if err := keeper.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	transport := speaking(proto)
	transport.TLSClientConfig = keeper.Client(expected)
	transport.TLSClientConfig.NextProtos = nil // net/http asks for what the transport speaks
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// send sends the path as it is, whatever is wrong with it.
func send(c *http.Client, method, address, path string) (answer, error) {
	req := &http.Request{Method: method, Header: make(http.Header), URL: &url.URL{Scheme: "https", Host: address, Opaque: path}}
	if strings.HasPrefix(path, "//") {
		req.URL.Opaque, req.URL.Path = "", path
	}
	resp, err := c.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(body), resp.Header, resp}, err
}

func accountID(namespace, account string) spiffeid.ID {
	return spiffeid.RequireFromPath(spiffeid.RequireTrustDomainFromString("cluster.local"), "/ns/"+namespace+"/sa/"+account)
}

const refusedBody = "RBAC: access denied"

// check compares an answer of a server that speaks proto with what the documents say.
func check(t *testing.T, status int, body string, header http.Header, proto string, want int) {
	t.Helper()
	if status != want || header.Get("Seen-Proto") != proto {
		t.Errorf("%d %q over %s, want %d over %s", status, body, header.Get("Seen-Proto"), want, proto)
	}
	switch reached := header.Get("Served-By") != ""; {
	case want == http.StatusOK && !reached:
		t.Error("it did not reach the handler")
	case want != http.StatusOK && reached:
		t.Error("it reached the handler")
	case want == http.StatusForbidden && strings.TrimSpace(body) != refusedBody:
		t.Errorf("the refusal says %q, want %q", body, refusedBody)
	}
}

// TestProcesses_Default is about 06-peer-authentication.yaml and 07-authorization-policies.yaml.
func TestProcesses_Default(t *testing.T) {
	noLeaks(t)
	v := newVillage(t, "06-peer-authentication.yaml", "07-authorization-policies.yaml")
	payment := v.start(t, "default", "payment-service", nil)
	users := v.start(t, "default", "user-service", discovery.Static{
		"payment-service": {payment.endpoint(t, "payment-service")},
	})
	known := discovery.Static{
		"payment-service": {payment.endpoint(t, "payment-service")},
		"user-service":    {users.endpoint(t, "user-service")},
		"ledger-service":  {users.endpoint(t, "ledger-service")}, // where user-service is now
	}
	orders := v.start(t, "default", "order-service", known)
	admin := v.start(t, "default", "admin-service", known)

	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			for _, test := range []struct {
				name   string
				by     *process
				method string
				url    string
				want   int
			}{
				{"order-service may charge", orders, "POST", "http://payment-service/v1/charge", 200},
				{"order-service may charge by the full name", orders, "POST", "http://payment-service.default.svc.cluster.local/v1/charge", 200},
				{"order-service, right path, wrong method", orders, "GET", "http://payment-service/v1/charge", 403},
				{"order-service, right method, wrong path", orders, "POST", "http://payment-service/v1/refund", 403},
				{"order-service, below the path", orders, "POST", "http://payment-service/v1/charge/all", 403},
				{"user-service may not charge", users, "POST", "http://payment-service/v1/charge", 403},
				{"user-service may not do anything", users, "GET", "http://payment-service/", 403},
				{"admin-service may charge", admin, "POST", "http://payment-service/v1/charge", 200},
				{"admin-service may GET", admin, "GET", "http://payment-service/", 200},
				{"admin-service may PUT", admin, "PUT", "http://payment-service/v1/refund", 200},
				{"admin-service may DELETE", admin, "DELETE", "http://payment-service/anything", 200},
				{"admin-service may use a method of its own", admin, "PURGE", "http://payment-service/anything", 200},
				{"deny-all: not even admin-service may call user-service", admin, "GET", "http://user-service/", 403},
				{"deny-all: order-service may not call user-service", orders, "POST", "http://user-service/v1/charge", 403},
			} {
				t.Run(test.name, func(t *testing.T) {
					a := test.by.call(t, Call{Proto: proto, Method: test.method, URL: test.url})
					if a.Err != "" {
						t.Fatal(a.Err)
					}
					check(t, a.Status, a.Body, a.Header, proto, test.want)
					if id := accountID("default", test.by.Account).String(); test.want == 200 && !strings.HasSuffix(a.Body, " of "+id) {
						t.Errorf("the handler says %q, want that it was called by %s", a.Body, id)
					}
				})
			}

			t.Run("a server with another identity", func(t *testing.T) {
				a := orders.call(t, Call{Proto: proto, Method: "POST", URL: "http://ledger-service/v1/charge"})
				expected, presented := accountID("default", "ledger-service").String(), accountID("default", "user-service").String()
				if a.Expected != expected || a.Presented != presented {
					t.Errorf("%d %q, IDs expected %q, presented %q; want an error with the IDs %s and %s",
						a.Status, a.Err, a.Expected, a.Presented, expected, presented)
				}
				if !strings.Contains(a.Err, expected) || !strings.Contains(a.Err, presented) {
					t.Errorf("the error %q does not name both IDs", a.Err)
				}
			})

			// From here on the client has no mesh, and sends what no client of ours would.
			t.Run("order-service, paths", func(t *testing.T) {
				c := stranger(t, v.Source("default", "order-service"), proto, tlsid.Expect(accountID("default", "payment-service")))
				for path, want := range map[string]int{
					"/v1/charge":               200,
					"/v1/charge?card=1":        200,
					"/v1/./charge":             200, // as in Istio, this is /v1/charge
					"/v1/%63harge":             200, // and so is this
					"//v1/charge":              403,
					"/v1//charge":              403,
					"/v1/charge/":              403,
					"/v1/charge/.":             403,
					"/v1/Charge":               403,
					"/v1/charge.":              403,
					"/v1/charge%20":            403,
					"/v1/charge;a=b":           403,
					"/v1;a=b/charge":           403,
					"/v1%2Fcharge":             403,
					"/v1%2fcharge":             403,
					"/v1%5Ccharge":             403,
					"/v1/charge%2F":            403,
					"/v1/charge%23x":           403,
					"/v1/charge%3Fx":           403,
					"/v1/charge/../refund":     403,
					"/v1/charge/%2e%2e/refund": 403,
					"/v1/charge/%2E./refund":   403,
					"/v1/charge/..;/refund":    403,
					"/v1/charge%2F..%2Frefund": 403,
					"/v1/charge/..%5Crefund":   403,
					`/v1/charge\..\refund`:     403,
					"/v1/refund#/../charge":    403,
					"/v1/refund?/../charge":    403,
					"/v1/%2563harge":           403, // once decoded it is %63
					"/v1/charge%00":            400,
					"/v1/charge%00/../refund":  400,
					"/v1/charge%FF":            400,
				} {
					t.Run(path, func(t *testing.T) {
						a, err := send(c, "POST", payment.address, path)
						if err != nil {
							t.Fatal(err)
						}
						check(t, a.status, a.body, a.header, proto, want)
					})
				}
			})

			for _, test := range []struct {
				name        string
				certificate func(t *testing.T) tls.Certificate
			}{
				{"no certificate", nil},
				{"a certificate of order-service by another authority", issuedBy("cluster.local")},
				{"a certificate of order-service of another trust domain", issuedBy("other.example")},
			} {
				t.Run(test.name, func(t *testing.T) {
					transport := speaking(proto)
					transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
					if test.certificate != nil {
						transport.TLSClientConfig.Certificates = []tls.Certificate{test.certificate(t)}
					}
					defer transport.CloseIdleConnections()
					before := payment.served(t)
					if a, err := send(&http.Client{Transport: transport}, "POST", payment.address, "/v1/charge"); err == nil {
						t.Errorf("%d %q, want no answer", a.status, a.body)
					}
					if n := payment.served(t) - before; n != 0 {
						t.Errorf("it reached the handler %d times", n)
					}
				})
			}

			t.Run("plaintext", func(t *testing.T) {
				hello := "POST /v1/charge HTTP/1.1\r\nHost: payment-service\r\nContent-Length: 0\r\n\r\n"
				if proto == "HTTP/2.0" {
					hello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"
				}
				plaintextRefused(t, payment.address, hello)
			})
		})
	}
}

// issuedBy returns how to get a certificate of order-service from an authority that nobody trusts.
func issuedBy(domain string) func(t *testing.T) tls.Certificate {
	return func(t *testing.T) tls.Certificate {
		t.Helper()
		ca, err := tlsid.NewDevCA(domain)
		if err != nil {
			t.Fatal(err)
		}
		identity, err := ca.Identity("default", "order-service")
		if err != nil {
			t.Fatal(err)
		}
		return *identity.Certificate()
	}
}

// served returns how many requests the handler got.
func (p *process) served(t *testing.T) (n int) {
	t.Helper()
	p.ask(t, "Served", struct{}{}, &n)
	return n
}

// plaintextRefused says hello in plaintext, and wants the connection reset without a byte in answer.
func plaintextRefused(t *testing.T, address, hello string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	if _, err := io.WriteString(c, hello); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if len(got) != 0 || !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the answer is %q, %v; want none and a reset", got, err)
	}
}

// TestProcesses_Complete is about 10-complete-setup.yaml: user-service, with all that is turned on for it.
func TestProcesses_Complete(t *testing.T) {
	noLeaks(t)
	v := newVillage(t, "10-complete-setup.yaml")
	var replicas []*process
	var endpoints []discovery.Endpoint
	for range 3 {
		p := v.start(t, "myapp", "user-service", nil)
		replicas = append(replicas, p)
		endpoints = append(endpoints, p.endpoint(t, "user-service"))
	}
	known := discovery.Static{"user-service.myapp": endpoints}
	orders := v.start(t, "myapp", "order-service", known)
	billing := v.start(t, "myapp", "billing-service", known)
	foreign := v.start(t, "default", "order-service", discovery.Static{"user-service.myapp": {replicas[0].endpoint(t, "myapp/user-service")}})

	for _, proto := range protos {
		t.Run(proto, func(t *testing.T) {
			for _, test := range []struct {
				name   string
				by     *process
				method string
				want   int
			}{
				{"order-service may GET", orders, "GET", 200},
				{"order-service may POST", orders, "POST", 200},
				{"order-service may not DELETE", orders, "DELETE", 403},
				{"order-service may not PUT", orders, "PUT", 403},
				{"billing-service may not GET", billing, "GET", 403},
				{"billing-service may not POST", billing, "POST", 403},
				{"order-service of another namespace may not GET", foreign, "GET", 403},
			} {
				t.Run(test.name, func(t *testing.T) {
					a := test.by.call(t, Call{Proto: proto, Method: test.method, URL: "http://user-service.myapp:3000/api/users/42"})
					if a.Err != "" {
						t.Fatal(a.Err)
					}
					check(t, a.Status, a.Body, a.Header, proto, test.want)
					if a.Attempts != 1 {
						t.Errorf("%d attempts, want 1: what is denied is not tried again", a.Attempts)
					}
				})
			}

			t.Run("users stay on one replica, two requests to a connection", func(t *testing.T) {
				at, from := make(map[string]string), make(map[string]int)
				used := make(map[string]bool)
				for i := range 36 {
					user := fmt.Sprint("user-", i%12)
					a := orders.call(t, Call{Proto: proto, Method: "GET", URL: "http://user-service:3000/api/users/" + user,
						Header: http.Header{"X-User-Id": {user}}})
					check(t, a.Status, a.Body, a.Header, proto, 200)
					replica := a.Header.Get("Served-By")
					if before, known := at[user]; known && before != replica {
						t.Errorf("%s was on %s and is now on %s", user, before, replica)
					}
					at[user], used[replica] = replica, true
					// The same port may be the client's end of connections to several replicas.
					from[a.Header.Get("Seen-From")+" to "+replica]++
				}
				if len(used) < 2 {
					t.Errorf("%d replicas are used, want all of 3, or nearly", len(used))
				}
				for address, n := range from {
					if n > 2 {
						t.Errorf("the connection from %s carried %d requests, want 2 at most", address, n)
					}
				}
			})

			t.Run("a replica that fails is tried again, then ejected", func(t *testing.T) {
				user := Call{Proto: proto, Method: "GET", URL: "http://user-service/api/users", Header: http.Header{"X-User-Id": {"user-1"}}}
				own := orders.call(t, user).Header.Get("Served-By")
				user.Header.Set("Fail-At", own)
				// Whoever is sticky stays so in retries: 1 + 3 tries fail, and the next is the 5th failure in a row.
				a := orders.call(t, user)
				if a.Status != http.StatusServiceUnavailable || a.Attempts != 4 {
					t.Errorf("%d %s after %d attempts, want 503 after 4", a.Status, a.Err, a.Attempts)
				}
				a = orders.call(t, user)
				check(t, a.Status, a.Body, a.Header, proto, 200)
				if by := a.Header.Get("Served-By"); by == own || a.Attempts != 2 {
					t.Errorf("served by %s at attempt %d, want another than %s at attempt 2", by, a.Attempts, own)
				}
			})

			t.Run("plaintext", func(t *testing.T) {
				for _, p := range replicas {
					plaintextRefused(t, p.address, "GET /api/users HTTP/1.1\r\nHost: user-service\r\n\r\n")
				}
			})
		})
	}
}

// A template that does without HTTP/2 does so over mTLS too.
func TestTemplateProtocols(t *testing.T) {
	noLeaks(t)
	w := newTown(t)
	w.serve(t, w.member(t, "payment-service", strict), "payment-service", whoCalls)
	for _, test := range []struct {
		name     string
		template *http.Transport
		want     string
	}{
		{"zero", &http.Transport{}, "HTTP/2.0"},
		{"Protocols without HTTP/2", speaking("HTTP/1.1"), "HTTP/1.1"},
		{"Protocols without HTTP/1", speaking("HTTP/2.0"), "HTTP/2.0"},
		{"empty TLSNextProto", &http.Transport{TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}, "HTTP/1.1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := w.member(t, "order-service", strict, mesh.WithTransport(test.template)).Client()
			if a := get(t, c, "http://payment-service/"); !strings.HasSuffix(a.body, " over "+test.want) {
				t.Errorf("%d %q, want it over %s", a.status, a.body, test.want)
			}
		})
	}
}
