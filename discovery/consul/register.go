package consul

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/consul"
	"github.com/nosidecar/mesh/internal/pause"
)

const (
	defaultTTL = 10 * time.Second
	forgotten  = "30m" // after which a process that is gone without a word is deregistered

	beatInterval = 2 * time.Second  // between looks whether the agent still knows the service
	beatTimeout  = 10 * time.Second // of each request to the agent
	goneWait     = 2 * time.Second  // until a service that was deregistered is no longer listed
	lateness     = time.Second      // of watches that have read within the last second
)

// Registration is a service of this process in Consul. It is safe for concurrent use.
type Registration struct {
	client  *api.Client
	service api.AgentServiceRegistration
	beats   time.Duration
	failed  func(error)
	token   any // that it was registered with

	cancel context.CancelFunc
	kept   sync.WaitGroup
	once   sync.Once
	err    error
}

// Register registers a service of this process with the agent of the client, nil meaning that of [NewClient] for the environment,
// and keeps it registered until Close: an agent that has lost it, by a restart or by a hand, has it again within two seconds, and so
// has one that holds it with a token that the client does not send any more. It waits for an agent that cannot be reached until ctx ends; what the agent refuses is an error at once.
//
// The service is as the official client describes it, with these defaults:
//   - ID: the name, the host's name and the port.
//   - Check: one with a TTL of 10 seconds, which this process renews, and which removes the service from Consul when it has not been
//     renewed for 30 minutes. A check with a TTL of yours is renewed, too; any other, such as one over HTTP, the agent makes.
//
// Checks with a TTL are passing for as long as this process runs.
//
// failed is called, on a goroutine of the registration, when the agent cannot be reached or refuses something, once for the same
// error in a row. nil logs it with slog.
func Register(ctx context.Context, client *api.Client, service api.AgentServiceRegistration, failed func(error)) (*Registration, error) {
	if client == nil {
		var err error
		if client, err = NewClient(nil); err != nil {
			return nil, err
		}
	}
	if failed == nil {
		failed = func(err error) { slog.Warn("registration with Consul", "error", err) }
	}
	if err := checkService(&service); err != nil {
		return nil, err
	}
	r := &Registration{client: client, failed: failed, beats: beatInterval}
	r.service = complete(service)
	for _, c := range r.service.Checks {
		if c.TTL == "" {
			continue
		}
		ttl, err := time.ParseDuration(c.TTL)
		if err != nil || ttl < time.Second {
			return nil, fmt.Errorf("consul: service %q: the TTL of its check is %q, want a duration of 1s or more", service.Name, c.TTL)
		}
		r.beats = min(r.beats, ttl/3)
	}
	if err := r.begin(ctx); err != nil {
		return nil, err
	}
	keep, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.kept.Go(func() { r.keep(keep) })
	return r, nil
}

// checkService refuses what Consul takes, though it cannot work.
func checkService(s *api.AgentServiceRegistration) error {
	native := s.Connect != nil && s.Connect.Native
	switch {
	case !isName(s.Name):
		return fmt.Errorf("consul: the name of a service is %q, want letters, digits, - and _: it is part of the names that callers use", s.Name)
	case native && s.Connect.SidecarService != nil:
		return fmt.Errorf("consul: service %q has Connect.Native and Connect.SidecarService, want one of them", s.Name)
	case native && s.Port == 0 && len(s.Ports) == 0:
		return fmt.Errorf("consul: service %q has Connect.Native and no Port, which it needs", s.Name)
	}
	return nil
}

// complete returns a copy of the service with the defaults in place, and all its checks in Checks.
func complete(s api.AgentServiceRegistration) api.AgentServiceRegistration {
	if s.ID == "" {
		host, _ := os.Hostname()
		s.ID = s.Name + "-" + cmp.Or(host, "host")
		if s.Port != 0 {
			s.ID += "-" + strconv.Itoa(s.Port)
		}
	}
	given := slices.Clone(s.Checks)
	if s.Check != nil {
		given = append(given, s.Check)
	}
	if len(given) == 0 {
		given = append(given, &api.AgentServiceCheck{TTL: defaultTTL.String(), DeregisterCriticalServiceAfter: forgotten})
	}
	s.Check, s.Checks = nil, nil
	for i, c := range given {
		own := *c
		if own.TTL != "" {
			own.CheckID = cmp.Or(own.CheckID, "service:"+s.ID+":"+strconv.Itoa(i+1))
			own.Status = api.HealthPassing // until the first renewal it would be critical
		}
		s.Checks = append(s.Checks, &own)
	}
	return s
}

// ID returns the ID of the service, which is unique among those of its agent.
func (r *Registration) ID() string { return r.service.ID }

// begin registers the service, and waits for the agent if it has to.
func (r *Registration) begin(ctx context.Context) error {
	for failures, told := 0, ""; ; failures++ {
		err := r.register(ctx)
		status := consul.Status(err)
		if err == nil || status >= 400 && status < 500 && status != http.StatusTooManyRequests {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		if text := err.Error(); text != told {
			told = text
			r.failed(err)
		}
		if again := pause.For(ctx, retryAfter(failures)); again != nil {
			return errors.Join(again, err)
		}
	}
}

// keep renews the checks and finds out whether the agent still knows the service, until ctx ends.
func (r *Registration) keep(ctx context.Context) {
	wait := func(failures int) time.Duration {
		if failures > 0 {
			return retryAfter(failures - 1)
		}
		return r.beats*9/10 + rand.N(r.beats/10+1) // not later, for TTLs
	}
	failures, told := 0, ""
	for pause.For(ctx, wait(failures)) == nil {
		err := r.beat(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			failures, told = 0, ""
			continue
		}
		failures++
		if text := err.Error(); text != told {
			told = text
			r.failed(err)
		}
	}
}

// retryAfter returns how long to wait after a failure that so many came before: soon enough for an agent that is back to have its
// services.
func retryAfter(failures int) time.Duration {
	d := min(250*time.Millisecond<<min(failures, 10), beatInterval)
	return d/2 + rand.N(d/2)
}

// beat renews the checks. It registers the service if the agent does not know it, or knows it with a token that is not in use any more.
func (r *Registration) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	options := (&api.QueryOptions{}).WithContext(ctx)
	noted, token := noting(ctx)
	_, _, err := r.client.Agent().Service(r.service.ID, (&api.QueryOptions{}).WithContext(noted))
	if err == nil && token.Load() != r.token {
		return r.register(ctx)
	}
	for _, c := range r.service.Checks {
		if err == nil && c.TTL != "" {
			err = r.client.Agent().UpdateTTLOpts(c.CheckID, "", api.HealthPassing, options)
		}
	}
	if consul.Status(err) == http.StatusNotFound {
		return r.register(ctx)
	}
	return r.explain("renew", err)
}

func (r *Registration) register(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	service := r.service // which the client may change
	noted, token := noting(ctx)
	err := r.client.Agent().ServiceRegisterOpts(&service, api.ServiceRegisterOpts{}.WithContext(noted))
	if err == nil {
		r.token = token.Load()
	}
	return r.explain("register", err)
}

// noting returns a context for a request, and where the token will be that it is sent with, if any: that of a file changes.
func noting(ctx context.Context) (context.Context, *atomic.Value) {
	token := new(atomic.Value)
	return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaderField: func(key string, values []string) {
		if strings.EqualFold(key, "X-Consul-Token") && len(values) > 0 {
			token.Store(values[0])
		}
	}}), token
}

func (r *Registration) explain(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("consul: %s service %q: %w", what, r.service.ID, err)
}

// Close deregisters the service and waits until callers have taken notice: until the agent no longer lists it, or two seconds, and
// then for the second by which the watch of a [Resolver] may be late. Close it first, then let the server finish its requests and
// stop. Once ctx ends, Close no longer waits.
//
// It is an error if the agent could not be told within two seconds. Only the first call does something; others wait for it and
// return the same.
func (r *Registration) Close(ctx context.Context) error {
	r.once.Do(func() {
		r.cancel()
		r.kept.Wait()
		r.err = r.end(ctx)
	})
	return r.err
}

func (r *Registration) end(ctx context.Context) error {
	limited, cancel := context.WithTimeout(ctx, goneWait)
	defer cancel()
	for failures := 0; ; failures++ {
		err := r.client.Agent().ServiceDeregisterOpts(r.service.ID, (&api.QueryOptions{}).WithContext(limited))
		if err == nil || consul.Status(err) == http.StatusNotFound {
			break
		}
		if pause.For(limited, retryAfter(failures)) != nil {
			return r.explain("deregister", err)
		}
	}
	resolver, err := New(r.client, Config{Places: []Place{{Namespace: r.service.Namespace, Partition: r.service.Partition}}})
	if err != nil {
		return err
	}
	for endpoints, err := range resolver.Watch(limited, discovery.Service{Host: r.service.Name}) {
		if errors.Is(err, discovery.ErrUnknownService) || err == nil && !slices.ContainsFunc(endpoints, r.is) {
			break
		}
	}
	_ = pause.For(ctx, lateness)
	return nil
}

// is reports whether an endpoint is that of the service. Other nodes may have services with the same ID.
func (r *Registration) is(e discovery.Endpoint) bool {
	s := e.Record.(*api.ServiceEntry).Service
	return s.ID == r.service.ID && s.Address == r.service.Address && s.Port == r.service.Port
}
