package policy

import (
	"os"
	"slices"

	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/telemetry"
)

// Telemetry returns the settings for traces, metrics and access logs of the workload, or nil if no document has any.
func (p *Plan) Telemetry() *telemetry.Settings { return p.reports }

// reporting is a Telemetry document.
type reporting struct {
	is       *istio.Telemetry
	filters  []telemetry.Filter // the filter of each entry of accessLogging, or nil
	selected bool               // it applies to the workload
}

func (c *compiler) readTelemetry(doc *yamldoc.Document, is *istio.Telemetry) *reporting {
	w := &c.plan.workload
	r := &reporting{is: is, filters: make([]telemetry.Filter, len(is.Spec.AccessLogging))}
	for i, entry := range is.Spec.AccessLogging {
		if entry.Filter == nil || entry.Filter.Expression == "" {
			continue
		}
		at := yamldoc.Index("spec.accessLogging", i) + ".filter.expression"
		if w.Expressions == nil && len(entry.Providers) == 0 {
			continue // it has no effect, which Check has reported
		}
		if w.Expressions == nil {
			doc.Errorf(at, "is not enforced, as the program has no CEL: give cel.Expressions{} of github.com/nosidecar/mesh/policy/telemetry/cel "+
				"to mesh.WithWorkload, as Expressions")
			continue
		}
		var err error
		if r.filters[i], err = w.Expressions.Filter(entry.Filter.Expression); err != nil {
			doc.Errorf(at, "%v", err)
		}
	}
	own := is.Namespace() == w.Namespace && is.Spec.Selector.Selects(w.Labels)
	r.selected = !is.Attached() && (own || is.Namespace() == w.RootNamespace && is.Spec.Selector.Labels() == nil)
	return r
}

// telemetries joins the documents that apply to the workload: that of the root namespace, that of its own namespace, and then all documents
// that select it, the oldest first. Of the documents without a selector, only the oldest in a namespace counts.
func (c *compiler) telemetries() {
	oldestFirst(c.reports)
	w := &c.plan.workload
	general := make(map[string]decoded[reporting]) // by namespace
	var chosen []istio.Applied
	for _, r := range c.reports {
		spec := &r.is.is.Spec
		switch {
		case r.Failed() || r.is.is.Attached():
		case spec.Selector.Labels() != nil:
			if r.namespace == w.RootNamespace && w.Namespace != w.RootNamespace {
				r.Warnf("spec.selector", "selects workloads of the namespace %s only: what is about all of the mesh has no selector", w.RootNamespace)
			}
			if r.is.selected {
				chosen = append(chosen, istio.Applied{TelemetrySpec: spec, Filters: r.is.filters})
			}
		default:
			if before, twice := general[r.namespace]; twice {
				r.Warnf("spec", "has no effect: %s applies to the same workloads and is older or stands before it (%s:%d)",
					before.identity, before.file, before.Line)
				continue
			}
			general[r.namespace] = r
		}
	}
	var applied []istio.Applied
	for _, namespace := range slices.Compact([]string{w.RootNamespace, w.Namespace}) {
		if r, ok := general[namespace]; ok {
			applied = append(applied, istio.Applied{TelemetrySpec: &r.is.is.Spec, Filters: r.is.filters})
		}
	}
	if applied = append(applied, chosen...); len(applied) > 0 {
		host, _ := os.Hostname() // the name of a workload that has no other
		c.plan.reports = istio.JoinTelemetry(applied, workload.Options{
			Namespace: w.Namespace, Labels: w.Labels, TrustDomain: w.TrustDomain, Host: host,
		})
	}
	c.keepSecrets()
}

// keepSecrets keeps query parameters that have tokens out of traces and logs. It does so for the parameters of all documents, since outbound
// calls carry the tokens of other workloads.
func (c *compiler) keepSecrets() {
	var params []string
	for _, ra := range c.tokens {
		for i := range ra.is.rules {
			params = append(params, ra.is.rules[i].Params...)
		}
	}
	if len(params) == 0 {
		return
	}
	slices.Sort(params)
	params = slices.Compact(params)
	client, server := *c.plan.reports.Client(), *c.plan.reports.Server()
	client.SecretParams, server.SecretParams = params, params
	c.plan.reports = telemetry.New(client, server)
}
