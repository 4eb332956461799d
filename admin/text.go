package admin

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
)

// line writes a line. What discovery, documents and peers have in their texts makes no other line, and controls no terminal.
func line(w io.Writer, format string, args ...any) {
	fmt.Fprintln(w, printable(fmt.Sprintf(format, args...)))
}

// row writes a line of a table, whose cells are separated by tabs.
func row(t io.Writer, cells ...any) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(t, "\t")
		}
		fmt.Fprint(t, printable(fmt.Sprint(cell)))
	}
	fmt.Fprintln(t)
}

// writeText writes a report for a terminal.
func writeText(w io.Writer, r *report) {
	ready := "ready"
	if !r.Ready {
		ready = "NOT READY: " + strings.Join(r.NotReady, "; ")
	}
	line(w, "%s  %s  %s", r.Name, r.Time.Format("2006-01-02 15:04:05 UTC"), ready)
	switch id := r.Identity; {
	case id == nil:
	case id.ID == "": // it has not arrived yet
		line(w, "identity none yet: %s", id.Error)
	default:
		line(w, "identity %s, expires in %s %s", id.ID, short(id.Expires.Sub(r.Time)), id.Error)
	}
	for _, k := range r.Keys {
		line(w, "keys %s: %d, fetched at %s %s", k.URI, k.Keys, clock(k.Fetched), k.Error)
		if k.Skipped > 0 {
			line(w, "    and %d that are not used: %s", k.Skipped, k.SkipReason)
		}
	}
	line(w, "documents %d, load %d, version %s, since %s", r.Documents.Count, r.Documents.Number, r.Documents.Version, clock(r.Documents.Loaded))

	fmt.Fprintln(w, "\n# What hurts")
	for _, p := range r.Problems {
		name := ""
		if p.To != "" {
			name = p.To + ": "
		}
		line(w, "%s  %s%s", strings.ToUpper(p.Severity), name, p.Title)
		for _, why := range p.Why {
			line(w, "    %s", why)
		}
	}
	if len(r.Problems) == 0 {
		fmt.Fprintln(w, "nothing")
	}
	r.writeDestinations(w)
	r.writeCallers(w)
	r.writeCalls(w)
	r.writeRest(w)
}

func table(w io.Writer, columns ...string) *tabwriter.Writer {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, strings.Join(columns, "\t"))
	return t
}

func (r *report) writeDestinations(w io.Writer) {
	fmt.Fprintln(w, "\n# Destinations, last minute")
	t := table(w, "STATE", "DESTINATION", "CALLS", "ERRORS", "P50", "P99", "IN FLIGHT", "HEALTHY", "CIRCUIT", "POOL", "RETRIES")
	for i := range r.Destinations {
		d := &r.Destinations[i]
		circuit, pool, retries := "-", "-", "-"
		if d.Circuit != nil {
			circuit = d.Circuit.State
		}
		if d.Pool != nil {
			pool = fmt.Sprintf("%d calls, %d waiting, %d connections", d.Pool.Active, d.Pool.Pending, d.Pool.Connections)
		}
		if d.Retry != nil {
			retries = fmt.Sprintf("%d; %s", d.Retries, retryText(d.Retry))
		}
		row(t, d.State(), d.Name(), perSecond(d.CallsPerSecond), percent(d.ErrorShare), ms(d.P50Ms), ms(d.P99Ms), d.InFlight,
			fmt.Sprintf("%d/%d", d.Healthy, d.Listed()), circuit, pool, retries)
	}
	t.Flush()

	fmt.Fprintln(w, "\n# Endpoints, last minute")
	t = table(w, "DESTINATION", "ENDPOINT", "STATE", "CALLS", "ERRORS", "P50", "P99", "IN FLIGHT", "LOCALITY", "SECURITY")
	for i := range r.Destinations {
		d := &r.Destinations[i]
		for _, e := range d.Endpoints {
			state := "healthy"
			switch {
			case e.Gone:
				state = "gone"
			case e.Withheld != nil:
				state = "fails, and stays: " + e.Withheld.Reason
			case !e.Healthy:
				state = e.Reason
				if !e.Until.IsZero() {
					state += ", " + short(e.Until.Sub(r.Time)) + " more"
				}
			}
			row(t, d.Name(), e.Address, orDash(state), perSecond(e.CallsPerSecond), percent(e.ErrorShare), ms(e.P50Ms), ms(e.P99Ms), e.InFlight,
				orDash(e.Locality), orDash(e.Security))
		}
	}
	t.Flush()
}

func (r *report) writeCallers(w io.Writer) {
	fmt.Fprintln(w, "\n# Callers, last minute")
	t := table(w, "CALLER", "REQUESTS", "ERRORS", "DENIED", "P50", "P99")
	for i := range r.Callers {
		c := &r.Callers[i]
		row(t, callerName(c), perSecond(c.CallsPerSecond), percent(c.ErrorShare), c.Denied, ms(c.P50Ms), ms(c.P99Ms))
	}
	t.Flush()
}

func (r *report) writeCalls(w io.Writer) {
	fmt.Fprintln(w, "\n# Failed and slow calls, the latest first")
	list, _ := firstOf(r.Calls, shownCalls)
	for i := range list {
		c := &list[i]
		what := "slow"
		if c.Failed {
			what = "FAILED"
		}
		line(w, "%s  %s  %s %s  %s %s  %s  %s  %s %s %s", clock(c.At), what, c.Direction, c.With(), c.Method, c.Path, c.Result(), ms(c.DurationMs),
			c.Flags, c.Error, c.Decision)
		for j := range c.Attempts {
			a := &c.Attempts[j]
			line(w, "    %d  %s  %s  at %s, took %s  %s", a.Number, a.Endpoint, a.Result(), ms(a.StartMs), ms(a.DurationMs), a.Error)
		}
	}
}

// writeRest writes the sections that are needed less often.
func (r *report) writeRest(w io.Writer) {
	fmt.Fprintln(w, "\n# Policy loads, the latest first")
	for _, l := range r.Loads {
		what := "good"
		switch {
		case !l.InForce:
			what = "REFUSED"
		case l.Number == 0:
			what = "REMARK"
		}
		line(w, "%s  load %d  %s  %s", clock(l.At), l.Number, what, l.Version)
		for _, f := range l.Findings {
			line(w, "    %s", f)
		}
		if len(l.Findings) == 0 && l.Error != "" {
			line(w, "    %s", l.Error)
		}
	}
	fmt.Fprintln(w, "\n# Events, the latest first")
	for _, e := range r.Events {
		name := ""
		if e.Target != nil {
			name = e.Target.String()
		}
		line(w, "%s  %s  %s %s  %s", clock(e.At), e.Kind, name, e.Endpoint, e.Text)
	}
	fmt.Fprintln(w, "\n# Routes")
	t := table(w, "HOST", "REQUESTS", "GO TO", "TIMEOUT", "RETRIES", "FROM")
	for _, o := range r.Routes {
		to := []string{}
		if o.Action != "" {
			to = append(to, o.Action)
		}
		for _, one := range o.Targets {
			text := one.String()
			if one.Weight > 0 {
				text += fmt.Sprintf(" %d", one.Weight)
			}
			to = append(to, text)
		}
		timeout := "-"
		if o.Timeout > 0 {
			timeout = ms(o.Timeout)
		}
		matches := strings.Join(o.Matches, " or ")
		if matches == "" {
			matches = "all others"
		}
		from := cmp.Or(o.Document, "default of the mesh")
		if o.File != "" {
			from = fmt.Sprintf("%s:%d %s", o.File, o.Line, from)
		}
		row(t, target{Host: o.Host}.String(), matches, strings.Join(to, ", "), timeout, o.Retries, from)
	}
	t.Flush()
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
