package admin

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh"
)

// The severities of problems, the worst first.
const (
	critical = "critical"
	warning  = "warning"
)

// problem is something that is wrong, with its reasons.
type problem struct {
	Severity string   `json:"severity"`
	Target   *target  `json:"target,omitempty"` // nil for a problem of this process
	Title    string   `json:"title"`
	Why      []string `json:"why"`

	To     string  `json:"-"` // the name of the destination
	Link   string  `json:"-"` // to the destination on the page
	weight float64 // orders problems of equal severity
}

const (
	fewErrors     = 3    // fewer errors than this are not a problem,
	halfOfCalls   = 0.5  // unless they are this share of the calls
	someErrors    = 0.01 // the share of errors that is a problem
	manyErrors    = 0.2  // the share of errors that is a critical problem
	slowCalls     = 20   // a destination with fewer calls is not called slow
	lateRotation  = 5    // an identity should be replaced before the last fifth of its lifetime
	mostReasons   = 6
	mostProblems  = 20
	recently      = time.Minute
	mostBlamed    = 3
	blamedAtLeast = 0.5 // the share of the errors for which an endpoint is blamed
)

// problems returns the problems, the worst first, and sets the state of the destinations that have one.
func (r *report) problems(c *collector) []problem {
	list := r.ownProblems(c)
	for i := range r.Destinations {
		if p := r.destinationProblem(&r.Destinations[i], c.slow); p != nil {
			list = append(list, *p)
			r.Destinations[i].state = p.Severity
		}
	}
	slices.SortStableFunc(list, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.Severity, b.Severity), cmp.Compare(b.weight, a.weight)) // "critical" < "warning"
	})
	if len(list) > mostProblems {
		more := len(list) - mostProblems
		list = append(list[:mostProblems], problem{Severity: list[mostProblems].Severity, Title: fmt.Sprintf("and %d more", more), Why: []string{}})
	}
	if list == nil {
		list = []problem{}
	}
	return list
}

// ownProblems returns the problems of this process.
func (r *report) ownProblems(c *collector) (list []problem) {
	if !r.Ready {
		list = append(list, problem{Severity: critical, Title: "This process is not ready", Why: r.NotReady, weight: 1e9})
	}
	list = append(list, r.documentProblems()...)
	if id := r.Identity; id != nil && r.Ready {
		left := id.Expires.Sub(r.Time)
		switch {
		case id.Error != "":
			list = append(list, problem{
				Severity: warning, Title: "There is no new certificate", weight: 1e7,
				Why: []string{id.Error, fmt.Sprintf("the one in force expires in %s", short(left))},
			})
		case left < time.Duration(c.lifetime.Load())/lateRotation:
			list = append(list, problem{Severity: warning, Title: fmt.Sprintf("The certificate expires in %s", short(left)), weight: 1e5, Why: []string{id.ID}})
		}
	}
	for _, k := range r.Keys {
		if k.Error == "" || k.Keys == 0 { // without any, the process is not ready
			continue
		}
		list = append(list, problem{
			Severity: warning, Title: "There are no new keys to verify tokens with", weight: 1e4,
			Why: []string{k.Error, fmt.Sprintf("those fetched from %s at %s stay in force", k.URI, clock(k.Fetched))},
		})
	}
	return append(list, r.inboundProblems()...)
}

// documentProblems returns the problems of refused documents.
func (r *report) documentProblems() (list []problem) {
	if f := r.Documents.Refused; f != nil {
		p := problem{
			Severity: warning, Title: fmt.Sprintf("Documents are refused: load %d at %s", f.Number, clock(f.At)), weight: 1e6,
			Why: []string{fmt.Sprintf("load %d, made at %s, stays in force: version %s", r.Documents.Number, clock(r.Documents.Loaded), r.Documents.Version)},
		}
		for line := range strings.Lines(f.Error) {
			if len(p.Why) == mostReasons {
				p.Why = append(p.Why, "and more: see Policy loads")
				break
			}
			p.Why = append(p.Why, strings.TrimSpace(line))
		}
		list = append(list, p)
	}
	for _, of := range r.Documents.Alone {
		p := problem{Severity: warning, Title: cmp.Or(of.Document, of.File) + " is refused", Why: []string{of.Error}, weight: 1e5}
		switch of.InForce {
		case "last good":
			p.Why = append(p.Why, "its last good version is in force, since "+clock(of.Since))
		case "denial":
			p.Severity, p.weight = critical, 1e8
			p.Why = append(p.Why, "what it may protect is closed, since "+clock(of.Since))
		default:
			p.Why = append(p.Why, "it is left out, since "+clock(of.Since))
		}
		list = append(list, p)
	}
	return list
}

// inboundProblems returns the problems of requests to this process.
func (r *report) inboundProblems() (list []problem) {
	if in := r.In; in.Errors >= fewErrors && in.ErrorShare >= someErrors {
		list = append(list, problem{
			Severity: severityOf(in.ErrorShare), Title: fmt.Sprintf("%s of the requests to this process fail", percent(in.ErrorShare)), weight: in.ErrorsPerSecond,
			Why: []string{fmt.Sprintf("%d of %d in the last minute", in.Errors, in.Calls)},
		})
	}
	if in := r.In; in.Denied >= fewErrors {
		p := problem{
			Severity: warning, Title: fmt.Sprintf("%s of the requests to this process are denied", percent(float64(in.Denied)/float64(in.Calls))),
			weight: float64(in.Denied) / r.Seconds,
		}
		for i := range r.Callers {
			caller := &r.Callers[i]
			if caller.Denied > 0 && len(p.Why) < mostReasons {
				p.Why = append(p.Why, fmt.Sprintf("%d of %d from %s", caller.Denied, caller.Calls, callerName(caller)))
			}
		}
		list = append(list, p)
	}
	return list
}

func severityOf(share float64) string {
	if share >= manyErrors {
		return critical
	}
	return warning
}

// finder builds the problem of a destination.
type finder struct {
	problem
	*destinationOf
	now time.Time
}

// say adds something that is wrong. The first title and the worst severity count.
func (p *finder) say(severity, title string) {
	if p.Severity == "" || severity < p.Severity {
		p.Severity = severity
	}
	if p.Title == "" {
		p.Title = title
	}
}

func (p *finder) because(format string, args ...any) {
	p.Why = append(p.Why, fmt.Sprintf(format, args...))
}

// destinationProblem returns the problem of a destination, or nil if it has none.
func (r *report) destinationProblem(d *destinationOf, slow time.Duration) *problem {
	to := d.target // a copy, since the list is sorted later
	p := &finder{problem{Target: &to, To: d.Name(), Link: "#" + d.ID(), Why: []string{}, weight: d.ErrorsPerSecond}, d, r.Time}
	out, serving := p.endpointsOut()
	p.circuit()
	if serving > 0 && len(out) == serving {
		p.say(critical, "No endpoint is healthy")
	}
	severity := severityOf(d.ErrorShare)
	if d.Errors < fewErrors {
		severity = warning
	}
	if d.Errors >= fewErrors && d.ErrorShare >= someErrors || d.ErrorShare >= halfOfCalls {
		share := percent(d.ErrorShare)
		if p.Title != "" { // it is about the current state, the share about the last minute
			p.Title += ": " + share + " of the last minute's calls failed"
		}
		p.say(severity, share+" of the calls fail")
	}
	p.endpoints(out, serving)
	p.withheld()
	p.causes()
	if pool := d.Pool; pool != nil && pool.MaxRequests > 0 && pool.Active >= pool.MaxRequests {
		p.say(warning, "The connection pool is full")
		p.because("%d calls in flight, maxRequests is %d, %d were refused since the start", pool.Active, pool.MaxRequests, pool.Refused)
	}
	if d.Calls >= slowCalls && d.P99Ms >= milliseconds(slow) {
		p.say(warning, fmt.Sprintf("Slow: 1 of 100 calls takes %s or more", ms(d.P99Ms)))
		p.slowest()
	}
	if e := r.discoveryTrouble(d); e != nil {
		p.say(warning, "Discovery fails")
		p.because("at %s: %s; the last known endpoints stay in use", clock(e.At), e.Text)
	}
	if p.Severity == "" {
		return nil
	}
	return &p.problem
}

func (p *finder) circuit() {
	c := p.Circuit
	if c == nil || c.State == "closed" {
		return
	}
	if c.State == "open" {
		p.say(critical, "The circuit is open")
	} else {
		p.say(warning, "The circuit is half-open")
	}
	if c.Opened.IsZero() {
		return
	}
	slow := ""
	if c.Slow > 0 {
		slow = fmt.Sprintf(", %d were slow", c.Slow)
	}
	p.because("the circuit opened %s ago, at %s: %d of %d calls failed%s", short(p.now.Sub(c.Opened)), clock(c.Opened), c.Failures, c.Calls, slow)
}

// endpointsOut returns the endpoints that should get calls but do not, and how many should get calls.
func (p *finder) endpointsOut() (out []*endpointOf, serving int) {
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		if e.Gone || !p.known || e.Reason == "draining" {
			continue
		}
		if serving++; !e.Healthy {
			out = append(out, e)
		}
	}
	return out, serving
}

// endpoints adds which endpoints get no calls, and which one most errors come from.
func (p *finder) endpoints(out []*endpointOf, serving int) {
	if len(out) > 0 {
		p.say(warning, fmt.Sprintf("%d of %d endpoints get no calls", len(out), serving))
	}
	for i, e := range out {
		if i == mostBlamed {
			p.because("and %d more endpoints", len(out)-i)
			break
		}
		until := ""
		if !e.Until.IsZero() {
			until = fmt.Sprintf(", for at least %s", short(e.Until.Sub(p.now)))
		}
		p.because("%s is out: %s%s", e.Address, e.Reason, until)
	}
	var worst *endpointOf
	errors := 0
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		errors += e.Errors
		if worst == nil || e.Errors > worst.Errors {
			worst = e
		}
	}
	if errors >= fewErrors && len(p.Endpoints) > 1 && float64(worst.Errors) >= blamedAtLeast*float64(errors) {
		p.because("%s caused %d of the %d failed attempts; %s of those it got", worst.Address, worst.Errors, errors, percent(worst.ErrorShare))
	}
}

// withheld adds which of the endpoints that fail stay because of the limit of ejections.
func (p *finder) withheld() {
	told := 0
	for i := range p.Endpoints {
		e := &p.Endpoints[i]
		if p.Severity == "" || e.Withheld == nil || e.Errors == 0 || told == mostBlamed {
			continue
		}
		told++
		p.because("%s %s", e.Address, e.Withheld.Text())
	}
}

// causes adds how the calls failed.
func (p *finder) causes() {
	if p.Severity == "" {
		return
	}
	for i, c := range p.Causes {
		if i < mostBlamed {
			text := fmt.Sprintf("%d× %s", c.Count, c.Text)
			if c.Flags != "" {
				text += " [" + c.Flags + "]"
			}
			if c.Error != "" {
				text += ": " + c.Error
			}
			p.Why = append(p.Why, text)
		}
	}
	if p.Retry != nil && slices.ContainsFunc(p.Causes, func(c causeFigures) bool { return c.flags&mesh.FlagRetriesExhausted != 0 }) {
		p.because("retries were refused: %s", retryText(p.Retry))
	}
}

// slowest adds the endpoint that is slower than the others, if there is one.
func (p *finder) slowest() {
	p.because("half of the calls take %s, the slowest took %s", ms(p.P50Ms), ms(p.SlowestMs))
	var slowest *endpointOf
	for i := range p.Endpoints {
		if e := &p.Endpoints[i]; e.Calls > 0 && (slowest == nil || e.P50Ms > slowest.P50Ms) {
			slowest = e
		}
	}
	others := 0.0
	for i := range p.Endpoints {
		if e := &p.Endpoints[i]; e != slowest {
			others = max(others, e.P50Ms)
		}
	}
	if others > 0 && slowest.P50Ms > 2*others {
		p.because("%s is the slow one: half of its calls take %s, those of the others at most %s", slowest.Address, ms(slowest.P50Ms), ms(others))
	}
}

// discoveryTrouble returns the last failure of discovery for a destination, if it was within the last minute.
func (r *report) discoveryTrouble(d *destinationOf) *event {
	for i := range r.unfound {
		e := &r.unfound[i]
		if e.Target.Host == d.Host && r.Time.Sub(e.At) < recently {
			return e
		}
	}
	return nil
}

func retryText(r *retriesOf) string {
	text := strconv.Itoa(r.Active)
	if r.Most > 0 {
		text += fmt.Sprintf(" of %d", r.Most)
	}
	text += " in flight"
	if r.Budget >= 0 {
		text += fmt.Sprintf(", the budget has %d left", r.Budget)
	}
	return text
}
