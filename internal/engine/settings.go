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

// clusterConfig is everything that decides how a target is treated. A cluster outlives a reload that leaves it as it is.
type clusterConfig struct {
	*policy.Cluster // shared by targets that are treated alike: see Engine.alikeLocked
	service         discovery.Service
	entry           *policy.ServiceEntry // where the endpoints are, if a document says so

	documented bool // some document names the host

	peers       *policy.PeerRules // which connections the endpoints accept
	trustDomain string            // of the identities the endpoints have

	circuit    breaker.Config
	hasCircuit bool
	budget     retry.BudgetConfig
	rate       limit.RateConfig
	bodyIdle   time.Duration
}

func (e *Engine) clusterConfig(plan *policy.Plan, target route.Target) clusterConfig {
	h := plan.Host(target.Host)
	documents := e.cluster(plan, target)
	config := clusterConfig{Cluster: &documents, service: h.Service, entry: h.Entry, documented: h.Known}
	if h.Entry != nil {
		config.peers = plan.Peers(h.Entry.Namespace)
	} else if h.Service.Namespace != "" {
		config.peers = plan.Peers(h.Service.Namespace)
	}
	config.trustDomain = e.trustDomain
	config.budget = config.RetryBudget
	if p := e.protection(plan, h); p != nil {
		if p.Circuit != nil {
			config.circuit, config.hasCircuit = *p.Circuit, true
		}
		if p.RetryBudget != nil {
			config.budget = *p.RetryBudget
		}
		config.rate = p.RateLimit
		config.bodyIdle = p.BodyIdle
		config.Balancer = p.balance(config.Balancer)
	}
	return config
}

// equal reports whether a cluster can stay as it is.
func (c *clusterConfig) equal(other *clusterConfig) bool {
	return (c.Cluster == other.Cluster || c.Cluster.Equal(other.Cluster)) && c.service == other.service && c.entry.Equal(other.entry) &&
		c.documented == other.documented && c.peers.Equal(other.peers) && c.trustDomain == other.trustDomain &&
		c.circuit == other.circuit && c.hasCircuit == other.hasCircuit && c.budget == other.budget &&
		c.rate == other.rate && c.bodyIdle == other.bodyIdle
}

// alikeLocked returns what was kept before if it is equal to c, so that targets that are treated alike share it: there may be
// thousands of them, and few ways to treat them.
func (e *Engine) alikeLocked(c *policy.Cluster) *policy.Cluster {
	for _, other := range e.alike {
		if other != nil && other.Equal(c) {
			return other
		}
	}
	e.alike[e.alikeNext%len(e.alike)] = c
	e.alikeNext++
	return c
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
	for _, p := range slices.Backward(e.config.Protections) {
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
