// Package file watches folders and files of policy documents, and yields the documents whenever they change.
//
// It reads the same files as [policy.ReadDir]: those in a folder and its subfolders whose names end in .yaml, .yml or .json, in any case, without
// hidden ones. A link to a folder is an error. A mounted ConfigMap or Secret, in the folder or deeper, is read through its ..data link as
// one set, so its files are always of the same version.
//
// Notifications of the kernel (fsnotify) report changes immediately. Network file systems send none, and the kernel limits the number
// of watched folders, so the watcher also polls.
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

	"github.com/nosidecar/mesh/internal/empties"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/internal/folder"
)

const (
	defaultDebounce = 100 * time.Millisecond
	defaultPoll     = 30 * time.Second

	// patience is the number of debounce periods after which files are read even if they keep changing.
	patience = 10
)

// Watcher watches policy documents. It is safe for concurrent use. Its fields must not be changed after its first use.
type Watcher struct {
	// Paths are the folders and files to watch, in the order in which their documents are yielded. There must be at least one. They
	// need not exist yet. Relative paths are resolved when Watch begins.
	Paths []string

	// Debounce is how long the files must be unchanged before they are read again, so that half-written files are not read. If they
	// keep changing, they are read after ten times as long. A file that has become shorter, or has no line break at its end although it
	// is new or had one, may lack documents that have not been written yet: then they must be unchanged for ten times as long. When Watch begins,
	// that is so for files without a line break at their end that were written within ten times as long. 0 means 100 ms.
	Debounce time.Duration

	// Poll is the interval at which the watcher looks for changes that the kernel did not report. 0 means 30 s.
	Poll time.Duration

	// MaxFiles is the maximum number of files and folders in the watched folders together, whether they are documents or not. The
	// content of hidden folders does not count. 0 means 10,000.
	MaxFiles int

	// MaxBytes is the maximum size of all documents together. 0 means 64 MiB.
	MaxBytes int64

	// Formats adds the files with a certain extension, such as ".hcl". The function converts their content to YAML or JSON; a nil
	// function means that no conversion is needed. Package policy/consul has that of Consul's config entries in HCL. Nil means only
	// .yaml, .yml and .json. If a file cannot be converted, its source has an Err, as has a file in HCL without a format.
	Formats map[string]func(data []byte) ([]byte, error)

	// Alone makes each document stand alone, also when the mesh starts; see [policy.Source]. By default, an error in one document keeps
	// all of them from taking effect. If a file cannot be parsed, the last good versions of its documents stay in force.
	Alone bool

	notify func() (*fsnotify.Watcher, error) // nil means fsnotify.NewWatcher
}

// New returns a watcher of the folders and files at paths, with default settings.
func New(paths ...string) *Watcher {
	return &Watcher{Paths: slices.Clone(paths)}
}

// String returns the paths, for errors.
func (w *Watcher) String() string { return strings.Join(w.Paths, ", ") }

// Watch yields all documents, first immediately and then after each change of a name or of content, until ctx ends. The name of a
// source is its path in Paths, joined with its path in that folder. The sources belong to the caller.
//
// If the documents cannot be read, or are too many or too large, Watch yields an error without sources, and keeps watching. It yields
// the documents again once they can be read, even if they are unchanged. It never yields the same documents or the same error twice in
// a row. If the kernel's notifications are not available, it yields that error once, after the documents, and finds changes by
// polling. Only invalid fields of the Watcher end the sequence, with an error.
//
// A mesh refuses a source without documents, unless it has mesh.WithEmptyPolicy: for it, each of several paths without any is an error, too. If
// documents stand alone, those that the path had are yielded before the error.
//
// When the loop over Watch ends, everything that it started has ended too.
func (w *Watcher) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		s, err := w.begin()
		if err != nil {
			yield(nil, err)
			return
		}
		s.full = len(w.Paths) > 1 && empties.Refused(ctx)
		defer s.notifier.close()

		last, deaf := "", false
		var before extents
		for why, ok := notified, ctx.Err() == nil; ok; why, ok = s.wait(ctx) {
			now := s.look()
			if why == polled && now.mark != last {
				// The kernel did not report this change, so it will not report when the writing stops either.
				now = s.calm(ctx, now)
			}
			if now.sources != nil && (last != "" && before.halfWritten(now.sources) || last == "" && now.begun) {
				now = s.whole(ctx, now)
			}
			if now.sources != nil {
				before = extentsOf(now.sources)
			}
			if now.mark != last {
				last = now.mark
				if now.sources != nil && !now.known && !yield(now.sources, nil) || now.err != nil && !yield(nil, now.err) {
					return
				}
				if now.sources != nil {
					s.parts = now.parts
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
	alone, full    bool              // each document stands alone; each path must have documents
	parts          [][]policy.Source // what was yielded last, by path
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
		debounce: orDefault(w.Debounce, defaultDebounce), alone: w.Alone,
		poll: orDefault(w.Poll, defaultPoll),
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

// reason is the reason to look for changes.
type reason uint8

const (
	notified reason = iota // the kernel reported a change, and the writing has stopped
	polled                 // it is time to poll
)

// wait returns when it is time to look again. It reports false if ctx has ended.
func (s *session) wait(ctx context.Context) (reason, bool) {
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
		return notified, s.settle(ctx)
	}
}

// look reads the current documents. The notifier reports later changes.
func (s *session) look() state {
	// Follow before reading, so that each change is either read or reported.
	files, ends, err := s.ReadAll(func(l *folder.Layout) (fresh bool) { return s.follow(l.Interests) })
	if err != nil {
		return bad(err)
	}
	return s.filled(s.good(files), ends)
}

// state is the result of one look: the documents, or an error.
type state struct {
	sources []policy.Source   // nil if they could not be read
	parts   [][]policy.Source // the same by path, if each must have documents
	known   bool              // the sources are those that were yielded last; there is an error too
	begun   bool              // somebody may be writing one: it was written a moment ago, and has no line break at its end
	err     error
	mark    string // equal for equal results; never empty
}

func (s *session) good(files []folder.File) state {
	sources, begun := make([]policy.Source, len(files)), false
	for i, file := range files {
		sources[i] = policy.Source{Name: file.Name, Data: file.Data, Alone: s.alone, Err: file.Err}
		begun = begun || extentOf(file.Data).broken && time.Since(file.Changed).Abs() < patience*s.debounce
	}
	return state{sources: sources, begun: begun, mark: markOf(sources)}
}

// markOf returns a text that is equal for equal sources, and never empty.
func markOf(sources []policy.Source) string {
	hash := sha256.New()
	var size []byte
	for _, source := range sources {
		// With the lengths, different lists of files cannot lead to the same hash input.
		size = binary.BigEndian.AppendUint64(size[:0], uint64(len(source.Name)))
		size = binary.BigEndian.AppendUint64(size, uint64(len(source.Data)))
		hash.Write(size)
		io.WriteString(hash, source.Name)
		hash.Write(source.Data)
	}
	return string(hash.Sum(nil))
}

func bad(err error) state {
	err = fmt.Errorf("file: %w", err)
	return state{err: err, mark: err.Error()}
}
