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
	forgotten  = "30m" // after which a process that has vanished is deregistered

	beatInterval = 2 * time.Second  // between checks that the agent still knows the service
	beatTimeout  = 10 * time.Second // the timeout of each request to the agent
	goneWait     = 2 * time.Second  // how long to wait until a deregistered service is no longer listed
	lateness     = time.Second      // how late watches may notice, since they read once per second
)

// Registration is a service of this process in Consul. It is safe for concurrent use.
type Registration struct {
	client  *api.Client
	service api.AgentServiceRegistration
	beats   time.Duration
	failed  func(error)
	token   any // the token of the registration

	cancel context.CancelFunc
	kept   sync.WaitGroup
	once   sync.Once
	err    error
}

// Register registers a service of this process with the agent of the client, and keeps it registered until Close. A nil client means that
// of [NewClient] for the environment. If the agent loses the service, in a restart or because somebody deregisters it, or if the client's
// token changes, the service is registered again within two seconds. While the agent cannot be reached, Register waits until ctx ends. If the
// agent refuses the service, Register returns an error at once.
//
// The service is described as for the official client, with these defaults:
//   - ID: the name, the host's name and the port.
//   - Check: a check with a TTL of 10 seconds. This process renews it. If it has not been renewed for 30 minutes, Consul removes the
//     service. TTL checks in the description are renewed, too; the agent runs all other checks, such as those over HTTP.
//
// Checks with a TTL are passing for as long as this process runs. After a restart that took the agent longer than the TTL, Consul
// has them as critical until this process has renewed them, within two seconds: with all its instances at that agent, a service
// has no endpoint meanwhile. A longer TTL avoids that.
//
// failed is called on a goroutine of the registration when the agent cannot be reached or refuses something. An error that repeats is
// reported once. nil logs it with slog.
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

// checkService refuses services that Consul would accept although they cannot work.
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

// begin registers the service, and waits for the agent if necessary.
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

// keep renews the checks and checks that the agent still knows the service, until ctx ends.
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

// retryAfter returns how long to wait after a failure. failures is the number of failures before it.
func retryAfter(failures int) time.Duration {
	d := min(250*time.Millisecond<<min(failures, 10), beatInterval)
	return d/2 + rand.N(d/2)
}

// beat renews the checks. It registers the service if the agent does not know it, or knows it with an old token.
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

// noting returns a context for a request, and a value that will hold the token of the request, if it has one. A token from a file may
// change with each request.
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

// Close deregisters the service and waits until callers have noticed. It waits until the agent no longer lists the service, at most two
// seconds, and then one more second, by which the watch of a [Resolver] may be late. Call Close first, and then let the server finish its
// requests and stop. Once ctx ends, Close no longer waits.
//
// Close returns an error if the agent could not be told within two seconds. Only the first call has an effect. Other calls wait for it and
// return the same error.
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
