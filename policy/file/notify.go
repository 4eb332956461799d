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

// notifier reports changes in the folders it follows. While the kernel's notifications are not available it reports none,
// and tries again with every follow.
type notifier struct {
	reader  folder.Reader // says which files count
	open    func() (*fsnotify.Watcher, error)
	watcher *fsnotify.Watcher // nil if there is none
	events  <-chan fsnotify.Event
	errors  <-chan error

	interests map[string]*folder.Interest
	followed  map[string]fs.FileInfo // by path; tells whether it is still the same folder
	err       error                  // why notifications are missing, as of the last follow
}

var errEnded = errors.New("the notifications ended")

// follow makes the notifier report changes in the folders of interests, and in no others. It returns whether it followed
// one that it did not before: what happened in it until now may have been missed.
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
	listed := n.watcher.WatchList() // without those the kernel dropped because their folder went
	for path := range interests {
		info, err := os.Stat(path)
		if err != nil {
			n.forget(path)
			continue // whoever reads it says so
		}
		if known := n.followed[path]; known != nil && !os.SameFile(known, info) {
			n.forget(path)
		}
		// Adding again does no harm, and is what helps where a new folder got the number of the old one.
		switch err := n.watcher.Add(path); {
		case err == nil:
			fresh = fresh || n.followed[path] == nil || !slices.Contains(listed, path)
			n.followed[path] = info
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			fresh = true // it went since Stat
		case errors.Is(err, fs.ErrPermission):
			// A folder of documents is read and the failure yielded. One above may be closed to us: polling is left.
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
		n.watcher.Remove(path) // fails where the kernel dropped it with its folder
	}
}

// changed reports whether the documents may have changed with event, as received.
func (n *notifier) changed(event fsnotify.Event, open bool) bool {
	if !open {
		n.failed(errEnded, true)
		return true
	}
	if n.interests[event.Name] != nil {
		return true // a folder itself moved, went, or got other permissions
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
	// It may be a folder. If so, only its coming and going matters here.
	return event.Has(fsnotify.Create) || event.Has(fsnotify.Remove) || event.Has(fsnotify.Rename)
}

// failed takes an error of the watcher, as received. Too many events at once lose some, which the next look makes good.
// After anything else there may be no more events, so the next follow begins anew.
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

// drain passes errors on until the watcher is closed. Somebody must receive them at all times: the watcher sends some
// with its lock held, the one that Add, Remove and Close wait for. One that waits is enough, so others are dropped.
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

// close returns when the goroutines of the watcher and of drain have ended.
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

// explained adds what to do about the limits that inotify has.
func explained(err error) error {
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fmt.Errorf("%w; raise fs.inotify.max_user_instances or the limit of open files", err)
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Errorf("%w; raise fs.inotify.max_user_watches", err)
	}
	return err
}
