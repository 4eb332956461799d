// Package file watches folders and files of policy documents and yields their content whenever it changes.
//
// Which files count is what [policy.ReadDir] says, which reads them the same way: of a folder and the folders in it those
// whose names end in .yaml or .yml, hidden ones left out. A mounted ConfigMap or Secret, in the folder or deeper, is read
// through its ..data link as one set: never some files of one version and some of another.
//
// The kernel's notifications (fsnotify) tell of changes at once. Network file systems send none, and the folders they
// are asked of can be too many, so the watcher also looks by itself now and then.
package file

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/internal/folder"
)

const (
	defaultDebounce = 100 * time.Millisecond
	defaultPoll     = 30 * time.Second

	// patience is how many times Debounce a change waits for the writing to stop.
	patience = 10
)

// Watcher watches policy documents. Its fields must not change once it is used; then it is safe for concurrent use.
type Watcher struct {
	// Paths are the folders and files to watch, in the order in which their documents are yielded. They need not exist
	// yet. Relative ones are taken from the working directory at the time of the call to Watch. There must be one.
	Paths []string

	// Debounce is how long nothing must change before the files are read again, so that what is half written is not
	// read. Where the writing never stops they are read after ten times as long. 0 means 100 ms.
	Debounce time.Duration

	// Poll is how often the watcher looks by itself for changes that the kernel did not tell of. 0 means 30 s.
	Poll time.Duration

	// MaxFiles is how many entries the watched folders may hold together, documents or not, those of hidden folders
	// not counted. 0 means 10,000.
	MaxFiles int

	// MaxBytes is how large the documents may be together, and so also each. 0 means 64 MiB.
	MaxBytes int64

	// Formats adds files by how their names end, such as ".hcl", with the function that makes YAML or JSON of them; a nil
	// function takes them as they are. That of policy/consul has the formats of Consul's config entries. nil means .yaml and
	// .yml alone.
	Formats map[string]func(data []byte) ([]byte, error)

	// Alone judges each document by itself, also when the mesh starts: see [policy.Source]. By default one bad document keeps all
	// of them from taking effect. A file that cannot be parsed keeps the last good versions of its documents.
	Alone bool

	notify func() (*fsnotify.Watcher, error) // nil means fsnotify.NewWatcher
}

// New returns a watcher of the folders and files at paths, with the defaults.
func New(paths ...string) *Watcher {
	return &Watcher{Paths: slices.Clone(paths)}
}

// String returns the paths, for errors.
func (w *Watcher) String() string { return strings.Join(w.Paths, ", ") }

// Watch yields every document there is, first at once and then again after every change of a name or of content, until
// ctx ends. Sources are named by their path as given, joined with the path in that folder, and are the caller's.
//
// It yields an error instead, with no sources, when the documents cannot be read or are too many or too large, and goes
// on watching: the documents are yielded again once they can be read, the same as before or not. Nothing is yielded
// twice in a row, neither documents nor error. When the kernel's notifications cannot be had, that is yielded as an
// error once, after the documents, and changes are found by polling. Only a Watcher whose fields make no sense ends the
// sequence with its error.
//
// Everything Watch starts has ended when the loop over it ends.
func (w *Watcher) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		s, err := w.begin()
		if err != nil {
			yield(nil, err)
			return
		}
		defer s.notifier.close()

		last, deaf := "", false
		for found, ok := told, ctx.Err() == nil; ok; found, ok = s.wait(ctx) {
			now := s.look()
			if found == polled && now.mark != last {
				// The kernel did not tell of the writing, so neither will it tell of its end.
				now = s.calm(ctx, now)
			}
			if now.mark != last {
				last = now.mark
				for i := range now.sources {
					now.sources[i].Alone = w.Alone
				}
				if !yield(now.sources, now.err) {
					return
				}
			}
			if s.notifier.err != nil && !deaf && !yield(nil, s.deafness()) {
				return
			}
			deaf = s.notifier.err != nil
		}
	}
}

// session is one run of Watch.
type session struct {
	folder.Reader
	notifier
	debounce, poll time.Duration
}

func (w *Watcher) begin() (*session, error) {
	switch {
	case len(w.Paths) == 0:
		return nil, errors.New("file: no Paths to watch")
	case w.Debounce < 0 || w.Poll < 0 || w.MaxFiles < 0 || w.MaxBytes < 0:
		return nil, errors.New("file: Debounce, Poll, MaxFiles and MaxBytes must not be negative")
	}
	reader, err := folder.NewReader(w.Paths...)
	if err != nil {
		return nil, fmt.Errorf("file: Paths: %w", err)
	}
	reader.MaxFiles = orDefault(w.MaxFiles, folder.DefaultMaxFiles)
	reader.MaxBytes = orDefault(w.MaxBytes, folder.DefaultMaxBytes)
	reader.FilesRemedy, reader.BytesRemedy = ", or raise MaxFiles", ", or raise MaxBytes"
	reader.Formats = w.Formats
	s := &session{
		Reader:   *reader,
		notifier: notifier{open: w.notify, reader: *reader},
		debounce: orDefault(w.Debounce, defaultDebounce),
		poll:     orDefault(w.Poll, defaultPoll),
	}
	if s.open == nil {
		s.open = fsnotify.NewWatcher
	}
	return s, nil
}

func orDefault[T int | int64 | time.Duration](value, otherwise T) T {
	if value == 0 {
		return otherwise
	}
	return value
}

func (s *session) deafness() error {
	return fmt.Errorf("file: no notification of changes, looking for them every %v instead: %w", s.poll, s.notifier.err)
}

// finding is how wait came to think that there may be a change.
type finding uint8

const (
	told   finding = iota // by the kernel; the writing has stopped since
	polled                // by the clock
)

// wait returns when it is time to look again, or false once ctx ends.
func (s *session) wait(ctx context.Context) (finding, bool) {
	poll := time.NewTimer(s.poll)
	defer poll.Stop()
	for {
		select {
		case <-ctx.Done():
			return 0, false
		case <-poll.C:
			return polled, true
		case event, open := <-s.events:
			if !s.changed(event, open) {
				continue
			}
		case err, open := <-s.errors:
			s.failed(err, open)
		}
		return told, s.settle(ctx)
	}
}

// settle returns once no change has been told of for as long as debounce, or patience is at its end, or, with false,
// ctx is.
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

// calm looks until two looks, debounce apart, find the same, or until patience is at its end.
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

// look reads the documents as they are now. The notifier reports later changes.
func (s *session) look() state {
	for try := 1; ; try++ {
		before, err := s.Locate()
		// Follow first, then read: a change is either read or reported.
		fresh := s.follow(before.Interests)
		if err == nil {
			var files []folder.File
			if files, err = s.Read(before); err == nil {
				after, moved := s.Locate()
				switch {
				case moved != nil:
					err = moved
				case after.Same(before):
					return good(files)
				case try == folder.Attempts:
					return bad(fmt.Errorf("%s: %w", s.Roots[0].Name, folder.ErrMoving))
				default:
					continue
				}
			}
		}
		// What is missing may be about to be renamed into place, and may have been before it was followed.
		if try == folder.Attempts || !fresh && (try >= 5 || !folder.Missing(err)) {
			return bad(err)
		}
	}
}

// state is the outcome of one look: documents, or why there are none.
type state struct {
	sources []policy.Source
	err     error
	mark    string // equal for equal outcomes, never empty
}

func good(files []folder.File) state {
	hash := sha256.New()
	var size []byte
	sources := make([]policy.Source, 0, len(files))
	for _, source := range files {
		// The lengths keep one name or file from passing for a piece of another.
		size = binary.BigEndian.AppendUint64(size[:0], uint64(len(source.Name)))
		size = binary.BigEndian.AppendUint64(size, uint64(len(source.Data)))
		hash.Write(size)
		io.WriteString(hash, source.Name)
		hash.Write(source.Data)
		sources = append(sources, policy.Source{Name: source.Name, Data: source.Data})
	}
	return state{sources: sources, mark: string(hash.Sum(nil))}
}

func bad(err error) state {
	err = fmt.Errorf("file: %w", err)
	return state{err: err, mark: err.Error()}
}
