// Command mtls runs services in separate processes. They trust each other only by certificate, and documents say who may
// call whom.
//
// Payment-service and its callers listen on 127.0.0.1. This process, their parent, stands for Kubernetes: it starts them,
// writes a new certificate into the folder of each every second, and puts the documents of mesh.d into a folder that they
// all follow. Then it has them call one another, and prints what was measured next to what the documents specify. If the
// two differ, it says so and exits with status 1.
//
//	go run ./examples/mtls
package main

import (
	"context"
	"crypto/tls"
	"embed"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) > 2 {
		if err := run(os.Args[1], os.Args[2], os.Args[3:]...); err != nil { // service.go
			log.Fatalf("%s: %v", os.Args[1], err)
		}
		return
	}
	// A limit for the case that something hangs. Nothing here takes nearly as long.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	asked, err := show(ctx)
	switch {
	case err != nil:
		log.Fatal(err)
	case !asked:
		fmt.Println("Something DID NOT MATCH the documents.")
		os.Exit(1)
	}
	fmt.Println("Everything matched the documents.")
}

//go:embed mesh.d
var documents embed.FS

const (
	peers     = "06-peer-authentication.yaml"
	policies  = "07-authorization-policies.yaml"
	suspended = "20-order-service-suspended.yaml"
)

// show runs everything, and reports whether all was as the documents specify.
func show(ctx context.Context) (asked bool, err error) {
	folder, err := os.MkdirTemp("", "mtls")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(folder)
	if err := os.Mkdir(filepath.Join(folder, "mesh.d"), 0o755); err != nil {
		return false, err
	}
	for _, name := range []string{peers, policies} {
		if err := publish(folder, name); err != nil {
			return false, err
		}
	}
	stop, err := certify(folder, "payment-service", "order-service", "admin-service", "user-service")
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, stop()) }()

	launch := func(name string, others ...*process) *process {
		if err != nil {
			return nil
		}
		var p *process
		if p, err = start(ctx, name, folder, others...); err == nil {
			fmt.Printf("%s is process %d and listens on %s.\n", name, p.command.Process.Pid, p.address)
		}
		return p
	}
	payment := launch("payment-service")
	defer payment.stop()
	// Discovery is wrong about ledger-service: payment-service answers at its address.
	ledger := &process{name: "ledger-service", address: payment.at()}
	orders := launch("order-service", payment, ledger)
	defer orders.stop()
	admin := launch("admin-service", payment, orders)
	defer admin.stop()
	users := launch("user-service", payment, orders)
	defer users.stop()
	if err != nil {
		return false, err
	}

	s := &story{asked: true}
	s.rules(orders, admin, users)
	s.strangers(payment, orders)
	s.change(folder, orders, admin)
	s.rotation(orders, admin)
	s.end()
	return s.asked, s.err
}

const (
	charge = "http://payment-service/v1/charge"
	denied = "403 RBAC: access denied"
)

func (s *story) rules(orders, admin, users *process) {
	s.chapter("Who may call whom", []string{peers, policies}, "who", "calls", "specified", "measured")
	for _, call := range []struct {
		by          *process
		method, url string
		want        string
	}{
		{orders, "POST", charge, "200"},
		{orders, "GET", charge, denied},
		{orders, "POST", "http://payment-service/v1/refund", denied},
		{orders, "POST", "http://payment-service//v1/charge", denied},
		{orders, "POST", "http://payment-service/v1/%2e%2e/v1/charge%2F", denied},
		{users, "POST", charge, denied},
		{admin, "POST", charge, "200"},
		{admin, "DELETE", "http://payment-service/v1/charges/42", "200"},
		{admin, "GET", "http://order-service/", denied}, // nothing allows calls to order-service, so all are denied
		{users, "GET", "http://order-service/", denied},
	} {
		s.call(call.by, Request{call.method, call.url}, call.want)
	}
}

// strangers shows a client without a certificate, which is this process, and a server with the wrong one.
func (s *story) strangers(payment, orders *process) {
	s.chapter("No certificate, or the wrong one", []string{peers}, "who", "calls", "specified", "measured")
	resp, err := http.Post("http://"+payment.address+"/v1/charge", "", nil)
	s.measured(errors.Is(err, syscall.ECONNRESET), "anybody, in plaintext", "POST "+charge, "a reset", outcome(resp, err))

	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	defer transport.CloseIdleConnections()
	resp, err = (&http.Client{Transport: transport}).Post("https://"+payment.address+"/v1/charge", "", nil)
	s.measured(err != nil, "anybody, over TLS", "POST "+charge, "no handshake", outcome(resp, err))

	const ids = "peer is spiffe://cluster.local/ns/default/sa/payment-service, expected spiffe://cluster.local/ns/default/sa/ledger-service"
	var measured string
	s.ask(orders, "Send", Request{"GET", "http://ledger-service/"}, &measured)
	if strings.Contains(measured, ids) {
		measured = ids // the error also says where, and after how many attempts
	}
	s.measured(measured == ids, orders.name, "GET http://ledger-service/", "no handshake", measured)
}

func outcome(resp *http.Response, err error) string {
	if err != nil {
		return err.Error()[strings.LastIndex(err.Error(), ": ")+2:]
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return told(resp.StatusCode, string(body))
}

// change adds a document and removes it, while the processes run.
func (s *story) change(folder string, orders, admin *process) {
	s.chapter("A document comes and goes", []string{suspended}, "who charges", "specified", "measured", "after")
	request := Request{"POST", charge}
	charges := func(when, want string) {
		var measured string
		start := time.Now()
		for measured != want && time.Since(start) < 10*time.Second && s.err == nil {
			s.ask(orders, "Send", request, &measured)
		}
		s.measured(measured == want, "order-service, "+when, want, measured, time.Since(start).Round(10*time.Millisecond))
	}
	charges("without the document", "200")
	s.fail(publish(folder, suspended))
	charges("with it", denied)
	var other string
	s.ask(admin, "Send", request, &other)
	s.measured(other == "200", "admin-service, with it", "200", other, "at once")
	s.fail(os.Remove(filepath.Join(folder, "mesh.d", suspended)))
	charges("without it again", "200")
}

// rotation has services make calls while certificates change.
func (s *story) rotation(services ...*process) {
	const seconds = 5
	s.chapter(fmt.Sprintf("New certificates every second, for %d seconds", seconds), []string{peers, policies},
		"who", "calls", "failed", "own certificates", "certificates of payment-service", "expired ones")
	loads := make([]Load, len(services))
	errs := make([]error, len(services))
	var working sync.WaitGroup
	for i, p := range services {
		working.Go(func() {
			errs[i] = p.ask("Work", Working{Request{"POST", charge}, seconds * time.Second}, &loads[i])
		})
	}
	working.Wait()
	s.fail(errors.Join(errs...))
	for i, p := range services {
		l := loads[i]
		good := l.Failed == 0 && l.Expired == 0 && l.Own >= seconds-1 && l.Peers >= seconds-1
		s.measured(good, p.name, l.Calls, l.Failed, l.Own, l.Peers, l.Expired)
		if l.Failed > 0 {
			s.row(p.name, l.Failure)
		}
	}
}

// publish puts a document into the folder that the services follow. It is renamed into place, so that nobody reads half of it.
func publish(folder, name string) error {
	data, err := documents.ReadFile("mesh.d/" + name)
	if err != nil {
		return err
	}
	temporary := filepath.Join(folder, name)
	if err := os.WriteFile(temporary, data, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(folder, "mesh.d", name))
}

// certify writes a certificate for each service into a folder of its name, now and every second until it is stopped.
func certify(folder string, services ...string) (stop func() error, err error) {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		return nil, err
	}
	ca.TTL = 4 * time.Second
	write := func() error {
		for _, name := range services {
			if err := ca.WriteFiles(filepath.Join(folder, name), "default", name); err != nil {
				return err
			}
		}
		return nil
	}
	if err := write(); err != nil {
		return nil, err
	}
	stopping, result := make(chan struct{}), make(chan error, 1)
	go func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := write(); err != nil {
					result <- err
					return
				}
			case <-stopping:
				result <- nil
				return
			}
		}
	}()
	return func() error {
		close(stopping)
		return <-result
	}, nil
}
