package policy

import (
	"slices"
	"sync"
	"weak"

	"github.com/nosidecar/mesh/internal/yamldoc"
)

// room is the memory that a compiler needs only while it runs, some 350 bytes per document. The next one uses it again: collecting this garbage
// would delay requests more than the rest of a small change does.
type room struct {
	texts   yamldoc.Room
	streams []yamldoc.Stream
	slab    []piece
	pieces  []*piece
	alone   []*piece
	inForce []*document
	current []*document
	counts  []int
	from    []any
	first   map[uint64]*document
	virtual []decoded[virtual]
	rules   []decoded[destination]
	routes  []decoded[gatewayRoute]
	claims  []claim

	groupings []grouping
	order     []*grouping

	// The values of maps of the plan, until share copies them.
	named   []*struct{}
	claimed []*claim
	entries []*entry
	implied []*entry
	shown   []*struct{}
	ports   []*served
	kept    []*document

	groups   []*grouping
	attached []*attached
	ruled    map[string]*[]*rules // by namespace
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
		spare = &room{first: make(map[uint64]*document), ruled: make(map[string]*[]*rules)}
	}
	return spare
}

// give clears a room, and keeps it for the next compiler.
func (r *rooms) give(used *room) {
	used.texts.Clear()
	clear(all(used.streams))
	clear(all(used.slab))
	clear(all(used.pieces))
	clear(all(used.alone))
	clear(all(used.inForce))
	clear(all(used.current))
	clear(all(used.from))
	clear(used.first)
	clear(all(used.virtual))
	clear(all(used.rules))
	clear(all(used.routes))
	clear(all(used.claims))
	clear(all(used.groupings))
	clear(all(used.order))
	clear(all(used.named))
	clear(all(used.claimed))
	clear(all(used.entries))
	clear(all(used.implied))
	clear(all(used.shown))
	clear(all(used.ports))
	clear(all(used.kept))
	clear(all(used.groups))
	clear(all(used.attached))
	for _, values := range used.ruled {
		clear(all(*values))
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spare = weak.Make(used)
}

// rulesOf returns the memory for the rules of a namespace.
func (r *room) rulesOf(namespace string) *[]*rules {
	if r.ruled[namespace] == nil {
		r.ruled[namespace] = new([]*rules)
	}
	return r.ruled[namespace]
}

// zeroed returns a slice of n zero elements, in the memory of a slice of a room if that is enough.
func zeroed[T any](of *[]T, n int) []T {
	*of = empty(of, n)[:n]
	clear(*of)
	return *of
}

// empty returns an empty slice with room for n elements, in the memory of a slice of a room if that is enough.
func empty[T any](of *[]T, n int) []T {
	*of = slices.Grow((*of)[:0], n)
	return *of
}

func all[T any](s []T) []T { return s[:cap(s)] }
