package mesh_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/rawtest"
	"github.com/nosidecar/mesh/policy/fault"
	"github.com/nosidecar/mesh/policy/file"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/retry"
	"github.com/nosidecar/mesh/timeout"
	"github.com/nosidecar/mesh/tlsid"
)

// settings is a struct of settings of a layer.
type settings interface{ Validate() error }

// TestZeroSettingsAreValid checks that the zero value of every setting is a default.
func TestZeroSettingsAreValid(t *testing.T) {
	for name, zero := range map[string]settings{
		"retry.Config": retry.Config{}, "retry.BudgetConfig": retry.BudgetConfig{}, "retry.LimiterConfig": retry.LimiterConfig{},
		"timeout.Config": timeout.Config{}, "breaker.Config": breaker.Config{}, "breaker.OutlierConfig": breaker.OutlierConfig{},
		"balancer.Config": balancer.Config{}, "limit.PoolConfig": limit.PoolConfig{}, "limit.RateConfig": limit.RateConfig{},
		"fault.Config": fault.Config{},
	} {
		if err := zero.Validate(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestInvalidSettings checks that settings that cannot be honoured are refused in the same way in every layer: by Validate, by
// the constructor, and by a literal when it is first used and each time after. The error names package, field and value.
func TestInvalidSettings(t *testing.T) {
	base := roundTripper(func(*http.Request) (*http.Response, error) { return nil, errors.New("sent") })
	call := func(rt http.RoundTripper) func() error {
		return func() error {
			_, err := rt.RoundTrip(httptest.NewRequest("GET", "http://service/", nil))
			return err
		}
	}
	serve := func(h http.Handler) func() error {
		return func() error {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
			if w.Code != http.StatusInternalServerError {
				return nil
			}
			return errors.New(strings.TrimSpace(w.Body.String()))
		}
	}
	made := func(make func() error) func() error { return make }
	circuit, pool, rate := breaker.Config{Probes: -1}, limit.PoolConfig{MaxRequests: -1}, limit.RateConfig{PerSecond: -1}
	outlier := breaker.OutlierConfig{ConsecutiveGateway: -1}
	retries, budget, limiter := retry.Config{Retries: -1}, retry.BudgetConfig{Window: -1}, retry.LimiterConfig{MaxRetries: -1}
	picks, faults, limits := balancer.Config{PanicFraction: 2}, fault.Config{Delay: fault.Delay{Fraction: 2}}, timeout.Config{Request: -1}
	for _, tt := range []struct {
		want     string
		settings settings // nil: there is no struct of settings
		uses     []func() error
	}{
		{"retry: Config.Retries is -1, want", retries, []func() error{
			made(func() error { _, err := retry.NewPolicy(retries); return err }),
			call(&retry.Transport{Base: base, Config: retries}),
		}},
		{"retry: BudgetConfig.Window is -1ns, want", budget, []func() error{
			made(func() error { _, err := retry.NewBudget(budget); return err }),
			call(&retry.Transport{Base: base, Budget: budget}),
		}},
		{"retry: LimiterConfig.MaxRetries is -1, want", limiter, []func() error{
			made(func() error { _, err := retry.NewLimiter(limiter, nil); return err }),
			call(&retry.Transport{Base: base, Limiter: limiter}),
		}},
		{"timeout: Config.Request is -1ns, want", limits, []func() error{
			call(&timeout.Transport{Base: base, Config: limits}),
		}},
		{"breaker: Config.Probes is -1, want", circuit, []func() error{
			made(func() error { _, err := breaker.New(circuit, nil); return err }),
			made(func() error { _, err := (&breaker.Group{Config: circuit}).Allow("service"); return err }),
			call(&breaker.Transport{Base: base, Config: circuit}),
			serve(&breaker.Handler{Config: circuit}),
		}},
		{"breaker: OutlierConfig.ConsecutiveGateway is -1, want", outlier, []func() error{
			made(func() error { _, err := breaker.NewOutlier(outlier, nil); return err }),
		}},
		{"balancer: Config.PanicFraction is 2, want", picks, []func() error{
			made(func() error { _, err := balancer.New(picks, balancer.Hooks{}); return err }),
			call(&balancer.Transport{Resolver: &discovery.Memory{}, Config: picks}),
		}},
		{"limit: PoolConfig.MaxRequests is -1, want", pool, []func() error{
			made(func() error { _, err := limit.NewPool(pool); return err }),
			call(&limit.Transport{Base: base, Config: pool}),
			serve(&limit.Handler{MaxRequests: -1}),
		}},
		{"limit: RateConfig.PerSecond is -1, want", rate, []func() error{
			made(func() error { _, err := limit.NewRate(rate); return err }),
			call(&limit.RateTransport{Base: base, Config: rate}),
			serve(&limit.Handler{Rate: rate}),
		}},
		{"fault: Config.Delay.Fraction is 2, want", faults, []func() error{
			call(&fault.Transport{Base: base, Config: faults}),
		}},
		{"discovery: DNS.Interval is -1ns, want", nil, []func() error{
			made(func() error { return first(t, discovery.DNS{Interval: -1}) }),
		}},
		{"tlsid: Files.Interval is -1ns, want", nil, []func() error{
			made(func() error {
				for _, err := range (tlsid.Files{Dir: "certs", Interval: -1}).Watch(t.Context()) {
					return err
				}
				return nil
			}),
		}},
		{"tlsid: ListenerConfig.HandshakeTimeout is -1ns, want", nil, []func() error{
			made(func() error {
				inner := rawtest.Listen(t)
				ln := tlsid.NewListener(inner, tlsid.ListenerConfig{HandshakeTimeout: -time.Nanosecond})
				defer ln.Close()
				_, err := ln.Accept()
				return err
			}),
		}},
	} {
		uses := tt.uses
		if tt.settings != nil {
			uses = append(uses, tt.settings.Validate)
		}
		for i, use := range uses {
			for range 2 {
				if err := use(); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
					t.Errorf("use %d: %v, want %q", i, err, tt.want)
				}
			}
		}
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (rt roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return rt(req) }

// first returns the first error of a watch.
func first(t *testing.T, r discovery.Resolver) error {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, err := range r.Watch(ctx, discovery.Service{Host: "service.example.com"}) {
		return err
	}
	return nil
}

// A service that is started in another folder than it was written in is told where it is.
func TestFolderThatIsElsewhere(t *testing.T) {
	at := t.TempDir()
	t.Chdir(at)
	for name, option := range map[string]mesh.Option{
		"read once": mesh.WithPolicyDir("mesh.d"),
		"followed":  mesh.WithPolicyFeed(file.New("mesh.d")),
	} {
		m, err := mesh.New(t.Context(), option)
		if err == nil {
			m.Close()
		}
		if want := "mesh.d: no such file or directory; put it there, or correct the path, which is relative to " + at; err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
}
