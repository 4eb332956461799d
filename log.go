package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh/breaker"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/findings"
	"github.com/nosidecar/mesh/internal/fraction"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/jwt"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/tlsid"
)

// WithLogger logs to logger, instead of to [slog.Default], what goes wrong outside calls: documents that are refused or have
// warnings, ejections and those that maxEjectionPercent withholds, circuits, refused connections, and failures of discovery and of the
// identity of the process. It is logged whether or not an [Observer] is told of it, since most observers only count. A logger with
// [slog.DiscardHandler] is silent. Parts that the program makes itself may have loggers of their own, as the Feed of
// policy/kubernetes and the registration of discovery/consul have.
func WithLogger(logger *slog.Logger) Option {
	return func(o *options) error {
		if logger == nil {
			return errors.New("mesh: WithLogger: the logger is nil: to be silent, give it one of slog.DiscardHandler")
		}
		o.logger = logger
		return nil
	}
}

// journal logs what observers are told.
type journal struct {
	logger *slog.Logger // nil means slog.Default at the time

	mu      sync.Mutex
	begun   bool                 // New has returned; until then, New returns what goes wrong
	alone   map[string]string    // by refused document that stands alone: what is in force in its place
	warned  map[string]bool      // the warnings of the last load, which are not repeated
	refused bool                 // the last load was refused
	failed  map[string]time.Time // when each failure of discovery, and each ejection that was withheld, was last logged
	keyless map[jwt.Source]bool  // sources of keys whose failure was logged
	barred  map[barred]*tally    // the refused connections
}

// observer returns the journal as an observer.
func (j *journal) observer() Observer {
	return Observer{
		PolicyLoad: j.policyLoad, Ejection: j.ejection, EjectionWithheld: j.ejectionWithheld, Circuit: j.circuit,
		DiscoveryFailed: j.discoveryFailed, Identity: j.identity, Keys: j.keys, ConnectionRefused: j.connectionRefused,
	}
}

func (j *journal) to() *slog.Logger {
	if j.logger != nil {
		return j.logger
	}
	return slog.Default()
}

// begin records that New has returned.
func (j *journal) begin() {
	j.mu.Lock()
	j.begun = true
	j.mu.Unlock()
}

// mostWarnings bounds the warnings that are logged per load, and mostErrors the errors of a load that is refused.
const (
	mostWarnings = 50
	mostErrors   = 20
)

// briefly returns an error that names only the first of many findings, and counts the others.
func briefly(err error) error {
	var all policy.Findings
	if !errors.As(err, &all) || len(all) <= mostErrors {
		return err
	}
	return fmt.Errorf("%w\nand %d more, see mesh check", all[:mostErrors], len(all)-mostErrors)
}

// discreet returns what is logged of an error: the error, or its text if that has to be without the credentials and queries of URLs in it.
func discreet(err error) any {
	text := err.Error()
	if clean := field.Discreet(text); clean != text {
		return clean
	}
	return err
}

func (j *journal) policyLoad(load PolicyLoad) {
	if load.remark {
		for _, f := range load.Findings {
			j.to().Warn("mesh: document", "finding", field.Discreet(f.String()))
		}
		return
	}
	j.mu.Lock()
	begun, again := j.begun, j.refused && load.Err == nil
	j.refused = begun && load.Err != nil // New itself returns earlier refusals
	var warnings []string
	if load.Err == nil {
		before := j.warned
		j.warned = make(map[string]bool)
		for _, f := range findings.ByWeight(load.Findings) {
			if text := f.String(); f.Severity == policy.Warning && f.InForce == "" && !aboutOthers(f) {
				if j.warned[text] = true; !before[text] {
					warnings = append(warnings, text)
				}
			}
		}
	}
	j.mu.Unlock()

	log := j.to()
	if load.Err == nil {
		j.refusals(load)
	}
	switch {
	case load.Err != nil && begun && load.Version == "":
		log.Error("mesh: documents cannot be read, the last good ones stay in force", "load", load.Number, "error", load.Err)
	case load.Err != nil && begun:
		log.Error("mesh: documents are refused, the last good ones stay in force", "load", load.Number, "version", load.Version, "error", discreet(briefly(load.Err)))
	case again:
		log.Info("mesh: the documents are good again, and in force", "load", load.Number, "version", load.Version)
	}
	for i, warning := range warnings {
		if i == mostWarnings {
			log.Warn("mesh: documents: more warnings, see mesh check", "count", len(warnings)-i)
			break
		}
		log.Warn("mesh: document", "finding", field.Discreet(warning))
	}
}

// refusals logs which documents that stand alone are refused, and which no longer are. A document is not logged again while the
// same is in force in its place.
func (j *journal) refusals(load PolicyLoad) {
	now := make(map[string]string)
	var fresh policy.Findings
	j.mu.Lock()
	for _, f := range alone(load.Findings) {
		name := cmp.Or(documentOf(f), f.File)
		if now[name] = f.InForce; j.alone[name] != f.InForce {
			fresh = append(fresh, f)
		}
	}
	var ended []string
	for _, name := range slices.Sorted(maps.Keys(j.alone)) {
		if now[name] == "" {
			ended = append(ended, name)
		}
	}
	j.alone = now
	j.mu.Unlock()
	log := j.to()
	for i, f := range fresh {
		if i == mostWarnings {
			log.Error("mesh: documents: more are refused, see Mesh.Status", "count", len(fresh)-i)
			break
		}
		log.Error("mesh: a document is refused, the others take effect", "document", cmp.Or(documentOf(f), f.File),
			"inForce", f.InForce, "since", f.Since, "finding", field.Discreet(f.String()))
	}
	for i, name := range ended {
		if i == mostWarnings {
			log.Info("mesh: documents: more are no longer refused", "count", len(ended)-i)
			break
		}
		log.Info("mesh: a document is no longer refused", "document", name)
	}
}

// aboutOthers reports whether a finding says that no security document selects this process, which is normal for a process that
// only makes calls.
func aboutOthers(f policy.Finding) bool {
	return strings.HasPrefix(f.Message, "neither this security document nor any other is about this workload")
}

func (j *journal) ejection(target route.Target, event breaker.Event) {
	if event.Ejected {
		j.to().Warn("mesh: endpoint ejected", "destination", target.String(), "endpoint", event.Endpoint,
			"reason", string(event.Reason), "until", event.Until, "failures", event.Failures, "calls", event.Calls)
		return
	}
	j.to().Info("mesh: endpoint readmitted", "destination", target.String(), "endpoint", event.Endpoint)
}

// ejectionWithheld logs which setting keeps an endpoint in. An endpoint that fails and recovers in turn is logged once per repeatAfter.
func (j *journal) ejectionWithheld(target route.Target, event breaker.Event) {
	if j.again(fmt.Sprintf("ejection %s %s %v", target, event.Endpoint, event.Limit)) {
		return
	}
	message := "mesh: endpoint fails and is not ejected, since maxEjectionPercent allows no more ejections"
	if event.Needed == 1 {
		message = "mesh: endpoint fails and is not ejected, since no other endpoint takes calls"
	}
	j.to().Warn(message, "destination", target.String(), "endpoint", event.Endpoint, "reason", string(event.Reason), "failures", event.Failures,
		"calls", event.Calls, "maxEjectionPercent", fraction.Percent(event.Limit), "needed", math.Ceil(fraction.Percent(event.Needed)))
}

func (j *journal) circuit(target route.Target, change breaker.Change) {
	level, counts := slog.LevelInfo, []any(nil)
	if change.To == breaker.Open {
		level, counts = slog.LevelWarn, []any{"failures", change.Failures, "slow", change.Slow, "calls", change.Calls}
	}
	j.to().Log(context.Background(), level, "mesh: circuit", append([]any{"destination", target.String(),
		"from", change.From.String(), "to", change.To.String()}, counts...)...)
}

// Discovery keeps trying, so the same failure of a service is logged only once per repeatAfter. At most mostFailures failures
// are remembered.
const (
	repeatAfter  = 10 * time.Minute
	mostFailures = 1000
)

// ownPort is the port of this end in the text of a network error, such as "read udp 10.0.0.9:40000->10.0.0.1:53: i/o timeout".
var ownPort = regexp.MustCompile(`:[0-9]+->`)

func (j *journal) discoveryFailed(service discovery.Service, err error) {
	if !j.again(service.Host + ": " + ownPort.ReplaceAllString(err.Error(), "->")) { // each connection has a port of its own
		j.to().Warn("mesh: discovery failed, the last endpoints stay", "service", service.Host, "error", discreet(err))
	}
}

// again reports whether the same was logged less than repeatAfter ago. If not, it is from now on.
func (j *journal) again(text string) bool {
	now := time.Now()
	j.mu.Lock()
	defer j.mu.Unlock()
	if last, known := j.failed[text]; known && now.Sub(last) < repeatAfter {
		return true
	}
	if j.failed == nil || len(j.failed) >= mostFailures {
		j.failed = make(map[string]time.Time)
	}
	j.failed[text] = now
	return false
}

func (j *journal) identity(_ *tlsid.Identity, err error) {
	if err != nil {
		j.to().Error("mesh: no new identity", "error", discreet(err))
	}
}

// keys logs the first of the failures to fetch keys, and the end of them.
func (j *journal) keys(state jwt.State) {
	j.mu.Lock()
	before, now := j.keyless[state.Source], state.Err != nil
	if j.keyless == nil || len(j.keyless) >= mostFailures { // most of them are sources that documents no longer name
		j.keyless = make(map[jwt.Source]bool)
	}
	if j.keyless[state.Source] = now; !now {
		delete(j.keyless, state.Source)
	}
	j.mu.Unlock()
	switch {
	case now && !before && state.Keys == 0:
		j.to().Error("mesh: there are no keys to verify tokens with: tokens are refused", "uri", field.Discreet(state.Source.URI), "error", discreet(state.Err))
	case now && !before:
		j.to().Warn("mesh: no new keys to verify tokens with, the last ones stay in force", "uri", field.Discreet(state.Source.URI), "error", discreet(state.Err))
	case before && !now:
		j.to().Info("mesh: the keys to verify tokens with are fetched again", "uri", field.Discreet(state.Source.URI))
	}
}

// barred is why connections are refused, and where. Peers must not be able to make up any number of them.
type barred struct{ local, reason string }

// tally is when refused connections were last logged, and how many there were since.
type tally struct {
	logged time.Time
	since  int
}

// refusals are the reasons that may be told apart. Those of all others have text that the peer chooses.
var refusals = [...]error{errElsewhere, errUncertain, tlsid.ErrPlaintext, tlsid.ErrTLSDisabled, tlsid.ErrTooManyPending, errNoHandler, errDenied, errNoPeer}

// reasonOf returns the kind of the reason of a refusal.
func reasonOf(err error) string {
	for _, known := range refusals {
		if errors.Is(err, known) {
			return known.Error()
		}
	}
	if _, certificate := errors.AsType[*tlsid.PeerError](err); certificate {
		return "certificate"
	}
	return ""
}

// connectionRefused logs the first connection that a listener refuses for a reason, and the number of those that followed once
// per repeatAfter: peers decide how many there are.
func (j *journal) connectionRefused(local net.Addr, refusal tlsid.Refusal) {
	if refusal.Err == io.EOF {
		return // the probe of a load balancer, which sends nothing
	}
	of, now := barred{local.String(), reasonOf(refusal.Err)}, time.Now()
	j.mu.Lock()
	t := j.barred[of]
	if t == nil {
		if j.barred == nil || len(j.barred) >= mostFailures { // a listener of ListenTCP may have many addresses
			j.barred = make(map[barred]*tally)
		}
		t = new(tally)
		j.barred[of] = t
	}
	again, more := !t.logged.IsZero() && now.Sub(t.logged) < repeatAfter, t.since
	if t.since++; !again {
		*t = tally{logged: now}
	}
	j.mu.Unlock()
	if again {
		return
	}
	about := []any{"listener", of.local, "mode", refusal.Mode.String(), "error", refusal.Err}
	if refusal.RemoteAddr == nil {
		j.to().Warn("mesh: the listener fails for now, and is asked again", about...)
		return
	}
	if more > 0 {
		about = append(about, "unlogged", more)
	}
	j.to().Warn("mesh: connection refused", append(about, "peer", refusal.RemoteAddr.String())...)
}
