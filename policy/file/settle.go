package file

import (
	"bytes"
	"context"
	"time"

	"github.com/nosidecar/mesh/policy"
)

// settle returns when no change was reported for a debounce period, or when patience has run out. It reports false if ctx has ended.
func (s *session) settle(ctx context.Context) bool {
	limit := time.NewTimer(patience * s.debounce)
	defer limit.Stop()
	quiet := time.NewTimer(s.debounce)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-limit.C:
			return true
		case <-quiet.C:
			return true
		case event, open := <-s.events:
			if s.changed(event, open) {
				quiet.Reset(s.debounce)
			}
		case err, open := <-s.errors:
			s.failed(err, open)
		}
	}
}

// calm looks again once per debounce period until two looks find the same, until patience has run out, or until ctx ends.
func (s *session) calm(ctx context.Context, now state) state {
	limit := time.NewTimer(patience * s.debounce)
	defer limit.Stop()
	again := time.NewTicker(s.debounce)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return now
		case <-limit.C:
			return now
		case <-again.C:
			before := now.mark
			if now = s.look(); now.mark == before {
				return now
			}
		}
	}
}

// extents has the sizes of files, by name, and whether they have a line break at their end.
type extents map[string]extent

type extent struct {
	size   int
	broken bool // there is no line break at the end
}

func extentOf(data []byte) extent {
	return extent{len(data), len(data) > 0 && !bytes.HasSuffix(data, []byte("\n"))}
}

func extentsOf(sources []policy.Source) extents {
	e := make(extents, len(sources))
	for _, source := range sources {
		e[source.Name] = extentOf(source.Data)
	}
	return e
}

// halfWritten reports whether files may not be complete yet: one is gone or has become shorter, or has no line break at its end although it is new
// or had one. The beginning of a file may well be valid, and lack what protects somebody.
func (e extents) halfWritten(now []policy.Source) bool {
	same := 0
	for _, source := range now {
		before, old := e[source.Name]
		is := extentOf(source.Data)
		if old {
			same++
		}
		if is.size < before.size || is.broken && !(old && before.broken) {
			return true
		}
	}
	return same < len(e)
}

// whole looks again when nothing has changed for as long as files that keep changing are waited for. It gives up after ten times as long, or when
// ctx ends.
func (s *session) whole(ctx context.Context, now state) state {
	limit := time.NewTimer(patience * patience * s.debounce)
	defer limit.Stop()
	quiet := time.NewTimer(patience * s.debounce)
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return now
		case <-limit.C:
			return s.look()
		case <-quiet.C:
			before := now.mark
			if now = s.look(); now.mark == before {
				return now
			}
			quiet.Reset(patience * s.debounce)
		case event, open := <-s.events:
			if s.changed(event, open) {
				quiet.Reset(patience * s.debounce)
			}
		case err, open := <-s.errors:
			s.failed(err, open)
		}
	}
}
