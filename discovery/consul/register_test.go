package consul_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery/consul"
)

// failures writes down what a registration could not do.
type failures struct {
	mu   sync.Mutex
	list []string
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.list = append(f.list, err.Error())
}

func (f *failures) all() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.list)
}

func register(t *testing.T, f *fake, service api.AgentServiceRegistration) (*consul.Registration, *failures) {
	t.Helper()
	var failed failures
	r, err := consul.Register(t.Context(), f.Client(t), service, failed.add)
	if err != nil {
		t.Fatal(err)
	}
	return r, &failed
}

func TestRegistrationLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		service := api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 80, Tags: []string{"version=v1"}}
		r, failed := register(t, f, service)
		if r.ID() != "web-1" {
			t.Errorf("the ID is %q, want web-1", r.ID())
		}
		f.Lock()
		checks := f.local["web-1"].Checks
		f.Unlock()
		if len(checks) != 1 || checks[0].TTL != "10s" || checks[0].Status != api.HealthPassing || checks[0].DeregisterCriticalServiceAfter != "30m" {
			t.Errorf("the check is %+v, want one with a TTL that is passing from the beginning", checks[0])
		}
		time.Sleep(2 * time.Second)
		want := []string{"PUT service/register", "GET service/web-1", "PUT check/update/service:web-1:1"}
		if got := f.requests(); !slices.Equal(got, want) {
			t.Errorf("requests %q, want %q", got, want)
		}

		f.Change(func() { clear(f.local) }) // the agent has lost it
		time.Sleep(2 * time.Second)
		if got, want := f.requests(), []string{"GET service/web-1", "PUT service/register"}; !slices.Equal(got, want) {
			t.Errorf("requests %q, want %q", got, want)
		}

		f.Change(func() { f.local["web-1"].Checks = nil }) // or only its check
		time.Sleep(2 * time.Second)
		if got, want := f.requests(), append(want[1:], want[0]); !slices.Equal(got, want) {
			t.Errorf("requests %q, want %q", got, want)
		}

		f.Change(func() { f.Down = true; clear(f.local) })
		time.Sleep(time.Minute)
		if n := len(failed.all()); n != 1 {
			t.Errorf("told of %d errors while the agent is down, want one", n)
		}
		f.Change(func() { f.Down = false })
		time.Sleep(2 * time.Second)
		if got := f.requests(); !slices.Contains(got, "PUT service/register") {
			t.Errorf("requests %q of two seconds, want that it registers", got)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Errorf("Close = %v", err)
		}
		if service.Checks != nil || service.Check != nil {
			t.Errorf("the caller's service is now %+v", service)
		}
	})
}

// The agent tells the servers with the token of the registration, which may be deleted once there is another.
func TestRegistrationWithANewToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		client := f.Client(t)
		client.SetHeaders(http.Header{"X-Consul-Token": {"old"}})
		r, err := consul.Register(t.Context(), client, api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 80}, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		renewed := []string{"GET service/web-1", "PUT check/update/service:web-1:1"}
		if got, want := f.requests(), append([]string{"PUT service/register"}, renewed...); !slices.Equal(got, want) {
			t.Errorf("requests %q, want %q", got, want)
		}
		client.SetHeaders(http.Header{"X-Consul-Token": {"new"}})
		time.Sleep(2 * time.Second)
		if got, want := f.requests(), []string{"GET service/web-1", "PUT service/register"}; !slices.Equal(got, want) {
			t.Errorf("requests with a new token %q, want %q", got, want)
		}
		time.Sleep(2 * time.Second)
		if got := f.requests(); !slices.Equal(got, renewed) {
			t.Errorf("later requests %q, want %q", got, renewed)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
}

func TestChecksOfTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		given := &api.AgentServiceCheck{HTTP: "http://127.0.0.1:80/healthz", Interval: "5s"}
		r, _ := register(t, f, api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 80, Check: given,
			Checks: api.AgentServiceChecks{{CheckID: "alive", TTL: "3s"}}})
		f.Lock()
		checks := f.local["web-1"].Checks
		f.Unlock()
		if len(checks) != 2 || checks[0].Status != api.HealthPassing || checks[1].HTTP != given.HTTP || checks[1].Status != "" {
			t.Errorf("checks %+v, want both, and the first passing", checks)
		}
		f.requests()
		time.Sleep(time.Second)
		if got, want := f.requests(), []string{"GET service/web-1", "PUT check/update/alive"}; !slices.Equal(got, want) {
			t.Errorf("requests %q of a third of the TTL, want %q", got, want)
		}
		if err := r.Close(t.Context()); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
}

func TestCloseWaitsUntilItIsGone(t *testing.T) {
	for _, test := range []struct {
		name       string
		slow, want time.Duration
	}{
		{"gone at once", 0, time.Second},
		{"gone after a while", 1500 * time.Millisecond, 2500 * time.Millisecond},
		{"not gone", time.Hour, 3 * time.Second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(t)
				f.slow = test.slow
				other, _ := register(t, f, api.AgentServiceRegistration{ID: "web-2", Name: "web", Port: 81})
				r, _ := register(t, f, api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 80})
				f.requests()
				began := time.Now()
				if err := r.Close(t.Context()); err != nil {
					t.Errorf("Close = %v", err)
				}
				if took := time.Since(began); took != test.want {
					t.Errorf("Close took %v, want %v", took, test.want)
				}
				if got := f.requests(); !slices.Contains(got, "PUT service/deregister/web-1") {
					t.Errorf("requests %q, want that it deregisters", got)
				}
				if err := r.Close(t.Context()); err != nil || len(f.requests()) != 0 {
					t.Errorf("the second Close = %v and does something, want nothing", err)
				}
				f.Lock()
				f.slow = 0
				f.Unlock()
				if err := other.Close(t.Context()); err != nil {
					t.Errorf("Close = %v", err)
				}
				time.Sleep(2 * time.Hour) // for the fake to catch up
			})
		})
	}
}

func TestCloseWithoutAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		r, _ := register(t, f, api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 80})
		f.Change(func() { f.Down = true })
		began := time.Now()
		err := r.Close(t.Context())
		if err == nil || !strings.Contains(err.Error(), `deregister service "web-1"`) {
			t.Errorf("Close = %v, want that it could not deregister", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("Close took %v, want at most 2 s", took)
		}
		again := r.Close(t.Context())
		if again != err {
			t.Errorf("the second Close = %v, want %v", again, err)
		}
		f.Change(func() { f.Down = false })
		gone, _ := register(t, f, api.AgentServiceRegistration{ID: "web-1", Name: "web", Port: 80})
		f.Change(func() { clear(f.local); f.services["web"] = nil })
		if err := gone.Close(t.Context()); err != nil {
			t.Errorf("Close of what the agent does not know = %v, want nil", err)
		}
	})
}

func TestRegisterWaitsForTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.Change(func() { f.Down = true })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := consul.Register(ctx, f.Client(t), api.AgentServiceRegistration{Name: "web", Port: 80}, func(error) {})
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "EOF") {
			t.Errorf("Register = %v, want that the time is up, and why", err)
		}
		time.AfterFunc(time.Minute, func() { f.Change(func() { f.Down = false }) })
		r, failed := register(t, f, api.AgentServiceRegistration{Name: "web", Port: 80})
		if n := len(failed.all()); n != 1 {
			t.Errorf("told of %d errors, want one", n)
		}
		if !strings.HasPrefix(r.ID(), "web-") || !strings.HasSuffix(r.ID(), "-80") {
			t.Errorf("the ID is %q, want the name, the host's and the port", r.ID())
		}
		if err := r.Close(t.Context()); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
}

func TestRegisterRefuses(t *testing.T) {
	native := &api.AgentServiceConnect{Native: true}
	for _, test := range []struct {
		service api.AgentServiceRegistration
		want    string
	}{
		{api.AgentServiceRegistration{}, `the name of a service is ""`},
		{api.AgentServiceRegistration{Name: "my web", Port: 80}, `the name of a service is "my web", want letters`},
		{api.AgentServiceRegistration{Name: "web", Connect: native}, "has Connect.Native and no Port"},
		{
			api.AgentServiceRegistration{Name: "web", Port: 80, Connect: &api.AgentServiceConnect{Native: true, SidecarService: &api.AgentServiceRegistration{}}},
			"has Connect.Native and Connect.SidecarService",
		},
		{api.AgentServiceRegistration{Name: "web", Port: 80, Check: &api.AgentServiceCheck{TTL: "10"}}, `the TTL of its check is "10"`},
		{api.AgentServiceRegistration{Name: "web", Port: 80, Check: &api.AgentServiceCheck{TTL: "1ms"}}, `the TTL of its check is "1ms"`},
		{api.AgentServiceRegistration{Name: "web", Port: 80, Namespace: "shop"}, "400"}, // by an agent without namespaces
	} {
		t.Run(test.want, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				_, err := consul.Register(t.Context(), newFake(t).Client(t), test.service, nil)
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("Register = %v, want an error with %q", err, test.want)
				}
			})
		})
	}
}

func ExampleRegister() {
	listener, err := net.Listen("tcp", ":8080")
	if err != nil {
		fmt.Println(err)
		return
	}
	server := &http.Server{}
	go server.Serve(listener)

	ctx := context.Background()
	registration, err := consul.Register(ctx, nil, api.AgentServiceRegistration{
		Name: "web",
		Port: 8080,
		Tags: []string{"version=v1"},
	}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}

	// ... until the process is asked to end. First no new calls, then an end to those that are under way.
	if err := registration.Close(ctx); err != nil {
		fmt.Println(err)
	}
	if err := server.Shutdown(ctx); err != nil {
		fmt.Println(err)
	}
}
