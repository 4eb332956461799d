package admin

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"html/template"
	"math"
	"slices"
	"strconv"
	"time"

	"github.com/nosidecar/mesh/internal/grpccode"
)

// sections are the parts of the page that change while it is open.
var sections = []string{"state", "hurts", "graph", "destinations", "callers", "routes", "calls", "loads", "identity", "happened"}

// The bounds of what the page shows. The JSON has the rest.
const (
	shownDestinations = 40
	shownEndpoints    = 25
	shownRoutes       = 100
	shownCalls        = 40
	shownInGraph      = 8
	shownEvents       = 40
)

// view is a report for the templates.
type view struct {
	*report
	Graph            graph
	Shown            []destinationOf
	MoreDestinations int
	ShownRoutes      []routeOf
	MoreRoutes       int
	ShownCalls       []call
	ShownEvents      []event
}

func newView(r *report) *view {
	v := &view{report: r, Graph: graphOf(r)}
	v.Shown, v.MoreDestinations = firstOf(r.Destinations, shownDestinations)
	v.MoreDestinations += r.DestinationsOmitted
	v.ShownRoutes, v.MoreRoutes = firstOf(r.Routes, shownRoutes)
	v.ShownCalls, _ = firstOf(r.Calls, shownCalls)
	v.ShownEvents, _ = firstOf(r.Events, shownEvents)
	return v
}

func firstOf[T any](list []T, most int) ([]T, int) {
	n := min(len(list), most)
	return list[:n], len(list) - n
}

// graph has the callers of this process and the destinations that it calls.
type graph struct {
	Height, Middle int
	Callers        []node
	MoreCallers    int
	Destinations   []node
	MoreCalled     int
}

// node is one end of an edge, with the figures of the edge.
type node struct {
	Name   string
	Link   string // to the section with the details
	State  string // ok, warning, critical or idle
	Detail string
	figures
	Y      int
	Curve  string // the path of the edge
	Stroke string // the width of the edge
}

const (
	nodeHeight = 58
	nodePitch  = 70
	edgeWidth  = 96
)

func graphOf(r *report) graph {
	var g graph
	for i := range r.Callers {
		c := &r.Callers[i]
		n := node{Name: callerName(c), Link: "#callers", State: "ok", figures: c.figures}
		switch {
		case c.Calls == 0:
			n.State = "idle"
		case c.Errors >= fewErrors && c.ErrorShare >= manyErrors:
			n.State = critical
		case c.Errors >= fewErrors && c.ErrorShare >= someErrors || c.Denied >= fewErrors:
			n.State = warning
		}
		if c.Denied > 0 {
			n.Detail = fmt.Sprintf("%d denied", c.Denied)
		}
		g.Callers = append(g.Callers, n)
	}
	for i := range r.Destinations {
		d := &r.Destinations[i]
		n := node{Name: d.Name(), Link: "#" + d.ID(), State: d.State(), figures: d.figures}
		if d.Circuit != nil && d.Circuit.State != "closed" {
			n.Detail = "circuit " + d.Circuit.State
		} else if listed := d.Listed(); d.Healthy < listed {
			n.Detail = fmt.Sprintf("%d of %d endpoints", d.Healthy, listed)
		}
		g.Destinations = append(g.Destinations, n)
	}
	busiest := func(a, b node) int {
		return cmp.Or(cmp.Compare(rank(b.State), rank(a.State)), cmp.Compare(b.CallsPerSecond, a.CallsPerSecond))
	}
	slices.SortStableFunc(g.Callers, busiest)
	slices.SortStableFunc(g.Destinations, busiest)
	g.Callers, g.MoreCallers = firstOf(g.Callers, shownInGraph)
	g.Destinations, g.MoreCalled = firstOf(g.Destinations, shownInGraph)
	g.Height = max(len(g.Callers), len(g.Destinations), 2)*nodePitch - (nodePitch - nodeHeight)
	g.Middle = g.Height / 2
	place := func(nodes []node, towards bool) {
		top := (g.Height - len(nodes)*nodePitch + nodePitch - nodeHeight) / 2
		for i := range nodes {
			n := &nodes[i]
			n.Y = top + i*nodePitch + nodeHeight/2
			from, to := n.Y, g.Middle
			if !towards {
				from, to = to, from
			}
			n.Curve = fmt.Sprintf("M0 %d C%d %d %d %d %d %d", from, edgeWidth/2, from, edgeWidth/2, to, edgeWidth, to)
			n.Stroke = strconv.FormatFloat(min(1.5+1.5*math.Log10(1+n.CallsPerSecond), 8), 'f', 1, 64)
		}
	}
	place(g.Callers, true)
	place(g.Destinations, false)
	return g
}

func rank(state string) int { return slices.Index([]string{"idle", "ok", warning, critical}, state) }

// rank puts endpoints that get no calls first, and then those that fail and stay.
func (e *endpointOf) rank() int {
	switch {
	case !e.Healthy:
		return 0
	case e.Withheld != nil:
		return 1
	}
	return 2
}

// State returns the state of a destination: ok, warning, critical or idle.
func (d *destinationOf) State() string {
	switch {
	case d.state != "":
		return d.state
	case d.Calls == 0 && d.Connections == nil:
		return "idle"
	}
	return "ok"
}

// ID returns the ID of the destination on the page.
func (d *destinationOf) ID() string {
	sum := fnv.New64a()
	fmt.Fprintf(sum, "%q %d %q %v", d.Host, d.Port, d.Subset, d.Others)
	return "d-" + strconv.FormatUint(sum.Sum64(), 36)
}

// Key identifies a call while the page changes.
func (c *call) Key() string {
	return fmt.Sprintf("c-%d-%s", c.At.UnixNano(), c.Direction)
}

// Result returns how a call ended, in a few characters.
func (c *call) Result() string {
	switch {
	case c.GRPCStatus != nil:
		return grpccode.Name(uint32(*c.GRPCStatus))
	case c.Status != 0:
		return strconv.Itoa(c.Status)
	case c.Direction == "out" && c.Count == 0:
		return "not sent"
	case c.Direction == "in":
		return "cut off"
	}
	return "no answer"
}

// State returns critical for a call that failed, and warning for one that was slow.
func (c *call) State() string {
	if c.Failed {
		return critical
	}
	return warning
}

// With returns the name of the other end.
func (c *call) With() string {
	if c.Target != nil {
		return c.Target.String()
	}
	return peerName(c.Caller)
}

// Result returns how an attempt ended, in a few characters.
func (a *attempt) Result() string {
	switch {
	case a.GRPCStatus != nil:
		return grpccode.Name(uint32(*a.GRPCStatus))
	case a.Status != 0:
		return strconv.Itoa(a.Status)
	}
	return "no answer"
}

// bar is a bar of a diagram, in percent of its width or in its units.
type bar struct{ X, Y, Width, Height string }

// Bar returns the bar of an attempt within the duration of its call.
func (c *call) Bar(a *attempt) bar {
	whole := max(c.DurationMs, 0.001)
	x := min(max(a.StartMs/whole, 0), 1) * 100
	width := min(max(a.DurationMs/whole*100, 1), 100-min(x, 99))
	return bar{X: number(x), Width: number(width)}
}

// State returns critical for an attempt that failed, and ok otherwise.
func (a *attempt) State() string {
	if a.Error != "" || a.Status >= 500 || a.GRPCStatus != nil && *a.GRPCStatus != 0 {
		return critical
	}
	return "ok"
}

// bars is a diagram of the last five minutes.
type bars struct {
	Calls, Errors []bar
	Label         string
}

// Bars returns the diagram of the calls and errors.
func (h histogram) Bars() bars {
	const height, step = 24.0, 2
	var b bars
	most, calls, errors := uint32(1), 0, 0
	for i, n := range h.Calls {
		most = max(most, n)
		calls += int(n)
		errors += int(h.Errors[i])
	}
	b.Label = fmt.Sprintf("last 5 minutes: %d calls, %d errors", calls, errors)
	for i, n := range h.Calls {
		if n == 0 {
			continue
		}
		tall := max(height*float64(n)/float64(most), 1)
		x := strconv.Itoa(i * step)
		b.Calls = append(b.Calls, bar{x, number(height - tall), "1.6", number(tall)})
		if bad := h.Errors[i]; bad > 0 {
			tall := max(height*float64(bad)/float64(most), 1.5)
			b.Errors = append(b.Errors, bar{x, number(height - tall), "1.6", number(tall)})
		}
	}
	return b
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', 1, 64) }

// functions are the functions that the templates use.
var functions = template.FuncMap{
	"ms": ms, "rate": perSecond, "percent": percent, "bytes": size, "clock": clock, "peer": peerName, "caller": callerName,
	"retries": retryText,
	"host":    func(name string) string { return target{Host: name}.String() },
	"asset":   func(name string) string { return "?asset=" + name + "&v=" + assets[name].version },
	"stamp":   func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"day":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") },
	"until":   func(t, now time.Time) string { return short(t.Sub(now)) },
	"mark": func(state string) string {
		return map[string]string{critical: "✕", warning: "▲", "ok": "●", "idle": "○"}[state]
	},
	"first": func(list []endpointOf) []endpointOf {
		if len(list) <= shownEndpoints {
			return list
		}
		// Show those with problems first.
		list = slices.Clone(list)
		slices.SortStableFunc(list, func(a, b endpointOf) int {
			return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(b.Errors, a.Errors))
		})
		return list[:shownEndpoints]
	},
	"more": func(list []endpointOf, omitted int) int { return max(len(list)-shownEndpoints, 0) + omitted },
	"word": func(state string) string {
		return map[string]string{critical: "failing", warning: "trouble", "ok": "fine", "idle": "no calls"}[state]
	},
}
