package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/fsnotify/fsnotify"

	"github.com/nosidecar/mesh/policy/internal/folder"
)

// notifier reports changes in the folders that it follows. If the kernel's notifications are not available, it reports none, and each
// follow tries again.
type notifier struct {
	reader  folder.Reader // decides which files are documents
	open    func() (*fsnotify.Watcher, error)
	watcher *fsnotify.Watcher // nil if there is none
	events  <-chan fsnotify.Event
	errors  <-chan error

	interests map[string]*folder.Interest
	followed  map[string]fs.FileInfo // by path; the info shows whether it is still the same folder
	err       error                  // why notifications are not available, as of the last follow
}

var errEnded = errors.New("the notifications ended")

// follow makes the notifier report changes in the folders of interests, and in no others. It reports whether it followed a new one:
// earlier changes in it may have been missed.
func (n *notifier) follow(interests map[string]*folder.Interest) (fresh bool) {
	n.err = nil
	if n.watcher == nil {
		watcher, err := n.open()
		if err != nil {
			n.err = explained(err)
			return false
		}
		n.watcher, n.events, n.errors = watcher, watcher.Events, drain(watcher.Errors)
		n.followed = make(map[string]fs.FileInfo)
	}
	n.interests = interests
	for path := range n.followed {
		if interests[path] == nil {
			n.forget(path)
		}
	}
	listed := n.watcher.WatchList() // without folders that the kernel dropped because they were removed
	for path := range interests {
		info, err := os.Stat(path)
		if err != nil {
			n.forget(path)
			continue // reading it reports the error
		}
		if known := n.followed[path]; known != nil && !os.SameFile(known, info) {
			n.forget(path)
		}
		// Adding a folder again does no harm, and is necessary if a new folder got the inode number of the old one.
		switch err := n.watcher.Add(path); {
		case err == nil:
			fresh = fresh || n.followed[path] == nil || !slices.Contains(listed, path)
			n.followed[path] = info
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			fresh = true // it was removed after Stat
		case errors.Is(err, fs.ErrPermission):
			// If it is a folder of documents, reading it yields the error. For a parent folder without permission, polling suffices.
		case errors.Is(err, fsnotify.ErrClosed):
			n.failed(err, true)
			return false
		default:
			n.err = explained(fmt.Errorf("%s: %w", path, err))
		}
	}
	return fresh
}

func (n *notifier) forget(path string) {
	if _, ok := n.followed[path]; ok {
		delete(n.followed, path)
		n.watcher.Remove(path) // fails if the kernel dropped it with its folder
	}
}

// changed reports whether the documents may have changed. Its arguments are what was received from the channel of events.
func (n *notifier) changed(event fsnotify.Event, open bool) bool {
	if !open {
		n.failed(errEnded, true)
		return true
	}
	if n.interests[event.Name] != nil {
		return true // the folder itself was moved or removed, or its permissions were changed
	}
	in := n.interests[filepath.Dir(event.Name)]
	if in == nil {
		return false
	}
	name := filepath.Base(event.Name)
	switch {
	case in.Names[name]:
		return true
	case !in.Documents:
		return false
	case folder.Hidden(name):
		return name == folder.DataLink
	case n.reader.Document(name):
		return true
	}
	// It may be a folder. Only its creation, removal and renaming matter.
	return event.Has(fsnotify.Create) || event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename)
}

// failed handles an error of the watcher. Its arguments are what was received from the channel of errors. If the queue of events
// overflowed, the next look finds what was lost. After any other error there may be no more events, so the next follow starts over.
func (n *notifier) failed(err error, open bool) {
	if !open {
		err = errEnded
	}
	if errors.Is(err, fsnotify.ErrEventOverflow) {
		return
	}
	n.close()
	n.err = explained(err)
}

// drain forwards errors until the watcher is closed. They must be received at all times, because the watcher sends some of them while
// it holds the lock that Add, Remove and Close need. One waiting error is enough, so further ones are dropped.
func drain(errs <-chan error) <-chan error {
	first := make(chan error, 1)
	go func() {
		defer close(first)
		for err := range errs {
			select {
			case first <- err:
			default:
			}
		}
	}()
	return first
}

// close closes the watcher, and waits until its goroutines and that of drain have ended.
func (n *notifier) close() {
	if n.watcher != nil {
		n.watcher.Close()
		for range n.errors {
		}
		for range n.events {
		}
	}
	n.watcher, n.events, n.errors = nil, nil, nil
}

// explained adds what to do about the limits of inotify.
func explained(err error) error {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w; raise fs.inotify.max_user_instances or the limit of open files", err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w; raise fs.inotify.max_user_watches", err)
	}
	return err
}
