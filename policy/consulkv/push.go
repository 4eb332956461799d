package consulkv

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul"
	"github.com/nosidecar/mesh/policy"
)

const (
	// Of a transaction. Consul takes 128 operations, older versions 64, and bodies of 512 KiB.
	mostOps    = 64
	mostValues = 390_000       // bytes of values
	mostBody   = 512<<10 - 256 // bytes of JSON

	kept = 3 // versions, with the current one
)

// ErrConflict is wrapped by the error of Push if another push came first. What that one published is in force.
var ErrConflict = errors.New("another push came first: look at what it changed (mesh diff), and publish again")

// Push publishes sources in the place of all documents of the store, so that every reader sees either the old set or the new one.
// Sources are named by file, relative to the prefix: "retries.yaml", "team/routes.yaml". Push does not check what is in them: do
// that first, with policy.Check or mesh check. A reader that cannot use a set keeps the one before.
//
// It reports whether anything changed: publishing the same documents again is not a change. It returns ErrConflict if another push came
// first. Any other error means that the documents in force are still those from before, unless it says otherwise. A file may have
// 380 KiB, and a set 10,000 files and 64 MiB. The three latest versions are kept.
func (s *Store) Push(ctx context.Context, sources []policy.Source) (changed bool, err error) {
	r, err := s.open()
	if err != nil {
		return false, err
	}
	files, err := r.arrange(sources)
	if err != nil {
		return false, err
	}
	p := push{reader: r, ctx: ctx, files: files}
	if changed, err = p.run(); err != nil {
		err = fmt.Errorf("consulkv: %s: %w", r.prefix, err)
	}
	return changed, err
}

// push is one run of Push.
type push struct {
	*reader
	ctx   context.Context
	files []policy.Source

	before *version // nil if there was none
	index  uint64   // of the key current; 0 if there is none
	old    []string // the versions that were there
}

func (p *push) run() (changed bool, err error) {
	now := pointer{Keys: len(p.files), SHA256: sum(p.files)}
	whole, err := p.look()
	switch {
	case err != nil:
		return false, err
	case whole && p.before.SHA256 == now.SHA256:
		return false, nil
	}
	now.Version = versionID(now.SHA256, p.index)
	if p.before != nil {
		now.Previous = append([]string{p.before.Version}, p.before.Previous...)
		now.Previous = now.Previous[:min(len(now.Previous), kept-1)]
	}
	if err := p.write(now.Version); err != nil {
		return false, err
	}
	index, err := p.point(now)
	if err != nil {
		return false, err
	}
	if err := p.clean(now, index); err != nil {
		return true, fmt.Errorf("the documents are published, but older versions of them could not be removed: %w", err)
	}
	return true, nil
}

// look finds out what there is, and whether the current version is whole.
func (p *push) look() (whole bool, err error) {
	options, done := p.options()
	defer done()
	pair, _, err := p.client.KV().Get(p.current(), options)
	if err != nil {
		return false, fmt.Errorf("key %q: %w", p.current(), denied(err))
	}
	if pair != nil {
		p.index = pair.ModifyIndex
		if before, err := parse(pair.Value); err != nil {
			return false, fmt.Errorf("key %q: %w", p.current(), err)
		} else {
			p.before = &version{pointer: before}
			pairs, _, err := p.client.KV().List(p.folder(before.Version), options)
			if err != nil {
				return false, fmt.Errorf("keys below %q: %w", p.folder(before.Version), denied(err))
			}
			_, err = p.reader.files(before, pairs)
			whole = err == nil
		}
	}
	names, _, err := p.client.KV().Keys(p.versions(), "/", options)
	if err != nil {
		return false, fmt.Errorf("keys below %q: %w", p.versions(), denied(err))
	}
	for _, name := range names {
		if id := strings.TrimSuffix(strings.TrimPrefix(name, p.versions()), "/"); isVersion(id) {
			p.old = append(p.old, id)
		}
	}
	return whole, nil
}

func (p *push) options() (*api.QueryOptions, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(p.ctx, patience, fmt.Errorf("no answer within %v", patience))
	return (&api.QueryOptions{}).WithContext(ctx), cancel
}

// unmoved is an operation that fails once the key current is not what it was.
func (p *push) unmoved() *api.TxnOp {
	if p.index == 0 {
		return op(api.KVTxnOp{Verb: api.KVCheckNotExists, Key: p.current()})
	}
	return op(api.KVTxnOp{Verb: api.KVCheckIndex, Key: p.current(), Index: p.index})
}

func op(kv api.KVTxnOp) *api.TxnOp { return &api.TxnOp{KV: &kv} }

// write writes the files of a version, in as many transactions as it takes.
func (p *push) write(id string) error {
	batch, values, body := api.TxnOps{p.unmoved()}, 0, size(p.unmoved())
	flush := func() error {
		err := p.transact(batch)
		batch, values, body = api.TxnOps{p.unmoved()}, 0, size(p.unmoved())
		return err
	}
	for _, f := range p.files {
		set := op(api.KVTxnOp{Verb: api.KVSet, Key: p.key(id, f.Name), Value: f.Data})
		if len(batch) == mostOps || values+len(f.Data) > mostValues || body+size(set) > mostBody {
			if err := flush(); err != nil {
				return err
			}
		}
		batch, values, body = append(batch, set), values+len(f.Data), body+size(set)
	}
	if err := flush(); err != nil {
		return err
	}
	return p.verify(id)
}

// size returns how many bytes of the body an operation takes, or a few more.
func size(o *api.TxnOp) int {
	bare := *o.KV
	bare.Value = nil
	data, _ := json.Marshal(api.TxnOp{KV: &bare}) // numbers and strings
	return len(data) + base64.StdEncoding.EncodedLen(len(o.KV.Value)) + 16
}

// verify returns an error if readers would not find the version as it was written.
func (p *push) verify(id string) error {
	options, done := p.options()
	defer done()
	pairs, meta, err := p.client.KV().List(p.folder(id), options)
	if err != nil {
		return fmt.Errorf("keys below %q: %w", p.folder(id), denied(err))
	}
	want := pointer{Version: id, Keys: len(p.files), SHA256: sum(p.files)}
	if _, err := p.reader.files(want, pairs); err != nil {
		return fmt.Errorf("what was written reads otherwise: %w", p.explain(err, want, pairs, meta))
	}
	return nil
}

// point makes the key current name a version, and returns its new index.
func (p *push) point(now pointer) (uint64, error) {
	value, err := json.Marshal(now)
	if err != nil {
		return 0, err
	}
	err = p.transact(api.TxnOps{op(api.KVTxnOp{Verb: api.KVCAS, Key: p.current(), Value: value, Index: p.index})})
	if errors.Is(err, ErrConflict) || errors.Is(err, consul.ErrDenied) {
		return 0, err
	}
	// The index is needed; and an answer may be lost on its way, though what was asked for is done.
	options, done := p.options()
	defer done()
	pair, _, lost := p.client.KV().Get(p.current(), options)
	switch {
	case lost != nil:
		return 0, fmt.Errorf("it is not known whether the documents are published; ask mesh diff: %w", errors.Join(err, denied(lost)))
	case pair != nil && slices.Equal(pair.Value, value):
		return pair.ModifyIndex, nil
	case err == nil:
		return 0, ErrConflict // already replaced
	}
	return 0, err
}

// clean removes the versions that were there before and are not kept, as long as nobody publishes.
func (p *push) clean(now pointer, index uint64) error {
	p.index = index
	drop := slices.DeleteFunc(p.old, func(id string) bool { return id == now.Version || slices.Contains(now.Previous, id) })
	for some := range slices.Chunk(drop, mostOps-1) {
		ops := api.TxnOps{p.unmoved()}
		for _, id := range some {
			ops = append(ops, op(api.KVTxnOp{Verb: api.KVDeleteTree, Key: p.folder(id)}))
		}
		if err := p.transact(ops); errors.Is(err, ErrConflict) {
			return nil // whoever publishes now removes them
		} else if err != nil {
			return err
		}
	}
	return nil
}

// transact carries out all operations, or none.
func (p *push) transact(ops api.TxnOps) error {
	options, cancel := p.options()
	defer cancel()
	done, answer, _, err := p.client.Txn().Txn(ops, options)
	switch {
	case err != nil:
		return fmt.Errorf("transaction on key %q: %w", ops[len(ops)-1].KV.Key, denied(err))
	case done:
		return nil
	}
	for _, e := range answer.Errors {
		if e == nil || e.OpIndex < 0 || e.OpIndex >= len(ops) {
			continue
		}
		key := ops[e.OpIndex].KV.Key
		switch {
		case strings.Contains(e.What, "Permission denied"):
			return fmt.Errorf("key %q: %w: the token may not write it: %s", key, consul.ErrDenied, e.What)
		case key == p.current():
			return ErrConflict
		default:
			return fmt.Errorf("key %q: %s", key, e.What)
		}
	}
	return errors.New("a transaction was refused, and the answer does not say why")
}

// denied marks an error that says that the token may not do this.
func denied(err error) error {
	if consul.Status(err) == 403 || strings.Contains(err.Error(), "Permission denied") || strings.Contains(err.Error(), "ACL not found") {
		return fmt.Errorf("%w: %w", consul.ErrDenied, err)
	}
	return err
}
