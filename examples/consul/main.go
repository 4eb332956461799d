// Command consul runs three services with HashiCorp Consul alone, and no sidecar: web calls orders, and orders calls payment.
//
// The agent is real. It knows the endpoints (discovery/consul), issues the certificates (tlsid/consul), says who may call whom
// (service-intentions, policy/consul), and hands out the documents (policy/consulkv), which are published as by "mesh push".
// Then it is killed, and the services continue.
//
//	go run ./examples/consul
//
// Consul must be installed: otherwise this program says how to get it.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consulkv"
)

const howTo = `This example needs Consul, and there is no program "consul" in PATH. It is a single file:

    https://developer.hashicorp.com/consul/install

Put it into a folder of PATH, and run this again. It starts its own agent, in memory, and touches no other.`

func main() {
	log.SetFlags(0)
	program, err := exec.LookPath("consul")
	if err != nil {
		fmt.Println(howTo)
		return
	}
	slog.SetDefault(slog.New(slog.DiscardHandler)) // the services would log that the agent is gone
	// A limit for the case that something hangs. Nothing here takes nearly as long.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := show(ctx, program); err != nil {
		log.Fatal(err)
	}
	fmt.Println("Everything was as expected.")
}

func show(ctx context.Context, program string) (err error) {
	a, err := startAgent(ctx, program)
	if err != nil {
		return err
	}
	defer a.stop()
	s := &story{ctx: ctx, client: a.client}
	defer func() { err = errors.Join(err, s.stop()) }()
	for _, step := range []func() error{s.begin, s.canary, s.intention, s.scale} {
		if err := step(); err != nil {
			return err
		}
	}
	a.stop()
	return s.alone()
}

// story has the services that run.
type story struct {
	ctx     context.Context
	client  *api.Client
	web     *service
	v2      *service // of orders
	running []*service
}

const call = "http://orders/"

// begin publishes the documents and the intentions, and starts the services.
func (s *story) begin() error {
	if err := s.publish(0); err != nil {
		return err
	}
	if err := errors.Join(s.allow("orders", "web"), s.allow("payment", "orders")); err != nil {
		return err
	}
	for _, each := range []struct{ name, version, next string }{
		{"payment", "v1", ""}, {"orders", "v1", "http://payment/"}, {"orders", "v2", "http://payment/"}, {"web", "v1", ""},
	} {
		started, err := start(s.ctx, s.client, each.name, each.version, answer(each.name+" "+each.version, each.next))
		if err != nil {
			return fmt.Errorf("%s %s: %w", each.name, each.version, err)
		}
		s.running = append(s.running, started)
		switch each.name + each.version {
		case "webv1":
			s.web = started
		case "ordersv2":
			s.v2 = started
		}
	}
	return s.until("three services, with certificates of Connect", s.web, call, "orders v1 -> payment v1")
}

// canary moves all calls to the new version of orders with one write to Consul.
func (s *story) canary() error {
	if err := s.publish(100); err != nil {
		return err
	}
	return s.until("documents say that orders v2 gets all calls", s.web, call, "orders v2 -> payment v1")
}

// intention takes the right to call payment away from orders, and gives it back. What no intention allows is denied.
func (s *story) intention() error {
	if got := s.web.get(s.ctx, "http://payment/"); got != "403 RBAC: access denied" {
		return fmt.Errorf("web calls payment, which no intention allows: %s", got)
	}
	fmt.Println("web may not call payment: 403 RBAC: access denied")
	if err := s.allow("payment", "nobody"); err != nil {
		return err
	}
	if err := s.until("the intention of payment says that orders may not", s.web, call, "orders v2 -> 403 RBAC: access denied"); err != nil {
		return err
	}
	if err := s.allow("payment", "orders"); err != nil {
		return err
	}
	return s.until("and that it may again", s.web, call, "orders v2 -> payment v1")
}

// scale stops the new version of orders while calls are made. The documents send all calls to it, so they are changed first.
func (s *story) scale() error {
	if err := s.publish(0); err != nil {
		return err
	}
	if err := s.until("documents say that orders v1 gets all calls", s.web, call, "orders v1 -> payment v1"); err != nil {
		return err
	}
	if err := s.v2.stop(s.ctx); err != nil {
		return err
	}
	s.running = slices.DeleteFunc(s.running, func(each *service) bool { return each == s.v2 })
	return s.until("orders v2 deregisters and ends", s.web, call, "orders v1 -> payment v1")
}

// alone makes calls without Consul.
func (s *story) alone() error {
	for range 20 {
		if got := s.web.get(s.ctx, call); got != "orders v1 -> payment v1" {
			return fmt.Errorf("without Consul, a call got %s", got)
		}
	}
	fmt.Println("the agent is killed: 20 of 20 calls got orders v1 -> payment v1")
	return nil
}

// stop ends all services. They cannot deregister, because the agent is gone, so they do not wait long.
func (s *story) stop() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), 10*time.Second)
	defer cancel()
	errs := make([]error, len(s.running))
	var stopping sync.WaitGroup
	for i, each := range s.running {
		stopping.Go(func() { errs[i] = each.stop(ctx) })
	}
	stopping.Wait()
	return errors.Join(errs...)
}

const documents = `
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: orders}
spec:
  host: orders
  subsets:
  - {name: v1, labels: {version: v1}}
  - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: orders}
spec:
  hosts: [orders]
  http:
  - timeout: 5s
    retries: {attempts: 2, retryOn: "connect-failure,refused-stream"}
    route:
    - {destination: {host: orders, subset: v1}, weight: V1}
    - {destination: {host: orders, subset: v2}, weight: V2}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
`

// publish writes the documents, which send a percentage of the calls to orders to its new version. "mesh push -prefix
// mesh/shop mesh.d" does the same.
func (s *story) publish(percent int) error {
	text := strings.NewReplacer("V1", fmt.Sprint(100-percent), "V2", fmt.Sprint(percent)).Replace(documents)
	store := &consulkv.Store{Prefix: prefix, Client: s.client}
	_, err := store.Push(s.ctx, []policy.Source{{Name: "orders.yaml", Data: []byte(text)}})
	return err
}

// allow lets one service call another, and nobody else. "consul config write" does the same.
func (s *story) allow(destination, source string) error {
	_, _, err := s.client.ConfigEntries().Set(&api.ServiceIntentionsConfigEntry{
		Kind:    api.ServiceIntentions,
		Name:    destination,
		Sources: []*api.SourceIntention{{Name: source, Action: api.IntentionActionAllow}},
	}, nil)
	return err
}

// until makes calls until ten in a row get the wanted answer, and prints how long that took.
func (s *story) until(what string, caller *service, url, want string) error {
	began := time.Now()
	got := ""
	for row := 0; row < 10; row++ {
		if got = caller.get(s.ctx, url); got == want {
			continue
		}
		row = -1
		if err := sleep(s.ctx, 10*time.Millisecond); err != nil {
			return fmt.Errorf("%s: the last call got %q, want %q: %w", what, got, want, err)
		}
	}
	fmt.Printf("%s: %s (after %v)\n", what, got, time.Since(began).Round(time.Millisecond))
	return nil
}
