package file

import (
	"errors"
	"fmt"
	"slices"

	"github.com/nosidecar/mesh/internal/empties"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy"
)

// filled refuses paths without documents if each must have some. A folder that turns empty, for example because it is not mounted any more, would
// take its policies with it, and the documents of other paths would hide that. Where documents stand alone, the last ones of such a path stay, and
// there is an error as well. ends has the end of the sources of each path.
func (s *session) filled(now state, ends []int) state {
	if !s.full {
		return now
	}
	var bare []error
	all, begin := []policy.Source{}, 0
	for i, end := range ends {
		part := now.sources[begin:end]
		if begin = end; holdsNothing(part) {
			bare = append(bare, fmt.Errorf("there is no document in %s: correct the path, put documents there, %s", s.Roots[i].Name, empties.Remedy))
			if !s.alone || s.parts == nil {
				continue
			}
			part = s.parts[i]
		}
		now.parts = append(now.parts, slices.Clone(part))
		all = append(all, part...)
	}
	if bare == nil {
		return now
	}
	refused := bad(errors.Join(bare...))
	if len(now.parts) < len(ends) {
		return refused
	}
	mark := markOf(all)
	return state{sources: all, parts: now.parts, known: mark == markOf(slices.Concat(s.parts...)), err: refused.err, mark: mark + refused.mark}
}

// holdsNothing reports whether none of the sources has a document.
func holdsNothing(sources []policy.Source) bool {
	return !slices.ContainsFunc(sources, func(s policy.Source) bool { return !yamldoc.Empty(s.Data) })
}
