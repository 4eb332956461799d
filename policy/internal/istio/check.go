package istio

import (
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// The functions below check single values. Each returns what is wrong, or "".

// wrongHost checks a host name as Istio does: labels of letters, digits and hyphens, joined by dots. It may end in a dot and begin with a
// wildcard.
func wrongHost(host string) string {
	if host == "" {
		return "a host name must not be empty"
	}
	if len(host) > 255 {
		return "a host name has at most 255 characters"
	}
	first, rest, dotted := strings.Cut(host, ".")
	if len(first) > 63 {
		return fmt.Sprintf("%q is not a host name: a DNS label has at most 63 characters", host)
	}
	if bare, wild := strings.CutPrefix(first, "*"); wild {
		first = strings.TrimPrefix(bare, "-")
		if bare == "" {
			first = "wildcard"
		}
	}
	if !isLabel(first) {
		return fmt.Sprintf("%q is not a host name: %q is not a DNS label", host, first)
	}
	if !dotted {
		return ""
	}
	labels := strings.Split(rest, ".")
	last := labels[len(labels)-1]
	if _, err := strconv.Atoi(last); err == nil {
		return fmt.Sprintf("%q is not a host name: its last label is a number", host)
	}
	for i, label := range labels {
		if label == "" && i == len(labels)-1 {
			break
		}
		if !isLabel(label) {
			return fmt.Sprintf("%q is not a host name: %q is not a DNS label", host, label)
		}
	}
	return ""
}

// isLabel reports whether s can be a label of a host name (RFC 1123).
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && c != '-' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

func isIP(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// wrongDuration checks a duration that, in Istio, must be at least a millisecond and a whole number of milliseconds.
func wrongDuration(d yamldoc.Duration) string {
	if message := shortDuration(d); message != "" {
		return message
	}
	if d.Duration%time.Millisecond != 0 {
		return fmt.Sprintf("%v is not a whole number of milliseconds", d.Duration)
	}
	return ""
}

// shortDuration checks a duration that only Istio's Kubernetes schema validates: it must be at least a millisecond.
func shortDuration(d yamldoc.Duration) string {
	if d.Set && d.Duration < time.Millisecond {
		return fmt.Sprintf("%v is less than 1ms: leave the field out to have no limit", d.Duration)
	}
	return ""
}

// wrongRegex checks a regular expression as Istio does.
func wrongRegex(expr string) string {
	if expr == "" {
		return "a regular expression must not be empty"
	}
	if len(expr) > 1024 {
		return "a regular expression has at most 1024 characters"
	}
	if _, err := regexp.Compile(expr); err != nil {
		return fmt.Sprintf("%v; the syntax is RE2, https://github.com/google/re2/wiki/Syntax", err)
	}
	return ""
}

// wrongPercentage checks a percentage, such as that of a fault or a mirror.
func wrongPercentage(value float64) string {
	if value < 0 || value > 100 {
		return fmt.Sprintf("%v is not a percentage: it must be from 0 to 100", value)
	}
	return ""
}

// smallPercentage returns a warning if a percentage is probably meant as a fraction.
func smallPercentage(value float64) string {
	if value <= 0 || value >= 1 {
		return ""
	}
	return fmt.Sprintf("percentages go from 0 to 100, so %v is %v%% of the requests, not %v%%",
		value, value, strconv.FormatFloat(value*100, 'g', 6, 64))
}

// idleMethod returns why a method in small letters is a mistake, since methods are case-sensitive.
func idleMethod(method string) string {
	switch upper := strings.ToUpper(method); upper {
	case method:
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE":
		return fmt.Sprintf("%q is the method of no request: write %q", method, upper)
	}
	return ""
}

func wrongPort(port uint32) string {
	if port < 1 || port > 65535 {
		return fmt.Sprintf("%d is not a port: it must be from 1 to 65535", port)
	}
	return ""
}

// wrongIPBlock checks an IP address, or a network in CIDR notation.
func wrongIPBlock(s string) string {
	if _, err := netip.ParsePrefix(s); err != nil && (!isIP(s) || strings.Contains(s, "%")) {
		return fmt.Sprintf("%q is neither an IP address nor a network such as 10.0.0.0/8", s)
	}
	return ""
}

// wrongLabels checks labels as Istio does. It returns the key of the first invalid one. Like Istio, it does not check the length of
// values: a value that is too long only selects no workload.
func wrongLabels(labels map[string]string) (key, message string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		prefix, name, prefixed := strings.Cut(key, "/")
		if !prefixed {
			name = key
		}
		switch value := labels[key]; {
		case prefixed && !isPrefix(prefix), !isLabelText(name), len(name) > 63:
			return key, fmt.Sprintf("%q is not the name of a label", key)
		case value != "" && !isLabelText(value):
			return key, fmt.Sprintf("%q is not the value of a label: letters, digits, hyphens, underscores and dots, with a "+
				"letter or digit at both ends", value)
		}
	}
	return "", ""
}

// isPrefix reports whether s, a domain name, can be the prefix in the name of a label.
func isPrefix(s string) bool {
	return len(s) <= 253 && !slices.ContainsFunc(strings.Split(s, "."), func(label string) bool { return !isLabel(label) })
}

func isLabelText(s string) bool {
	if s == "" || !alphanumeric(s[0]) || !alphanumeric(s[len(s)-1]) {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alphanumeric(c) && strings.IndexByte("-_.", c) < 0 {
			return false
		}
	}
	return true
}

// covering is a name that covers equal names and, if it is open, all names that begin with its text.
type covering struct {
	text  string
	open  bool
	index int
}

// mostNested bounds the names that nested returns for one name.
const mostNested = 8

// nested returns, for each name by its index, the indices of earlier names that cover it or that it covers, if counts returns true for the
// pair. It returns at least one of them if there are any, but not all equal names. It does not compare all pairs, because a document may
// have many names. It changes the order of names.
func nested(names []covering, counts func(outer, inner int) bool) [][]int {
	earlier := make([][]int, len(names))
	pair := func(outer, inner int) {
		first, second := min(outer, inner), max(outer, inner)
		if len(earlier[second]) < mostNested && counts(outer, inner) {
			earlier[second] = append(earlier[second], first)
		}
	}
	slices.SortFunc(names, func(a, b covering) int {
		switch c := strings.Compare(a.text, b.text); {
		case c != 0:
			return c
		case a.open == b.open:
			return a.index - b.index
		case a.open:
			return -1
		}
		return 1
	})
	var around []covering // the open names that cover the current one, each with another text
	for i, name := range names {
		for len(around) > 0 && !strings.HasPrefix(name.text, around[len(around)-1].text) {
			around = around[:len(around)-1]
		}
		for _, outer := range around {
			pair(outer.index, name.index)
		}
		switch {
		case name.open && (len(around) == 0 || around[len(around)-1].text != name.text):
			around = append(around, name)
		case !name.open && i > 0 && !names[i-1].open && names[i-1].text == name.text:
			pair(names[i-1].index, name.index)
		}
	}
	for i := range earlier {
		slices.Sort(earlier[i])
	}
	return earlier
}

// check is a document that is being checked.
type check struct {
	*yamldoc.Document
	idle bool // the part that is being checked has no effect here, so it may contain what is not enforced
}

// refuse reports an error about something valid that is not enforced, unless it has no effect here.
func (c check) refuse(at, format string, args ...any) {
	if !c.idle {
		c.Errorf(at, format, args...)
	}
}

// that reports a message, unless it is empty, as an error in the field at base + field. It returns whether the message is empty.
func (c check) that(message, base, field string) bool {
	if message != "" {
		c.Errorf(base+field, "%s", message)
	}
	return message == ""
}

// warn reports a message, unless it is empty, as a warning.
func (c check) warn(message, base, field string) {
	if message != "" {
		c.Warnf(base+field, "%s", message)
	}
}

func (c check) duration(d yamldoc.Duration, base, field string) {
	c.that(wrongDuration(d), base, field)
}

func (c check) labels(labels map[string]string, base, field string) {
	if key, message := wrongLabels(labels); message != "" {
		c.Errorf(yamldoc.Key(base+field, key), "%s", message)
	}
}

// selector checks labels that select workloads.
func (c check) selector(s *WorkloadSelector, at string) {
	if s == nil {
		return
	}
	if len(s.MatchLabels) == 0 {
		c.Warnf(at, "selects every workload of the namespace: it has no labels")
	}
	c.atMost(len(s.MatchLabels), 4096, at+".matchLabels")
	c.selectorLabels(s.MatchLabels, at+".matchLabels")
}

func (c check) selectorLabels(labels map[string]string, at string) {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		at, value := yamldoc.Key(at, key), labels[key]
		switch {
		case strings.Contains(key, "*") || strings.Contains(value, "*"):
			c.Errorf(at, "%s=%s has a wildcard, which selectors cannot have", key, value)
		case len(value) > 63:
			c.Errorf(at, "the value of a label has at most 63 characters")
		default:
			if _, message := wrongLabels(map[string]string{key: value}); message != "" {
				c.Warnf(at, "selects no workload: %s", message)
			}
		}
	}
}

func (c check) atMost(n, most int, at string) {
	if n > most {
		c.Errorf(at, "is too long: the most is %d", most)
	}
}

// created checks the creation time, for kinds of which only the oldest document counts.
func (c check) created() {
	if text := c.Text("metadata.creationTimestamp"); text != "" {
		if _, err := time.Parse(time.RFC3339, text); err != nil {
			c.Errorf("metadata.creationTimestamp", "%q is not a time such as 2026-01-31T12:00:00Z", text)
		}
	}
}

// dryRun is the annotation of an AuthorizationPolicy that is evaluated but not enforced.
const dryRun = "istio.io/dry-run"

// revision is the label of a document that only istiod of one revision reads.
const revision = "istio.io/rev"

func (c check) metadata(m *yamldoc.Metadata) {
	c.identity(m)
	if _, set := m.Annotations[dryRun]; set {
		c.Errorf(yamldoc.Key("metadata.annotations", dryRun), "goes with an AuthorizationPolicy only: remove it")
	}
}

// identity checks the metadata of documents of all kinds.
func (c check) identity(m *yamldoc.Metadata) {
	m.Check(c.Document)
	if of, set := m.Labels[revision]; set {
		c.Warnf(yamldoc.Key("metadata.labels", revision), "has no effect: the document counts, whether or not %q is the revision that is in use", of)
	}
}

// exporter describes a document with an exportTo.
type exporter struct {
	namespace string
	services  bool // it is a ServiceEntry
	selects   bool // it has a workloadSelector
}

// exportTo checks the namespaces that a document is exported to.
func (c check) exportTo(list []string, by exporter) {
	seen := make(map[string]bool)
	for i, entry := range list {
		at := yamldoc.Index("spec.exportTo", i)
		key := entry
		if entry == "." {
			key = by.namespace
		}
		switch {
		case seen[key]:
			c.Errorf(at, "%q is listed twice", entry)
		case entry == "~" && !by.services:
			c.Errorf(at, `"~" is for ServiceEntries only`)
		case entry == "~" && len(list) > 1:
			c.Errorf(at, `"~" goes with no other entry`)
		case entry == "~":
		case entry != "*" && entry != "." && !isLabel(entry):
			c.Errorf(at, `%q is neither a namespace nor "." nor "*"`, entry)
		case entry == "*" && len(list) > 1:
			c.Errorf(at, `"*" goes with no other entry`)
		case by.selects && key != by.namespace:
			c.Errorf(at, "a rule with a workloadSelector acts in its own namespace only")
		}
		seen[key] = true
	}
}

// VisibleFrom reports whether a document that is exported to a list of namespaces is visible to the client's namespace, and whether it
// is public, which means exported to all namespaces. Documents that are exported to a namespace by name take precedence over public
// ones.
func VisibleFrom(client, namespace string, exportTo []string) (visible, public bool) {
	if len(exportTo) == 0 {
		return true, true
	}
	for _, entry := range exportTo {
		switch {
		case entry == "*":
			return true, true
		case entry == client, entry == "." && namespace == client:
			return true, false
		}
	}
	return false, false
}

// Resolve returns the full name, in lower case, of a host in a document of the given namespace.
func Resolve(host, namespace, clusterDomain string) string {
	host = strings.ToLower(host)
	if host == "*" || strings.Contains(host, ".") || isIP(host) {
		return strings.TrimSuffix(host, ".")
	}
	return host + "." + namespace + ".svc." + clusterDomain
}

// Matches reports whether a host, which may be "*" or begin with it, covers another host.
func Matches(host, other string) bool {
	if end, wild := strings.CutPrefix(host, "*"); wild {
		return strings.HasSuffix(strings.TrimPrefix(other, "*"), end)
	}
	return host == other
}
