// Package policy turns documents into a plan.
//
// Documents are read by the packages below this one, one for each dialect. [Compile] checks them all, reports every
// error with its file, line and field, and returns a [Plan] only if there are none: a bad document never takes effect.
package policy

import (
	"maps"
	"slices"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/nosidecar/mesh/retry"
)

// Workload is the process that a plan is compiled for: what documents select callers by.
type Workload struct {
	// Namespace resolves short host names. Empty means "default".
	Namespace string

	// Labels are matched by the selectors of documents and by sourceLabels.
	Labels map[string]string

	// ClusterDomain ends the names of the cluster's services. Empty means "cluster.local".
	ClusterDomain string

	// TrustDomain is that of the workload's identity, for which "cluster.local" stands in documents. Empty means
	// "cluster.local".
	TrustDomain string

	// Paths says which spellings of a path the application takes for the same, for AuthorizationPolicies. It is the
	// pathNormalization of Istio's mesh configuration, which is no document. The zero value is Istio's default, under which
	// /admin/../healthz is /healthz, as it is to http.ServeMux; behind a router that does not clean paths choose
	// [authz.None].
	Paths authz.Normalization

	// Locality is where the process runs; it decides which endpoints are near.
	Locality discovery.Locality

	// Address is the IP address of the process, the key of its requests where a document hashes by source. Empty means
	// that they have none.
	Address string

	// Unlabelled says that discovery finds endpoints without labels, as DNS does. Subsets that select by labels then have
	// no endpoints, unless a ServiceEntry gives them, and are warned of.
	Unlabelled bool

	// Expressions compiles the expressions of Telemetry documents: that of policy/telemetry/cel. Documents with an expression
	// are an error without it.
	Expressions telemetry.Expressions

	// Service is the name of the Consul service that the process is an instance of, whose service-intentions and (as a caller)
	// service-defaults apply. Empty means that of a Connect identity, else none.
	Service string

	// AllowByDefault says that a peer which no service-intentions of Consul decides about is allowed: that default_intention_policy
	// is "allow" in the configuration of Consul's servers or, without it, default_policy of their ACLs. No API of Consul tells. By
	// default such peers are denied.
	AllowByDefault bool

	// Filters compiles the filters of the subsets in service-resolver entries of Consul: that of policy/consul. Subsets with a
	// filter are an error without it.
	Filters interface {
		// Compile returns what says whether an endpoint meets an expression and, with onlyPassing, has no check in the state
		// warning. An empty expression is met by all. The error says what is wrong with the expression. The function must be
		// safe for concurrent use.
		Compile(expression string, onlyPassing bool) (func(*discovery.Endpoint) bool, error)
	}
}

// Plan is a set of documents, compiled for one workload. It is immutable and safe for concurrent use.
type Plan struct {
	workload Workload // with its defaults filled in

	named   hostMap[struct{}]              // the hosts that documents name
	claims  hostMap[claim]                 // the routes of each host
	entries hostMap[entry]                 // the ServiceEntry of each host
	rules   map[string]*hostMap[rules]     // the DestinationRules of each namespace
	ports   map[string][]servicePort       // of the services of the cluster, by their full names
	budgets map[string]*retry.BudgetConfig // by host
	retries retry.Config
	places  map[any]place // of splits and profiles, by what they say

	consul *governed // what config entries of Consul say; nil without any

	peers   map[string]*PeerRules // by namespace, as far as there are rules
	inbound *Inbound
	reports *telemetry.Settings

	defaults *route.Table

	inForce []int // of the documents of each source

	readings map[yamldoc.Sum]*reading // of the documents, for the next plan
	words    *yamldoc.Words           // that they repeat
}

// HostPlan is what a plan says about the host of a request.
type HostPlan struct {
	// Service is the service to look up in discovery.
	Service discovery.Service

	// Document names the document whose routes apply, as "VirtualService default/user-service". Empty if there is none.
	// Other documents may contribute to them: see [HostPlan.Origin].
	Document string

	// Routes are the routes of that document. nil means that no document routes the host: the request goes to the host
	// itself with the plan's defaults. A table that matches nothing is a 404.
	Routes *route.Table

	// Known says that some document names the host, so that it belongs to the mesh.
	Known bool

	// ServiceEntry says where the endpoints of the host are, if a document does. nil leaves that to discovery.
	Entry *ServiceEntry

	from  *built // what Routes are of
	claim *claim // whose they are
	plan  *Plan
}

// Cluster is the policy of one [route.Target]: how its endpoints are chosen, connected to and watched. A reload keeps the
// state of a target whose Cluster is Equal to the one before. Its maps and slices must not be changed.
type Cluster struct {
	// Subset are the labels that select the target's endpoints. Empty selects all. Missing says that the target names a
	// subset that no document defines: it has no endpoints.
	Subset  map[string]string
	Missing bool

	// Filter selects among the endpoints that have these labels. The zero value selects all.
	Filter Filter

	// Failover are the targets that calls to this one go to, the best first: each attempt goes to the first one that has a
	// healthy endpoint. Each has the Cluster of its own, whose Failover does not matter. Its Port is that of this target if
	// it is 0, and so is its Host if that is empty. The target itself may be among them; if it is not, its own endpoints
	// are never used. Empty means the target itself and no other.
	Failover []route.Target

	// Balancer says how an endpoint is chosen.
	Balancer balancer.Config

	// Passthrough dials what the caller asked for (loadBalancer.simple PASSTHROUGH).
	Passthrough bool

	// Outlier says when endpoints that fail are ejected; it counts only if Eject is set.
	Eject   bool
	Outlier breaker.OutlierConfig

	// Pool bounds connections and requests.
	Pool limit.PoolConfig

	// RetryLimit bounds the retries under way at once. Its zero value does not.
	RetryLimit retry.LimiterConfig

	// RetryBudget bounds the retries by a share of the calls. It is Off unless a document sets it.
	RetryBudget retry.BudgetConfig

	// TLS says how connections are secured.
	TLS TLS

	// UpgradeHTTP2 speaks HTTP/2 to plaintext endpoints (h2UpgradePolicy UPGRADE).
	UpgradeHTTP2 bool
}

// Filter selects endpoints by more than labels. Two of the same Text are the same.
type Filter struct {
	Text  string                         // as people read it
	Match func(*discovery.Endpoint) bool // must be safe for concurrent use, and not change the endpoint; nil selects all
}

// Equal reports whether two clusters are treated alike.
func (c *Cluster) Equal(other *Cluster) bool {
	return maps.Equal(c.Subset, other.Subset) && c.Missing == other.Missing &&
		c.Filter.Text == other.Filter.Text && slices.Equal(c.Failover, other.Failover) &&
		c.Balancer.Equal(other.Balancer) && c.Passthrough == other.Passthrough &&
		c.Eject == other.Eject && c.Outlier == other.Outlier &&
		c.Pool == other.Pool && c.RetryLimit == other.RetryLimit && c.RetryBudget == other.RetryBudget &&
		c.TLS.Equal(other.TLS) && c.UpgradeHTTP2 == other.UpgradeHTTP2
}
