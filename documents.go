package mesh

import (
	"context"
	"errors"
	"iter"
	"slices"
	"sync"

	"github.com/nosidecar/mesh/policy"
)

// Feed is a source of documents that change while the mesh runs. policy/file has one for folders.
type Feed interface {
	// Watch yields all documents of the source now, and again after every change, until ctx ends or the caller stops. An
	// error is reported and otherwise changes nothing; Watch goes on trying.
	Watch(ctx context.Context) iter.Seq2[[]policy.Source, error]
}

// documents are what the mesh is told: what the program gave and what the feeds yielded last. They are compiled together,
// in this order: where two documents claim a host, the earlier one has it.
type documents struct {
	mu     sync.Mutex // held while documents are compiled and put into force, so that the latest ones win
	static []policy.Source
	fed    [][]policy.Source // by feed
}

// load compiles the documents after change was made to them, and puts them into force. If there is an error, those in force
// stay; undo then takes the change back, and else it waits for the next one to make the whole good.
func (m *Mesh) load(change, undo func(*documents)) error {
	d := &m.documents
	d.mu.Lock()
	change(d)
	plan, findings := policy.Compile(slices.Concat(d.static, slices.Concat(d.fed...)), m.workload)
	err := findings.Err()
	var replaced map[*cluster]*cluster
	if err == nil {
		replaced, err = m.replaceView(plan)
	}
	if err != nil && undo != nil {
		undo(d)
	}
	d.mu.Unlock()

	// Observers are told of what follows, so no lock is held.
	for successor, c := range replaced {
		// In this order, so that the watch of the service and its last good endpoints pass on.
		successor.starting.Do(successor.start)
		c.close()
	}
	if err == nil {
		m.server.recheck()
	}
	m.policyLoaded(findings, err)
	return err
}

// Apply replaces the documents that the program gave itself, with [WithPolicy], [WithPolicyDir] or before with Apply; those
// of feeds stay. Calls in flight end under the documents they began with. Whatever a destination has learned (ejections,
// circuits, budgets, connections) is kept where its settings did not change.
//
// If any document has an error, nothing changes and the error lists all findings.
func (m *Mesh) Apply(sources ...policy.Source) error {
	var before []policy.Source
	return m.load(func(d *documents) {
		before, d.static = d.static, slices.Clone(sources)
	}, func(d *documents) {
		d.static = before
	})
}

// follow takes what a feed yields, until the mesh closes. What became of the first set is sent to first.
func (m *Mesh) follow(i int, feed Feed, first chan<- error) {
	told := false
	for sources, err := range feed.Watch(m.closing) {
		if m.closing.Err() != nil {
			break
		}
		if err != nil {
			m.policyLoaded(nil, err)
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

// begin starts the feeds, waits for the first set of each, and puts all documents into force.
func (m *Mesh) begin(ctx context.Context) error {
	m.documents.static, m.documents.fed = m.sources, make([][]policy.Source, len(m.feeds))
	first := make(chan error, len(m.feeds))
	for i, feed := range m.feeds {
		m.running.Go(func() { m.follow(i, feed, first) })
	}
	for range m.feeds {
		select {
		case err := <-first:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return m.load(func(*documents) {}, nil)
}
