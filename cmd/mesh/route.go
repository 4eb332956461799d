package main

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/internal/grpccode"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/fault"
	router "github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// answer is what route prints: what happens to a request. Fields that do not apply are omitted.
type answer struct {
	Host     string `json:"host"`   // the full name
	Action   string `json:"action"` // route, redirect, directResponse, notFound, or for a host that a Sidecar does not import: passThrough or refused
	Document string `json:"document,omitempty"`

	// Indexes in the document, from 0. A TrafficSplit has no routes, and a route without matches has no match.
	Route     *int    `json:"route,omitempty"`
	RouteName *string `json:"routeName,omitempty"`
	Match     *int    `json:"match,omitempty"`

	Destinations []destination   `json:"destinations,omitempty"`
	Timeout      string          `json:"timeout,omitempty"`
	Retry        *retries        `json:"retry,omitempty"`
	Fault        *faults         `json:"fault,omitempty"`
	Mirrors      []mirror        `json:"mirrors,omitempty"`
	Path         string          `json:"path,omitempty"`      // escaped, without query; if it is rewritten
	Authority    string          `json:"authority,omitempty"` // if it is rewritten in the same way for all destinations
	Redirect     *redirect       `json:"redirect,omitempty"`
	Direct       *directResponse `json:"directResponse,omitempty"`
}

type destination struct {
	Host      string `json:"host"`
	Subset    string `json:"subset,omitempty"`
	Port      int    `json:"port"` // 0: the port of the request
	Weight    int    `json:"weight"`
	Authority string `json:"authority,omitempty"` // if the destinations rewrite it differently
	Refused   string `json:"refused,omitempty"`   // why calls to it fail in any case

	// Failover is where calls go while there is no healthy endpoint, in this order.
	Failover []string `json:"failover,omitempty"`
}

type retries struct {
	Attempts      int      `json:"attempts"` // after the first
	PerTryTimeout string   `json:"perTryTimeout,omitempty"`
	On            []string `json:"on"`
}

type faults struct {
	Delay *delay `json:"delay,omitempty"`
	Abort *abort `json:"abort,omitempty"`
}

type delay struct {
	Percent    float64 `json:"percent"`
	FixedDelay string  `json:"fixedDelay"`
}

type abort struct {
	Percent    float64 `json:"percent"`
	HTTPStatus int     `json:"httpStatus,omitempty"`
	GRPCStatus string  `json:"grpcStatus,omitempty"` // by its name
}

type mirror struct {
	Host    string  `json:"host"`
	Subset  string  `json:"subset,omitempty"`
	Port    int     `json:"port,omitempty"`
	Percent float64 `json:"percent"`
	Refused string  `json:"refused,omitempty"`
}

type redirect struct {
	Status   int    `json:"status"`
	Location string `json:"location"`
}

type directResponse struct {
	Status int    `json:"status"`
	Body   string `json:"body,omitempty"`
}

// route says what an outbound request gets.
func route(args []string, stdout io.Writer) error {
	flags := newRequestFlags("route")
	target, err := flags.parse(args)
	if err != nil {
		return err
	}
	req, err := newRequest(flags.method, target, flags.header)
	if err != nil {
		return &usageError{err}
	}
	plan, err := flags.plan()
	if err != nil {
		return err
	}
	a, err := answerTo(plan, req)
	if err != nil {
		return err
	}
	return printJSON(stdout, a)
}

// newRequest returns the request that a program would give to its client.
func newRequest(method, target string, header http.Header) (*http.Request, error) {
	u, err := url.Parse(target)
	switch {
	case !strings.Contains(target, "://"):
		return nil, fmt.Errorf("the URL %q has no scheme: it begins with http:// or https://", target)
	case err != nil:
		return nil, err
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, fmt.Errorf("the URL %q is neither http nor https", target)
	case u.Hostname() == "":
		return nil, fmt.Errorf("the URL %q has no host", target)
	}
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		return nil, err
	}
	if req.Host, err = takeHost(header, req.Host); err != nil {
		return nil, err
	}
	req.Header = header
	return req, nil
}

// answerTo asks the plan in the way the transport of a mesh does.
func answerTo(plan *policy.Plan, req *http.Request) (*answer, error) {
	// The Host header decides if a document names it, otherwise the URL. The port is always that of the URL.
	port := strconv.Itoa(router.NewRequest(req).Port)
	host := plan.Host(net.JoinHostPort((&url.URL{Host: req.Host}).Hostname(), port))
	if !host.Known {
		host = plan.Host(net.JoinHostPort(req.URL.Hostname(), port))
	}
	a := &answer{Host: host.Service.Host, Document: host.Document}
	if host.Hidden {
		a.Action = "passThrough"
		if host.RegistryOnly {
			a.Action = "refused"
		}
		return a, nil
	}
	table := host.Routes
	if table == nil {
		a.Document = ""
		table = plan.Defaults()
	}
	view := router.NewRequest(req)
	entry, match, ok := table.Match(&view)
	if !ok {
		a.Action = "notFound"
		return a, nil
	}
	// If several documents apply to the host, a later one may have decided.
	if origin := host.Origin(entry, match); origin.Document != "" {
		a.Document = origin.Document
		if origin.Route >= 0 {
			a.Route, a.RouteName = &origin.Route, &entry.Route.Name
		}
		if origin.Match >= 0 {
			a.Match = &origin.Match
		}
	}
	if resp := entry.Respond(req, match); resp != nil {
		return a, a.respond(entry, resp)
	}
	a.Action = "route"
	a.policies(entry)
	a.refuse(plan, view.Port)
	a.failover(plan, entry)
	return a, a.rewrite(entry, match, req)
}

// refuse fills in which destinations do not have the port that they are called at, which is the request's unless they name one.
func (a *answer) refuse(plan *policy.Plan, port int) {
	why := func(host string, own int) string {
		if err := plan.Host(host).Entry.CheckPort(cmp.Or(own, port)); err != nil {
			return err.Error()
		}
		return ""
	}
	for i := range a.Destinations {
		a.Destinations[i].Refused = why(a.Destinations[i].Host, a.Destinations[i].Port)
	}
	for i := range a.Mirrors {
		a.Mirrors[i].Refused = why(a.Mirrors[i].Host, a.Mirrors[i].Port)
	}
}

// failover fills in where calls go while a destination has no healthy endpoint.
func (a *answer) failover(plan *policy.Plan, entry *router.Rule) {
	for i, d := range entry.Route.Destinations {
		for _, target := range plan.Cluster(d.Target).Failover {
			if target != d.Target {
				a.Destinations[i].Failover = append(a.Destinations[i].Failover, target.String())
			}
		}
	}
}

// respond fills in the response of a route that sends nothing.
func (a *answer) respond(entry *router.Rule, resp *http.Response) error {
	if entry.Route.Redirect != nil {
		a.Action = "redirect"
		a.Redirect = &redirect{Status: resp.StatusCode, Location: resp.Header.Get("Location")}
		return nil
	}
	body, err := io.ReadAll(resp.Body)
	a.Action = "directResponse"
	a.Direct = &directResponse{Status: resp.StatusCode, Body: string(body)}
	return err
}

// policies fills in what a route does with the requests that it sends.
func (a *answer) policies(entry *router.Rule) {
	r := entry.Route
	for _, d := range r.Destinations {
		shown := destination{Host: d.Target.Host, Subset: d.Target.Subset, Port: d.Target.Port, Weight: d.Weight}
		if shown.Host == "" {
			shown.Host = a.Host
		}
		if len(r.Destinations) == 1 {
			shown.Weight = 100 // it gets everything, whatever its weight
		}
		a.Destinations = append(a.Destinations, shown)
	}
	if r.Timeout > 0 {
		a.Timeout = r.Timeout.String()
	}
	if config := entry.Retry.Config(); config.Retries > 0 {
		a.Retry = showRetries(config)
	}
	a.Fault = showFaults(r.Fault)
	for _, m := range r.Mirrors {
		a.Mirrors = append(a.Mirrors, mirror{Host: m.Target.Host, Subset: m.Target.Subset, Port: m.Target.Port, Percent: fraction.Percent(m.Fraction)})
	}
}

func showRetries(config retry.Config) *retries {
	shown := &retries{Attempts: config.Retries, On: strings.Split(config.On.String(), ",")}
	if config.PerTryTimeout > 0 {
		shown.PerTryTimeout = config.PerTryTimeout.String()
	}
	return shown
}

// showFaults omits faults with a fraction of 0.
func showFaults(config fault.Config) *faults {
	var shown faults
	if d := config.Delay; d.Fraction > 0 {
		shown.Delay = &delay{Percent: fraction.Percent(d.Fraction), FixedDelay: d.Fixed.String()}
	}
	if f := config.Abort; f.Fraction > 0 {
		shown.Abort = &abort{Percent: fraction.Percent(f.Fraction), HTTPStatus: f.HTTPStatus}
		if f.IsGRPC {
			shown.Abort.GRPCStatus = grpccode.Name(f.GRPCStatus)
		}
	}
	if shown == (faults{}) {
		return nil
	}
	return &shown
}

// rewrite fills in the path and the authority that the destinations see, if they differ from those of the request.
func (a *answer) rewrite(entry *router.Rule, match int, req *http.Request) error {
	before := router.NewRequest(req)
	differ := false
	for i := range a.Destinations {
		out := req.Clone(req.Context())
		if err := entry.Backend(i).Rewrite(out, match); err != nil {
			return fmt.Errorf("the request fails: %w", err)
		}
		after := router.NewRequest(out)
		if after.Path != before.Path {
			a.Path = after.Path
		}
		if after.Authority != before.Authority {
			a.Destinations[i].Authority = after.Authority
		}
		differ = differ || a.Destinations[i].Authority != a.Destinations[0].Authority
	}
	if differ {
		return nil // each destination shows its own
	}
	a.Authority = a.Destinations[0].Authority
	for i := range a.Destinations {
		a.Destinations[i].Authority = ""
	}
	return nil
}
