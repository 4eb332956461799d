package mesh

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy"
)

// Feed is a source of documents that change while the mesh runs. policy/file has one for folders.
type Feed interface {
	// Watch yields all documents of the source now, and again after every change, until ctx ends or the caller stops. An
	// error is reported and otherwise changes nothing; Watch goes on trying. A feed that has a method String is named by it in
	// errors.
	Watch(ctx context.Context) iter.Seq2[[]policy.Source, error]
}

// documents are what the mesh is told: what the program gave and what the feeds yielded last. They are compiled together,
// in this order: where two documents claim a host, the earlier one has it.
type documents struct {
	mu     sync.Mutex // held while documents are compiled and put into force, so that the latest ones win
	static []policy.Source
	fed    [][]policy.Source // by feed
	plan   *policy.Plan      // in force; nil before the first

	mayBeEmpty bool // set before the first load
}

// holdsNothing says that there is no document in any of the sources.
func holdsNothing(sources []policy.Source) bool {
	for _, source := range sources {
		if !yamldoc.Empty(source.Data) {
			return false
		}
	}
	return true
}

func errEmpty(what string) error {
	return fmt.Errorf("mesh: there is no document in %s: correct the path, put documents there (in files named .yaml or .yml), "+
		"or say WithEmptyPolicy if that is meant", what)
}

// feedName names a feed in errors.
func feedName(feed Feed) string {
	if named, ok := feed.(fmt.Stringer); ok {
		return named.String()
	}
	return "what a feed of documents yields"
}

// load compiles the documents after change was made to them, and puts them into force. If there is an error, those in force
// stay; undo then takes the change back, and else it waits for the next one to make the whole good.
func (m *Mesh) load(change, undo func(*documents)) error {
	d := &m.documents
	d.mu.Lock()
	change(d)
	plan, findings := policy.Recompile(d.plan, slices.Concat(d.static, slices.Concat(d.fed...)), m.workload)
	err := findings.Err()
	var settle func()
	if err == nil {
		settle, err = m.engine.Apply(plan)
	}
	if err == nil {
		d.plan = plan
	} else if undo != nil {
		undo(d)
	}
	d.mu.Unlock()

	if err == nil {
		settle()
		m.server.recheck()
	}
	m.observers.policyLoaded(PolicyLoad{Findings: findings, Err: err})
	return err
}

// Apply replaces the documents that the program gave itself, with [WithPolicy], [WithPolicyDir] or before with Apply; those
// of feeds stay. Calls in flight end under the documents they began with. Whatever a destination has learned (ejections,
// circuits, budgets, connections) is kept where its settings did not change.
//
// If any document has an error, nothing changes and the error lists all findings. Sources without any document are an error
// too, see [WithEmptyPolicy]; no source at all takes the documents away.
func (m *Mesh) Apply(sources ...policy.Source) error {
	if len(sources) > 0 && !m.documents.mayBeEmpty && holdsNothing(sources) {
		return errEmpty("the sources of Apply")
	}
	var before []policy.Source
	return m.load(func(d *documents) {
		before, d.static = d.static, slices.Clone(sources)
	}, func(d *documents) {
		d.static = before
	})
}

// take takes what a feed yields, until the mesh closes. What became of the first set is sent to first.
func (m *Mesh) take(i int, feed Feed, first chan<- error) {
	told := false
	for sources, err := range feed.Watch(m.closing) {
		if m.closing.Err() != nil {
			break
		}
		if err == nil && !m.documents.mayBeEmpty && holdsNothing(sources) {
			err = errEmpty(feedName(feed))
		}
		if err != nil {
			m.observers.policyLoaded(PolicyLoad{Err: err})
		} else if told {
			m.load(func(d *documents) { d.fed[i] = sources }, nil)
		} else {
			m.documents.mu.Lock()
			m.documents.fed[i] = sources
			m.documents.mu.Unlock()
		}
		if !told {
			first <- err
			told = true
		}
	}
	if !told {
		first <- errFeedEnded
	}
}

var errFeedEnded = errors.New("mesh: a feed of documents ended without yielding any")

// follow starts the feeds and waits for the first set of each.
func (m *Mesh) follow(ctx context.Context, static []policy.Source, feeds []Feed) error {
	m.documents.static, m.documents.fed = static, make([][]policy.Source, len(feeds))
	first := make(chan error, len(feeds))
	for i, feed := range feeds {
		m.running.Go(func() { m.take(i, feed, first) })
	}
	for range feeds {
		select {
		case err := <-first:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return interrupted(ctx)
		}
	}
	return nil
}
