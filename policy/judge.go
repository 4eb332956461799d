package policy

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/smi"
)

// piece is a document of a source, with the verdict on it.
type piece struct {
	document
	source int // its index
	alone  bool

	nowhere bool // its namespace could not be read

	twin    bool // the same document is in force from another source
	verdict verdict
	last    *document // its last good version in the form in which it is kept; nil if there is none
	refused *refused  // nil as long as it is in force as it is written
}

// refused says why a document is refused, and what is closed in its place.
type refused struct {
	problems []yamldoc.Problem
	omitted  int
	shut     closure
}

// verdict says what is in force in place of a document.
type verdict uint8

const (
	asWritten verdict = iota
	lastGood          // its last good version
	leftOut           // nothing
	closed            // nothing, and what it may protect is closed
)

// String returns the text for [Finding.InForce].
func (v verdict) String() string {
	return [...]string{asWritten: "", lastGood: "last good", leftOut: "nothing", closed: "denial"}[v]
}

// mostAlone bounds the number of documents of a namespace that stand alone, so that a flood in one namespace does not affect other namespaces.
// Documents that protect workloads are counted separately from all others.
var mostAlone = 10_000 // only tests change it

// key identifies a document that stands alone.
func (d *document) key() groupIdentity { return groupIdentity{d.group, d.identity} }

// refusal identifies a document that is refused, and the object that it is a version of.
func (p *piece) refusal() refusal {
	if p.unknown() {
		return refusal{uid: p.file}
	}
	return refusal{p.key(), p.uid}
}

type refusal struct {
	groupIdentity
	uid string
}

// unknown reports whether the identity of the document, or the documents in a List, could not be read.
func (p *piece) unknown() bool { return p.Failed() && (p.kind == "" || p.name == "" || p.list()) }

// lineUp sorts the documents that stand alone, finds their last good versions, and refuses those with errors.
func (c *compiler) lineUp() {
	c.alone = empty(&c.room.alone, len(c.pieces))
	var unknown []*piece
	for _, p := range c.pieces {
		if !p.alone {
			continue
		}
		if p.unknown() {
			c.guess(p)
		}
		if p.unknown() {
			unknown = append(unknown, p)
		} else if last := c.last.kept.plain(p.key()); last != nil && last.uid == p.uid {
			p.last = last
		}
		c.alone = append(c.alone, p)
	}
	c.keepAll(unknown)
	slices.SortStableFunc(c.alone, func(a, b *piece) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.namespace, b.namespace), cmp.Compare(a.name, b.name))
	})
	type sort struct {
		namespace string
		protects  bool
	}
	count := make(map[sort]int)
	for _, p := range c.alone {
		if p.list() {
			continue
		}
		of := sort{p.namespace, p.protects()}
		if count[of]++; count[of] > mostAlone {
			p.Errorf("", "there are more than %d documents of its sort in %s that are older: remove some", mostAlone, p.namespace)
		}
	}
	for _, p := range c.alone {
		if p.verdict == asWritten && p.Failed() && !p.list() {
			c.refuse(p, p.Document)
		}
	}
}

// keepAll keeps the last good versions of all documents that the sources of these pieces had before, because each may be any of them.
func (c *compiler) keepAll(unknown []*piece) {
	if len(unknown) == 0 {
		return
	}
	present := make(map[groupIdentity]bool)
	for _, p := range c.alone {
		if !p.unknown() {
			present[p.key()] = true
		}
	}
	before := make(map[string][]*document) // by file
	for last := range c.last.good() {
		before[last.file] = append(before[last.file], last)
	}
	for _, p := range unknown {
		for _, last := range before[p.file] {
			key := last.key()
			if present[key] {
				continue
			}
			present[key] = true
			kept := &piece{document: *last, source: p.source, alone: true, verdict: lastGood, last: last}
			kept.Document, kept.refused = p.Document, &refused{problems: p.Problems, omitted: p.Omitted()}
			c.alone, c.pieces = append(c.alone, kept), append(c.pieces, kept)
		}
		delete(before, p.file)
	}
}

// good yields the last good versions of the documents that stand alone.
func (p *Plan) good() iter.Seq[*document] {
	return func(yield func(*document) bool) {
		for d := range p.kept.values() {
			if !yield(d) {
				return
			}
		}
		for _, d := range p.keptToo {
			if !yield(d) {
				return
			}
		}
	}
}

// refuse decides what is in force in place of a document with errors. d is the version that has them.
func (c *compiler) refuse(p *piece, d *yamldoc.Document) {
	if p.verdict == asWritten {
		p.refused = &refused{problems: slices.Clone(d.Problems), omitted: d.Omitted()}
	}
	switch {
	case p.twin:
		p.verdict = leftOut
		return
	case p.verdict == asWritten && p.last != nil && !p.same(p.last):
		p.verdict = lastGood
		return
	}
	p.verdict = leftOut
	shut := c.closing(p)
	if p.last != nil { // what was in force until now may have protected something else
		last := *p.last
		last.Document = last.Restored(&last.digest)
		shut = shut.and(c.closing(&piece{document: last, source: p.source}))
	}
	if p.refused.shut = shut; shut.denies || shut.hosts != nil || shut.outside > ofOthers {
		p.verdict = closed
	}
}

// judge refuses the documents that stand alone and have an error together with others. It reports whether that changes what is in force: all
// documents must then be combined again. It does nothing if a document that does not stand alone has an error: then no document takes effect.
func (c *compiler) judge() bool {
	if slices.ContainsFunc(c.documents, func(d *document) bool { return d.Failed() && !d.from.alone }) {
		return false
	}
	if c.rounds >= mostRounds {
		c.refuseRivals()
	}
	changed := false
	for _, d := range c.documents {
		if d.Failed() {
			before := d.from.verdict
			c.refuse(d.from, d.Document)
			changed = changed || d.from.verdict != before
		}
	}
	return changed
}

// again returns a compiler that combines the same documents again.
func (c *compiler) again() *compiler {
	n := newCompiler(c.last, c.plan.workload, c.room)
	n.plan.texts, n.plan.words = c.plan.texts, c.plan.words
	n.dec, n.texts, n.fresh, n.blank, n.count, n.joints = c.dec, c.texts, c.fresh, c.blank, c.count, c.joints
	n.pieces, n.alone, n.sources, n.rounds = c.pieces, c.alone, c.sources, c.rounds+1
	for _, p := range n.pieces {
		if p.verdict == asWritten {
			p.Renew(&p.digest)
			p.idle, p.used = false, false
		}
	}
	return n
}

// current returns the document that is in force in place of p, or nil if there is none.
func (p *piece) current() *document {
	switch {
	case p.verdict == lastGood:
		return &document{Document: p.last.Restored(&p.last.digest), reading: p.last.reading, file: p.last.file, from: p}
	case p.verdict != asWritten:
		return nil
	}
	return &p.document
}

// newer reports whether d, rather than other, is refused if the two are valid only without each other. It is the one that stands alone or, if
// both do, the one that has changed.
func (c *compiler) newer(d, other *document) bool { return c.age(d) < c.age(other) }

func (c *compiler) age(d *document) int {
	switch p := d.from; {
	case !p.alone:
		return 2
	case p.verdict != asWritten || p.last != nil && p.same(p.last):
		return 1
	}
	return 0
}

// mostRounds is the number of rounds in which single documents are refused to find those that are valid together. After that, whole groups
// of documents are refused, because more rounds would take too long.
const mostRounds = 8

// blame returns the document that is refused if composer, which leads to other documents, cannot be enforced together with one of them,
// newest. The author of a document in another namespace may not know about composer, so that document stays in force. After many rounds,
// composer is always refused.
func (c *compiler) blame(composer, newest *document) *document {
	if composer.from.alone && (newest.namespace != composer.namespace || c.rounds >= mostRounds) {
		return composer
	}
	return newest
}

// refuseRivals refuses, together with each document that fails after many rounds, those that would replace it in the next round and possibly
// fail too: the others of its kind and namespace for the same hosts. After many more rounds, it refuses all of its kind and namespace.
func (c *compiler) refuseRivals() {
	type place struct {
		kind, namespace, host string
	}
	claims, what := c.hosts, "for the same hosts"
	if c.rounds >= 4*mostRounds {
		claims, what = func(*document) []string { return []string{""} }, "of this kind"
	}
	failed := make(map[place]*document)
	for _, d := range c.documents {
		if !d.Failed() {
			continue
		}
		for _, host := range claims(d) {
			if at := (place{d.kind, d.namespace, host}); failed[at] == nil {
				failed[at] = d
			}
		}
	}
	for _, d := range c.documents {
		if d.Failed() || !d.from.alone || d.is == nil {
			continue
		}
		for _, host := range claims(d) {
			if with := failed[place{d.kind, d.namespace, host}]; with != nil {
				d.Errorf("spec", "is left out with %s, which cannot be enforced: many documents %s cannot", with.identity, what)
				break
			}
		}
	}
}

// hosts returns the hosts that a document is about, if several documents can be about the same host.
func (c *compiler) hosts(d *document) []string {
	switch is := d.is.(type) {
	case *virtual:
		return is.hosts
	case *destination:
		return []string{is.host}
	case *entry:
		return is.hosts
	case *smi.TrafficSplit:
		return []string{c.service(is.Spec.Service, d.namespace)}
	}
	return nil
}

// same reports whether two documents have the same text, or say the same as items of Lists.
func (d *document) same(other *document) bool {
	sum, own := d.Sum()
	otherSum, otherOwn := other.Sum()
	return d.reading == other.reading || own && otherOwn && sum == otherSum
}

// shares reports whether two documents share the memory of their text. Otherwise, keeping the old one would keep its whole source in memory.
func (d *document) shares(other *document) bool {
	a, b := d.Raw(), other.Raw()
	return len(a) > 0 && len(b) > 0 && &a[0] == &b[0]
}

// keep stores, for the next plan, the last good versions of the documents that stand alone, which of them are refused, and which cannot be
// enforced together.
func (c *compiler) keep() {
	if len(c.alone) == 0 {
		return
	}
	plan, now := c.plan, time.Now()
	plan.kept = newTable(&c.last.kept, &c.room.kept)
	plan.refused = make(map[refusal]time.Time)
	plan.unenforceable = make(map[string][]*joint)
	for host, joints := range c.joints {
		if joints = slices.DeleteFunc(joints, func(j *joint) bool { return j.err == nil }); len(joints) > 0 {
			plan.unenforceable[host] = joints
		}
	}
	for _, p := range c.alone {
		last := p.last
		switch {
		case p.verdict == asWritten && (p.is == nil || p.name == ""):
			continue
		case p.verdict == asWritten && (last == nil || last.reading != p.reading || last.file != p.file || last.Line != p.Line || !p.shares(last)):
			last = &document{Document: p.Kept(), reading: p.reading, file: p.file}
		case p.verdict != asWritten:
			at := p.refusal()
			since, before := c.last.refused[at]
			if !before {
				since = now
			}
			plan.refused[at] = since
			if last == nil || p.twin || plan.kept.plain(p.key()) != nil { // the object has a better one
				continue
			}
		}
		if other := plan.kept.plain(p.key()); other != nil && other.file != last.file {
			plan.keptToo = append(plan.keptToo, other)
		}
		plan.kept.put(p.key(), last)
	}
	plan.kept.share(&c.last.kept, func(_, now *document) *document { return now })
}

// refusals adds the findings about the documents that stand alone and are refused.
func (c *compiler) refusals(add func(d *document, problems []yamldoc.Problem, omitted int, about Finding)) {
	for _, p := range c.pieces {
		if p.verdict != asWritten {
			why, inForce := p.refused, p.verdict.String()
			if p.bare() != nil {
				inForce = "its ports"
			}
			add(&p.document, why.problems, why.omitted, Finding{InForce: inForce, Since: c.plan.refused[p.refusal()]})
		}
	}
}

// twice reports that a document has the identity of another one. If the text of a last good version is the same as that of the other document,
// that does not make the refused version a twin. Two feeds may have different versions of one object for a while. Which one is newer is unknown,
// and anybody can copy a uid, so whatever either version forbids is forbidden. Of those that say who may connect, one counts: see settle.
func (d *document) twice(first *document) {
	sameObject := first.from.alone && d.from.alone && d.uid != "" && d.uid == first.uid
	if _, forbids := d.is.(*access); forbids && sameObject && !d.same(first) {
		d.Warnf("metadata.name", "%s is there in another version, too, in %s:%d: both are in force", d, first.file, first.Line)
		return
	}
	if sameObject && d.admits() != nil && !d.admitsSame(first) {
		d.settle(first)
		return
	}
	d.from.twin = sameObject || d.from.verdict == asWritten && d.same(first)
	d.Errorf("metadata.name", "%s is defined twice, first in %s:%d: remove or rename one of them", d, first.file, first.Line)
}

// reason returns the reason of a decision that denies a request because of a refused document.
func reason(document string) string {
	return document + " is refused and has no last good version: what it forbids is not known"
}

// called names a document that closes something: by its identity or, if that is unknown, by its place.
func (p *piece) called() string {
	if p.kind == "" || p.name == "" {
		return fmt.Sprintf("the document at %s:%d", p.file, p.Line)
	}
	return p.identity.String()
}

// culprit returns the document to blame for an error of all documents of a list together: the last one that has changed, otherwise the last
// one that stands alone, otherwise the first one.
func culprit[T any](c *compiler, list []decoded[T]) *document {
	if len(list) == 0 {
		return c.documents[0]
	}
	blamed := list[0].document
	for _, d := range list {
		if c.age(d.document) < 2 && !c.newer(blamed, d.document) {
			blamed = d.document
		}
	}
	return blamed
}
