package policy

import (
	"slices"
	"sync"
	"weak"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// room is the memory that a compiler needs only while it runs, some 250 bytes per document. The next one uses it again: collecting this garbage
// would delay requests more than the rest of a small change does.
type room struct {
	texts   yamldoc.Room
	streams []yamldoc.Stream
	slab    []piece
	pieces  []*piece
	inForce []*document
	first   map[uint64]*document
	virtual []decoded[virtual]
	rules   []decoded[destination]
}

// rooms has the room of the last compiler of a plan or its predecessors, until the garbage collector runs.
type rooms struct {
	mu    sync.Mutex
	spare weak.Pointer[room]
}

// take returns a clear room, for one compiler.
func (r *rooms) take() *room {
	r.mu.Lock()
	defer r.mu.Unlock()
	spare := r.spare.Value()
	r.spare = weak.Pointer[room]{}
	if spare == nil {
		spare = new(room)
	}
	return spare
}

// give clears a room, and keeps it for the next compiler.
func (r *rooms) give(used *room) {
	used.texts.Clear()
	clear(all(used.streams))
	clear(all(used.slab))
	clear(all(used.pieces))
	clear(all(used.inForce))
	clear(used.first)
	clear(all(used.virtual))
	clear(all(used.rules))
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spare = weak.Make(used)
}

// firsts returns an empty map, which is about to have n elements.
func (r *room) firsts(n int) map[uint64]*document {
	if r.first == nil {
		r.first = make(map[uint64]*document, n)
	}
	clear(r.first)
	return r.first
}

// empty returns an empty slice with room for n elements, in the memory of a slice of a room if that is enough.
func empty[T any](of *[]T, n int) []T {
	*of = slices.Grow((*of)[:0], n)
	return *of
}

func all[T any](s []T) []T { return s[:cap(s)] }
