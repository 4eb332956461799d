// Package policy compiles documents into a plan.
//
// The packages below this one read the documents, one package per dialect. [Compile] checks all documents, reports every error with its file,
// line and field, and returns a [Plan] only if there are no errors: an invalid document never takes effect.
package policy

import (
	"maps"
	"slices"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/authz"
	"github.com/nosidecar/mesh/policy/internal/gateway"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/limit"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/policy/telemetry"
	"github.com/nosidecar/mesh/retry"
)

// Workload describes the process that a plan is compiled for. Documents select workloads by these fields.
type Workload struct {
	// Namespace is the namespace of the workload. Short host names are resolved in it. Empty means "default". What is not the name of a
	// namespace is an error, because no document would be about the workload.
	Namespace string

	// RootNamespace is the namespace of the documents that apply to the whole mesh, as rootNamespace of Istio's mesh configuration. A feed of
	// package policy/kubernetes follows it. Empty means "istio-system".
	RootNamespace string

	// Labels are the labels that selectors and sourceLabels in documents match.
	Labels map[string]string

	// ClusterDomain is the suffix of the names of the cluster's services. Empty means "cluster.local".
	ClusterDomain string

	// TrustDomain is the trust domain of the workload's identity. In documents, "cluster.local" means this trust domain. Empty means
	// "cluster.local".
	TrustDomain string

	// ServiceAccount is the name of the workload's service account, to which TrafficTargets of SMI allow requests. Empty means that of an
	// identity of the form spiffe://DOMAIN/ns/NAMESPACE/sa/NAME. Without one, it is not known, and a TrafficTarget in the namespace of the
	// workload closes it.
	ServiceAccount string

	// Ports has the numbers of the workload's ports by the names that Servers of Linkerd call them, as they are in the containers of a pod. A
	// number of 0 says that the workload has no port of that name. As long as the port of a Server is not known, every port needs its
	// authorizations.
	Ports map[string]int

	// Paths says which spellings of a path are the same to the application, for AuthorizationPolicies. In Istio it is pathNormalization
	// of the mesh configuration, which is not a document. The zero value is Istio's default, in which /admin/../healthz is /healthz, as in
	// http.ServeMux. Choose [authz.None] for a router that does not clean paths.
	Paths authz.Normalization

	// Locality is where the process runs. It decides which endpoints are near.
	Locality discovery.Locality

	// Address is the IP address of the process. It is the hash key of requests if a document hashes by source. Empty means that they have
	// no such key.
	Address string

	// Unlabelled says that discovery finds endpoints without labels, as DNS does. Subsets that select by labels then have no endpoints,
	// unless a ServiceEntry lists them, and lead to a warning.
	Unlabelled bool

	// Expressions compiles the expressions of Telemetry documents. Package policy/telemetry/cel has an implementation. If it is nil,
	// documents with expressions are an error.
	Expressions telemetry.Expressions

	// Service is the name of the Consul service that the process is an instance of. Its service-intentions and, for a caller, its
	// service-defaults apply. Empty means the service of a Connect identity, or none without one.
	Service string

	// AllowByDefault says that a peer is allowed if no service-intentions of Consul decide about it. Set it if default_intention_policy in
	// the configuration of Consul's servers is "allow" or, if that is not set, default_policy of their ACLs is. Consul has no API for
	// that. By default, such peers are denied.
	AllowByDefault bool

	// Filters compiles the filters of subsets in service-resolver entries of Consul. Package policy/consul has an implementation. If it is
	// nil, subsets with a filter are an error.
	Filters interface {
		// Compile returns a function that reports whether an endpoint matches an expression and, if onlyPassing is set, has no check
		// in the state warning. An empty expression matches all endpoints. The error says what is wrong with the expression. The
		// function must be safe for concurrent use.
		Compile(expression string, onlyPassing bool) (func(*discovery.Endpoint) bool, error)
	}

	// Keys fetches the keys with which RequestAuthentications verify tokens, unless the documents contain them. A mesh sets it. Without
	// it, as when documents are only checked, no keys are fetched, and tokens that need them are refused.
	Keys *jwt.Remotes

	// Files opens the files that the TLS settings of a DestinationRule name, if the document stands alone and is new or has changed. The
	// document is refused if a file cannot be used. A mesh sets it. Without it, no files are opened.
	Files interface {
		// Check returns an error that says what is wrong with the files.
		Check(TLS) error
	}
}

// Plan is a set of documents compiled for one workload. It is immutable and safe for concurrent use.
type Plan struct {
	workload Workload // with its defaults applied

	named   hostMap[struct{}]              // the hosts that documents name
	claims  hostMap[claim]                 // the routes of each host
	entries hostMap[entry]                 // the ServiceEntry of each host; see entry
	implied hostMap[entry]                 // of hosts that the Sidecar does not import: where VirtualServices find their destinations
	below   map[*entry]struct{}            // those with wildcards that do not count for Services of Kubernetes
	rules   map[string]*hostMap[rules]     // the DestinationRules of each namespace
	ports   hostMap[served]                // the ports of the cluster's services, by their full names
	budgets map[string]*retry.BudgetConfig // by host

	accruals map[string]*gateway.Accrual // by host: what Services say of failing endpoints

	places map[any]place // the places of splits and profiles, by their content

	attached table[attachment, attached] // the routes of the Gateway API, with their places

	sidecar *sidecar          // the Sidecar of the workload; nil if it has none
	imports *imports          // the hosts that it imports; nil for all
	shown   hostMap[struct{}] // those of ServiceEntries
	outside string            // the Sidecar because of which calls to hosts outside the mesh are refused; "" if they are not

	consul *governed // the config entries of Consul; nil if there are none

	peers   map[string]*PeerRules // by namespace; namespaces without rules are absent
	inbound *Inbound
	reports *telemetry.Settings

	defaults *route.Table
	retrying retrying

	inForce []int // the number of documents of each source that are in force

	// About the documents that stand alone, for the next plan: the last good versions, those of the same identities from other sources, and the
	// times since which documents are refused.
	kept    table[groupIdentity, document]
	keptToo []*document
	refused map[refusal]time.Time

	unenforceable map[string][]*joint // combinations of these documents that cannot be enforced, by host

	texts []*text        // those of the sources, for the next plan
	words *yamldoc.Words // words that documents repeat
	rooms *rooms
}

// HostPlan is the part of a plan about the host of a request.
type HostPlan struct {
	// Service is the service to look up in discovery.
	Service discovery.Service

	// Document names the document whose routes apply, as in "VirtualService default/user-service". It is empty if there is none. Other
	// documents may contribute to the routes; see [HostPlan.Origin].
	Document string

	// Routes are the routes of that document. Nil means that no document routes the host: the request goes to the host itself with the
	// plan's defaults. A request that matches no route of the table gets a 404 response.
	Routes *route.Table

	// Known says that a document names the host, so that it belongs to the mesh.
	Known bool

	// Hidden says that the Sidecar of the workload does not import the host. Whatever documents and discovery know of it, a call to the host
	// goes outside the mesh. A destination of a route may be hidden: it has the Service and the Entry. Document names the Sidecar.
	Hidden bool

	// RegistryOnly says that calls outside the mesh are refused by outboundTrafficPolicy of a Sidecar. If no document routes the host,
	// Document names the Sidecar.
	RegistryOnly bool

	// Entry has the endpoints of the host, if a ServiceEntry does. Nil means that discovery has them.
	Entry *ServiceEntry

	from  *built // the compiled routes
	claim *claim // the claim that they belong to
	plan  *Plan
}

// Cluster is the policy of one [route.Target]: how its endpoints are chosen, connected to and monitored. A reload keeps the state of a target
// whose Cluster is Equal to the previous one. Its maps and slices must not be changed.
type Cluster struct {
	// Subset has the labels that select the target's endpoints. Empty selects all. Missing says that the target names a subset that no
	// document defines, so it has no endpoints.
	Subset  map[string]string
	Missing bool

	// Closed names the document because of which all calls to the target fail: one that says how they are secured, and is refused. It is
	// empty if there is none.
	Closed string

	// Filter selects among the endpoints with these labels. The zero value selects all of them.
	Filter Filter

	// Failover lists the targets that calls to this target go to, the best first: each attempt goes to the first one with a healthy
	// endpoint. Each target has its own Cluster, whose Failover is ignored. An empty Host or a Port of 0 means that of this target. The
	// target itself may be in the list; if it is not, its own endpoints are never used. Empty means only the target itself.
	Failover []route.Target

	// Balancer says how an endpoint is chosen.
	Balancer balancer.Config

	// Passthrough dials the address that the caller asked for (loadBalancer.simple PASSTHROUGH).
	Passthrough bool

	// Outlier says when failing endpoints are ejected. It applies only if Eject is set.
	Eject   bool
	Outlier breaker.OutlierConfig

	// Accrual takes an endpoint out after so many failures in a row, as the annotations of Linkerd ask for: for the time Min, and then until a
	// call to it succeeds. One call at a time tries that, and each that fails, or takes as long as the next time, doubles the time, up to Max. A
	// random part of up to Jitter times the time is added. It applies only if Failures is not 0; then Eject is not set.
	Accrual struct {
		Failures int
		Min, Max time.Duration
		Jitter   float64
	}

	// Pool bounds connections and requests.
	Pool limit.PoolConfig

	// RetryLimit bounds the retries in flight. The zero value means no limit.
	RetryLimit retry.LimiterConfig

	// RetryBudget bounds the retries to a fraction of the calls. It is Off unless a document sets it.
	RetryBudget retry.BudgetConfig

	// TLS says how connections are secured.
	TLS TLS

	// UpgradeHTTP2 uses HTTP/2 for plaintext endpoints (h2UpgradePolicy UPGRADE).
	UpgradeHTTP2 bool
}

// Filter selects endpoints by more than labels. Filters with the same Text are equal.
type Filter struct {
	Text  string                         // for people to read
	Match func(*discovery.Endpoint) bool // must be safe for concurrent use, and must not change the endpoint; nil selects all
}

// Equal reports whether two clusters are equal.
func (c *Cluster) Equal(other *Cluster) bool {
	return maps.Equal(c.Subset, other.Subset) && c.Missing == other.Missing && c.Closed == other.Closed &&
		c.Filter.Text == other.Filter.Text && slices.Equal(c.Failover, other.Failover) &&
		c.Balancer.Equal(other.Balancer) && c.Passthrough == other.Passthrough &&
		c.Eject == other.Eject && c.Outlier == other.Outlier && c.Accrual == other.Accrual &&
		c.Pool == other.Pool && c.RetryLimit == other.RetryLimit && c.RetryBudget == other.RetryBudget &&
		c.TLS.Equal(other.TLS) && c.UpgradeHTTP2 == other.UpgradeHTTP2
}
