package engine

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// clusterConfig is everything that decides how a target is treated. A cluster outlives a reload that does not change it.
type clusterConfig struct {
	*treatment
	service    discovery.Service
	entry      *policy.ServiceEntry // where the endpoints are, if a document says so
	documented bool                 // some document names the host
	peers      *policy.PeerRules    // which connections the endpoints accept
}

// treatment is the part that many targets have in common. They share it: see Engine.alikeLocked.
type treatment struct {
	policy.Cluster

	circuit    breaker.Config
	hasCircuit bool
	budget     retry.BudgetConfig
	rate       limit.RateConfig
	bodyIdle   time.Duration
}

func (e *Engine) clusterConfig(plan *policy.Plan, target route.Target) clusterConfig {
	h := plan.Host(target.Host)
	t := &treatment{Cluster: e.cluster(plan, target)}
	t.budget = t.RetryBudget
	if p := e.protection(plan, h); p != nil {
		if p.Circuit != nil {
			t.circuit, t.hasCircuit = *p.Circuit, true
		}
		if p.RetryBudget != nil {
			t.budget = *p.RetryBudget
		}
		t.rate = p.RateLimit
		t.bodyIdle = p.BodyIdle
		t.Balancer = p.balance(t.Balancer)
	}
	config := clusterConfig{treatment: t, service: h.Service, entry: h.Entry, documented: h.Known || h.Hidden}
	if h.Entry != nil {
		config.peers = plan.Peers(h.Entry.Namespace)
	} else if h.Service.Namespace != "" {
		config.peers = plan.Peers(h.Service.Namespace)
	}
	return config
}

// equal reports whether a cluster can stay as it is.
func (c *clusterConfig) equal(other *clusterConfig) bool {
	return c.treatment.equal(other.treatment) && c.service == other.service && c.entry.Equal(other.entry) &&
		c.documented == other.documented && c.peers.Equal(other.peers)
}

func (t *treatment) equal(other *treatment) bool {
	return t == other || t.Cluster.Equal(&other.Cluster) && t.circuit == other.circuit && t.hasCircuit == other.hasCircuit &&
		t.budget == other.budget && t.rate == other.rate && t.bodyIdle == other.bodyIdle
}

// alikeLocked returns a recent treatment that is equal to t, or t itself: there may be thousands of targets, but few ways to treat them.
func (e *Engine) alikeLocked(t *treatment) *treatment {
	for _, other := range e.alike {
		if other != nil && other.equal(t) {
			return other
		}
	}
	e.alike[e.alikeNext%len(e.alike)] = t
	e.alikeNext++
	return t
}

// timesAnswers reports whether it matters how long the endpoints take to answer.
func (c *clusterConfig) timesAnswers() bool {
	return c.Balancer.Algorithm == balancer.PeakEWMA || c.circuit.SlowCall > 0
}

// Protection holds settings that no document can express: see mesh.Protection.
type Protection struct {
	Circuit           *breaker.Config
	RetryBudget       *retry.BudgetConfig
	RetryAfter        bool
	StopNestedRetries bool
	RateLimit         limit.RateConfig
	BodyIdle          time.Duration
	Balancing         *balancer.Config
}

// balance returns how endpoints are chosen, given what the documents say of it.
func (p *Protection) balance(documents balancer.Config) balancer.Config {
	if p.Balancing == nil || documents.Algorithm != balancer.LeastRequest {
		return documents
	}
	config := *p.Balancing
	if reflect.DeepEqual(config.Locality, balancer.Locality{}) {
		config.Locality = documents.Locality
	}
	config.SlowStart = cmp.Or(config.SlowStart, documents.SlowStart)
	config.PanicFraction = cmp.Or(config.PanicFraction, documents.PanicFraction)
	return config
}

// HostProtection is a Protection for the named hosts; none means all.
type HostProtection struct {
	Hosts []string
	Protection
}

// protection returns the last of the protections that apply to h, nil if there is none.
func (e *Engine) protection(plan *policy.Plan, h policy.HostPlan) *Protection {
	for i := range slices.Backward(e.config.Protections) {
		p := &e.config.Protections[i] // not a copy, which the caller would keep
		if len(p.Hosts) == 0 || slices.ContainsFunc(p.Hosts, func(name string) bool {
			return plan.Host(name).Service.Host == h.Service.Host
		}) {
			return &p.Protection
		}
	}
	return nil
}

// checkProtections checks the settings of the protections, so that a mistake is an error from New and not from a call.
func checkProtections(protections []HostProtection) error {
	for _, p := range protections {
		var errs [6]error
		if p.Circuit != nil {
			errs[0] = p.Circuit.Validate()
		}
		if p.RetryBudget != nil {
			errs[1] = p.RetryBudget.Validate()
		}
		errs[2] = p.RateLimit.Validate()
		if p.BodyIdle < 0 {
			errs[3] = errors.New("BodyIdle is negative")
		}
		if b := p.Balancing; b != nil {
			if errs[5] = b.Validate(); errs[5] == nil && (b.Algorithm == balancer.RingHash || b.Algorithm == balancer.Maglev) {
				errs[5] = fmt.Errorf("balancing is %v: have a DestinationRule say what is hashed", b.Algorithm)
			}
		}
		for _, name := range p.Hosts {
			if !isHost(name) {
				errs[4] = fmt.Errorf("%q is not a host: name a service, as in \"orders\", or no host for all", name)
			}
		}
		if err := errors.Join(errs[:]...); err != nil {
			return fmt.Errorf("mesh: protection of %s: %w", cmp.Or(strings.Join(p.Hosts, ", "), "all hosts"), err)
		}
	}
	return nil
}

// isHost reports whether name, with or without a port, can be the host of a call.
func isHost(name string) bool {
	if host, port, err := net.SplitHostPort(name); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			return false
		}
		name = host
	}
	if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
		return true
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(field.ASCII(name), "."), ".") {
		if label == "" || strings.ContainsFunc(label, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
		}) {
			return false
		}
	}
	return true
}
