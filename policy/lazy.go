package policy

import (
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// lazy is a document that is decoded when it is first used, and then kept. It is not needed before the first call to its service, and it takes
// several times as much memory as its text.
type lazy[T any] struct {
	words  *yamldoc.Words
	packed yamldoc.Packed // if it is empty, spec is kept
	fresh  atomic.Bool    // spec was decoded for compiling, and has not been used since
	spec   atomic.Pointer[T]
}

// keep sets the decoded document.
func (l *lazy[T]) keep(spec *T) {
	l.spec.Store(spec)
	l.fresh.Store(true)
}

// get returns the decoded document.
func (l *lazy[T]) get() *T {
	if spec := l.spec.Load(); spec != nil {
		if l.fresh.Load() {
			l.fresh.Store(false)
		}
		return spec
	}
	spec := new(T)
	l.words.Unpack(l.packed, spec)
	if l.spec.CompareAndSwap(nil, spec) {
		return spec
	}
	return l.spec.Load()
}

// peek is get for compiling, which does not keep what it decodes.
func (l *lazy[T]) peek() *T {
	if spec := l.spec.Load(); spec != nil {
		return spec
	}
	spec := new(T)
	l.words.Unpack(l.packed, spec)
	return spec
}

// pack drops the decoded document if it has not been used since it was compiled. get then decodes it again.
func (l *lazy[T]) pack(words *yamldoc.Words, d *yamldoc.Document) {
	if !l.fresh.Load() {
		return
	}
	if l.packed = words.Pack(d); l.packed != "" {
		l.words = words
		l.spec.Store(nil)
	}
}

// pack drops the decoded documents that were needed only for compiling.
func (c *compiler) pack() {
	type packer interface {
		pack(*yamldoc.Words, *yamldoc.Document)
	}
	if c.plan.words == nil {
		docs := make([]*yamldoc.Document, len(c.fresh))
		for i, d := range c.fresh {
			docs[i] = d.Document
		}
		c.plan.words = yamldoc.NewWords(docs)
	}
	for _, d := range c.fresh {
		if s, ok := d.is.(packer); ok {
			s.pack(c.plan.words, d.Document)
		}
	}
	for d := range c.plan.good() {
		d.Unload()
	}
}
