package consul

import (
	"maps"
	"regexp"
	"slices"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
)

// Resolver is a service-resolver entry. It says which instances get the calls to a service, which may be those of another service.
type Resolver struct {
	DefaultSubset        string              `yaml:"DefaultSubset"`
	Subsets              map[string]Subset   `yaml:"Subsets"`
	Redirect             *Redirect           `yaml:"Redirect"`
	Failover             map[string]Failover `yaml:"Failover"`
	PrioritizeByLocality yamldoc.Any         `yaml:"PrioritizeByLocality" mesh:"refused: needs Consul Enterprise: remove it"`
	ConnectTimeout       yamldoc.Duration    `yaml:"ConnectTimeout"`
	RequestTimeout       yamldoc.Duration    `yaml:"RequestTimeout"`
	LoadBalancer         *LoadBalancer       `yaml:"LoadBalancer"`

	predicates map[string]Predicate // of the subsets
}

// Predicate reports whether an endpoint is in a subset.
type Predicate func(*discovery.Endpoint) bool

// Subset is a part of the instances of a service.
type Subset struct {
	Filter      string `yaml:"Filter"`
	OnlyPassing bool   `yaml:"OnlyPassing"`
}

// Redirect names the target that calls go to in place of the service.
type Redirect struct {
	Service       string `yaml:"Service"`
	ServiceSubset string `yaml:"ServiceSubset"`
	Scope
	Datacenter    string      `yaml:"Datacenter"`
	Peer          string      `yaml:"Peer" mesh:"refused: peers are not enforced yet: remove it"`
	SamenessGroup yamldoc.Any `yaml:"SamenessGroup" mesh:"refused: needs Consul Enterprise: remove it"`
}

// Failover names the targets that calls go to while no instance is healthy.
type Failover struct {
	Service       string           `yaml:"Service"`
	ServiceSubset string           `yaml:"ServiceSubset"`
	Namespace     string           `yaml:"Namespace"`
	Datacenters   []string         `yaml:"Datacenters"`
	Targets       []FailoverTarget `yaml:"Targets"`
	Policy        yamldoc.Any      `yaml:"Policy" mesh:"refused: needs Consul Enterprise: remove it"`
	SamenessGroup yamldoc.Any      `yaml:"SamenessGroup" mesh:"refused: needs Consul Enterprise: remove it"`
}

// FailoverTarget is one of several targets, which are tried in order.
type FailoverTarget struct {
	Service       string `yaml:"Service"`
	ServiceSubset string `yaml:"ServiceSubset"`
	Scope
	Datacenter string `yaml:"Datacenter"`
	Peer       string `yaml:"Peer" mesh:"refused: peers are not enforced yet: remove it"`
}

// LoadBalancer says how an instance is chosen.
type LoadBalancer struct {
	Policy             string              `yaml:"Policy"`
	RingHashConfig     *RingHashConfig     `yaml:"RingHashConfig"`
	LeastRequestConfig *LeastRequestConfig `yaml:"LeastRequestConfig"`
	HashPolicies       []HashPolicy        `yaml:"HashPolicies"`
}

// RingHashConfig bounds the ring of ring_hash.
type RingHashConfig struct {
	MinimumRingSize uint64 `yaml:"MinimumRingSize"`
	MaximumRingSize uint64 `yaml:"MaximumRingSize"`
}

// LeastRequestConfig sets the number of instances that least_request compares.
type LeastRequestConfig struct {
	ChoiceCount uint32 `yaml:"ChoiceCount"`
}

// HashPolicy says where the hash key of a call is.
type HashPolicy struct {
	Field        string        `yaml:"Field"`
	FieldValue   string        `yaml:"FieldValue"`
	CookieConfig *CookieConfig `yaml:"CookieConfig"`
	SourceIP     bool          `yaml:"SourceIP"`
	Terminal     bool          `yaml:"Terminal" mesh:"unused: there is one policy, after which none follows"`
}

// CookieConfig describes the cookie that is generated for callers without one.
type CookieConfig struct {
	Session bool             `yaml:"Session"`
	TTL     yamldoc.Duration `yaml:"TTL"`
	Path    string           `yaml:"Path"`
}

var subsetName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// has reports whether the resolver, which may be nil, has a subset. The empty name means all instances.
func (r *Resolver) has(subset string) bool {
	if subset == "" {
		return true
	}
	if r == nil {
		return false
	}
	_, ok := r.Subsets[subset]
	return ok
}

func (r *Resolver) check(doc *yamldoc.Document, e *Entry, env *Environment) {
	at := e.At
	r.predicates = make(map[string]Predicate, len(r.Subsets))
	for _, name := range slices.Sorted(maps.Keys(r.Subsets)) {
		at := yamldoc.Key(at+"Subsets", name)
		if !subsetName.MatchString(name) {
			doc.Errorf(at, "%q is not the name of a subset: use lower-case letters, digits and hyphens, at most 63", name)
		}
		subset := r.Subsets[name]
		switch {
		case subset == Subset{}:
		case env.Filter == nil:
			doc.Errorf(at, "cannot be enforced: nothing compiles filters: put consul.Filters (of policy/consul) into Filters of the workload")
		default:
			var err error
			if r.predicates[name], err = env.Filter(subset.Filter, subset.OnlyPassing); err != nil {
				doc.Errorf(at+".Filter", "%v", err)
			}
		}
	}
	if r.DefaultSubset != "" && !r.has(r.DefaultSubset) {
		doc.Errorf(at+"DefaultSubset", "%q is none of the Subsets", r.DefaultSubset)
	}
	if d := r.Redirect; d != nil {
		r.checkRedirect(doc, e, d)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Failover)) {
		f := r.Failover[name]
		at := yamldoc.Key(at+"Failover", name)
		if name != "*" && !r.has(name) {
			doc.Errorf(at, `%q is none of the Subsets, and not "*"`, name)
		}
		r.checkFailover(doc, at, e.Name, &f)
	}
	if r.ConnectTimeout.Duration < 0 {
		doc.Errorf(at+"ConnectTimeout", "must not be negative")
	}
	if r.RequestTimeout.Duration < 0 {
		doc.Errorf(at+"RequestTimeout", "must not be negative")
	}
	if r.LoadBalancer != nil {
		r.LoadBalancer.check(doc, at+"LoadBalancer")
	}
}

func (r *Resolver) checkRedirect(doc *yamldoc.Document, e *Entry, d *Redirect) {
	at := e.At + "Redirect"
	d.Scope.check(doc, at+".")
	checkTarget(doc, at, d.Service)
	checkDatacenter(doc, at+".Datacenter", d.Datacenter)
	switch {
	case len(r.Failover) > 0:
		doc.Errorf(at, "excludes Failover: remove one of them")
	case d.Service == "" && d.Datacenter == "" && d.ServiceSubset == "" && d.Peer == "":
		doc.Errorf(at, "must say something: Service or Datacenter")
	case d.Service == "" && d.ServiceSubset != "":
		doc.Errorf(at+".ServiceSubset", "needs a Service: name it")
	case d.Service == e.Name && !r.has(d.ServiceSubset):
		doc.Errorf(at+".ServiceSubset", "%q is none of the Subsets", d.ServiceSubset)
	}
}

func (r *Resolver) checkFailover(doc *yamldoc.Document, at, name string, f *Failover) {
	checkTarget(doc, at, f.Service)
	(&Scope{Namespace: f.Namespace}).check(doc, at+".")
	several := len(f.Targets) > 0
	switch {
	case f.Service == "" && f.ServiceSubset == "" && len(f.Datacenters) == 0 && !several:
		doc.Errorf(at, "must say something: Service, ServiceSubset, Datacenters or Targets")
	case several && (f.Service != "" || f.ServiceSubset != "" || len(f.Datacenters) > 0):
		doc.Errorf(at+".Targets", "excludes Service, ServiceSubset and Datacenters: write these into the targets")
	case (f.Service == "" || f.Service == name) && !r.has(f.ServiceSubset):
		doc.Errorf(at+".ServiceSubset", "%q is none of the Subsets", f.ServiceSubset)
	}
	for i, dc := range f.Datacenters {
		if at := yamldoc.Index(at+".Datacenters", i); dc == "" {
			doc.Errorf(at, "must not be empty")
		} else {
			checkDatacenter(doc, at, dc)
		}
	}
	for i := range f.Targets {
		t := &f.Targets[i]
		at := yamldoc.Index(at+".Targets", i)
		t.Scope.check(doc, at+".")
		checkTarget(doc, at, t.Service)
		checkDatacenter(doc, at+".Datacenter", t.Datacenter)
		if (t.Service == "" || t.Service == name) && !r.has(t.ServiceSubset) {
			doc.Errorf(at+".ServiceSubset", "%q is none of the Subsets", t.ServiceSubset)
		}
	}
}

// checkDatacenter reports a name of a datacenter that cannot be part of a host.
func checkDatacenter(doc *yamldoc.Document, at, name string) {
	if name != "" && !isService(name) {
		doc.Errorf(at, "%q is not the name of a datacenter: use letters, digits, hyphens and underscores", name)
	}
}

// hashes reports whether the policy chooses an instance by the hash of a key.
func (b *LoadBalancer) hashes() bool { return b.Policy == "ring_hash" || b.Policy == "maglev" }

func (b *LoadBalancer) check(doc *yamldoc.Document, at string) {
	switch b.Policy {
	case "", "random", "round_robin", "least_request", "ring_hash", "maglev":
	default:
		doc.Errorf(at+".Policy", "%q is not a policy: use one of random, round_robin, least_request, ring_hash, maglev", b.Policy)
	}
	if c := b.RingHashConfig; c != nil && *c != (RingHashConfig{}) {
		switch {
		case b.Policy != "ring_hash":
			doc.Errorf(at+".RingHashConfig", "is for the policy ring_hash")
		case c.MaximumRingSize < max(1, c.MinimumRingSize):
			doc.Errorf(at+".RingHashConfig.MaximumRingSize", "must be set, and at least MinimumRingSize: what is unset counts as 0 to Envoy, which refuses that")
		}
	}
	if c := b.LeastRequestConfig; c != nil {
		switch {
		case b.Policy != "least_request":
			doc.Errorf(at+".LeastRequestConfig", "is for the policy least_request")
		case c.ChoiceCount < 2:
			doc.Errorf(at+".LeastRequestConfig.ChoiceCount", "must be at least 2")
		}
	}
	if len(b.HashPolicies) > 0 && !b.hashes() {
		doc.Errorf(at+".HashPolicies", "are for the policies ring_hash and maglev")
	}
	for i := range b.HashPolicies {
		b.HashPolicies[i].check(doc, yamldoc.Index(at+".HashPolicies", i))
	}
	if len(b.HashPolicies) > 1 {
		doc.Errorf(at+".HashPolicies", "a key of several parts is not enforced: leave one of them")
	}
	if doc.Failed() {
		return
	}
	if err := b.config().Validate(); err != nil {
		doc.Errorf(at, "cannot be enforced: %v", err)
	}
}

func (h *HashPolicy) check(doc *yamldoc.Document, at string) {
	switch h.Field {
	case "", "header", "cookie", "query_parameter":
	default:
		doc.Errorf(at+".Field", "%q is not a field: use one of header, cookie, query_parameter", h.Field)
	}
	switch {
	case h.SourceIP && (h.Field != "" || h.FieldValue != ""):
		doc.Errorf(at, "SourceIP excludes Field and FieldValue: remove one of them")
	case !h.SourceIP && h.Field == "":
		doc.Errorf(at+".Field", "missing: say where the key is")
	case !h.SourceIP && h.FieldValue == "":
		doc.Errorf(at+".FieldValue", "missing: name the %s", h.Field)
	}
	if c := h.CookieConfig; c != nil {
		switch {
		case h.Field != "cookie":
			doc.Errorf(at+".CookieConfig", "is for the field cookie")
		case c.Session && c.TTL.Duration != 0:
			doc.Errorf(at+".CookieConfig.TTL", "excludes Session: remove one of them")
		case c.TTL.Duration < 0:
			doc.Errorf(at+".CookieConfig.TTL", "must not be negative")
		}
	}
}

// config translates the settings. b may be nil.
func (b *LoadBalancer) config() balancer.Config {
	config := balancer.Config{Algorithm: balancer.RoundRobin}
	if b == nil {
		return config
	}
	switch b.Policy {
	case "random":
		config.Algorithm = balancer.Random
	case "least_request":
		config.Algorithm = balancer.LeastRequest
		if c := b.LeastRequestConfig; c != nil {
			config.Choices = int(c.ChoiceCount)
		}
	case "ring_hash":
		config.Algorithm = balancer.RingHash
		if c := b.RingHashConfig; c != nil && *c != (RingHashConfig{}) {
			config.MinRingSize, config.MaxRingSize = clamp(max(1, c.MinimumRingSize)), clamp(c.MaximumRingSize)
		}
	case "maglev":
		config.Algorithm = balancer.Maglev
	}
	if len(b.HashPolicies) == 1 {
		config.HashKey = b.HashPolicies[0].key()
	}
	return config
}

// clamp converts a size to an int. Sizes that do not fit are too large for a ring anyway.
func clamp(n uint64) int { return int(min(n, 1<<31-1)) }

func (h *HashPolicy) key() balancer.HashKey {
	switch h.Field {
	case "header":
		return balancer.HashKey{Source: balancer.HeaderKey, Name: h.FieldValue}
	case "query_parameter":
		return balancer.HashKey{Source: balancer.QueryKey, Name: h.FieldValue}
	case "cookie":
		key := balancer.HashKey{Source: balancer.CookieKey, Name: h.FieldValue}
		if c := h.CookieConfig; c != nil && (c.Session || c.TTL.Duration > 0) {
			key.Generate, key.TTL, key.Path = true, c.TTL.Duration.Truncate(1e9), c.Path
		}
		return key
	}
	return balancer.HashKey{Source: balancer.SourceIPKey}
}
