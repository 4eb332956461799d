package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/nosidecar/mesh/policy/internal/folder"
)

const (
	second      = time.Second
	millisecond = time.Millisecond
)

// When a look follows the events, with the clock of the bubble.
func TestWaitSettles(t *testing.T) {
	const dir = "/mesh.d"
	relevant := fsnotify.Event{Name: dir + "/a.yaml", Op: fsnotify.Write}
	irrelevant := fsnotify.Event{Name: dir + "/debug.log", Op: fsnotify.Write}
	type step struct {
		at    time.Duration
		event fsnotify.Event
	}
	endless := func(event fsnotify.Event) (steps []step) {
		for at := 50 * millisecond; at < 5*second; at += 50 * millisecond {
			steps = append(steps, step{at, event})
		}
		return steps
	}
	for _, test := range []struct {
		name  string
		steps []step
		why   reason
		want  time.Duration
	}{
		{"nothing happens", nil, polled, 3 * second},
		{"one event", []step{{second, relevant}}, notified, 1100 * millisecond},
		{"a burst", []step{{second, relevant}, {1090 * millisecond, relevant}, {1180 * millisecond, relevant}},
			notified, 1280 * millisecond},
		{"something else in the burst", []step{{second, relevant}, {1090 * millisecond, irrelevant}},
			notified, 1100 * millisecond},
		{"writing that never stops", endless(relevant), notified, 1050 * millisecond},
		{"writing of something else that never stops", endless(irrelevant), polled, 3 * second},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				events := make(chan fsnotify.Event)
				s := session{debounce: 100 * millisecond, poll: 3 * second, notifier: notifier{
					events: events, interests: map[string]*folder.Interest{dir: {Documents: true}},
				}}
				ctx, cancel := context.WithCancel(t.Context())
				begin := time.Now()
				go func() {
					for _, step := range test.steps {
						time.Sleep(step.at - time.Since(begin))
						select {
						case events <- step.event:
						case <-ctx.Done():
							return
						}
					}
				}()
				why, ok := s.wait(ctx)
				if took := time.Since(begin); why != test.why || !ok || took != test.want {
					t.Errorf("wait() = %v, %v after %v, want %v after %v", why, ok, took, test.why, test.want)
				}
				cancel()
				if _, ok := s.wait(ctx); ok {
					t.Error("wait goes on after the end of ctx")
				}
			})
		})
	}
}

func TestWaitError(t *testing.T) {
	for _, test := range []struct {
		name string
		send func(chan error)
		deaf bool
	}{
		{"overflow", func(errs chan error) { errs <- fsnotify.ErrEventOverflow }, false},
		{"failure", func(errs chan error) { errs <- syscall.EBADF }, true},
		{"closed", func(errs chan error) { close(errs) }, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				errs := make(chan error)
				s := session{debounce: 100 * millisecond, poll: time.Hour, notifier: notifier{errors: errs}}
				go test.send(errs)
				begin := time.Now()
				why, ok := s.wait(t.Context())
				if took := time.Since(begin); why != notified || !ok || took != s.debounce {
					t.Errorf("wait() = %v, %v after %v, want a look after %v", why, ok, took, s.debounce)
				}
				if deaf := s.notifier.err != nil; deaf != test.deaf {
					t.Errorf("err = %v", s.notifier.err)
				}
			})
		})
	}
}

func TestChanged(t *testing.T) {
	n := notifier{interests: map[string]*folder.Interest{
		"/etc/mesh.d":   {Documents: true},
		"/etc":          {Names: map[string]bool{"mesh.d": true}},
		"/srv/releases": {Names: map[string]bool{".current": true}},
	}}
	for _, test := range []struct {
		name string
		op   fsnotify.Op
		want bool
	}{
		{"/etc/mesh.d/a.yaml", fsnotify.Write, true},
		{"/etc/mesh.d/a.yml", fsnotify.Chmod, true},
		{"/etc/mesh.d/.a.yaml", fsnotify.Write, false},
		{"/etc/mesh.d/..data", fsnotify.Create, true},
		{"/etc/mesh.d/..data_tmp", fsnotify.Create, false},
		{"/etc/mesh.d/..2026_01_01", fsnotify.Create, false},
		{"/etc/mesh.d/debug.log", fsnotify.Write, false},
		{"/etc/mesh.d/perhaps-a-folder", fsnotify.Create, true},
		{"/etc/mesh.d/perhaps-a-folder", fsnotify.Rename, true},
		{"/etc/mesh.d/perhaps-a-folder", fsnotify.Remove, true},
		{"/etc/mesh.d", fsnotify.Remove, true},
		{"/etc/mesh.d", fsnotify.Create, true},
		{"/etc/other.yaml", fsnotify.Write, false},
		{"/srv/releases/.current", fsnotify.Create, true},
		{"/srv/releases/v2", fsnotify.Create, false},
		{"/elsewhere/a.yaml", fsnotify.Write, false},
	} {
		if got := n.changed(fsnotify.Event{Name: test.name, Op: test.op}, true); got != test.want {
			t.Errorf("changed(%s %s) = %v, want %v", test.op, test.name, got, test.want)
		}
	}
}

// Without notifications the watcher polls, says so once, and waits until what it finds no longer changes.
func TestPolling(t *testing.T) {
	for _, test := range []struct {
		name string
		open func() (*fsnotify.Watcher, error)
		want string
	}{
		{"no instance left", func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE }, "fs.inotify.max_user_instances"},
		{"no watch left", func() (*fsnotify.Watcher, error) { return nil, syscall.ENOSPC }, "fs.inotify.max_user_watches"},
		{"closed", func() (*fsnotify.Watcher, error) {
			w, err := fsnotify.NewWatcher()
			if err == nil {
				err = w.Close()
			}
			return w, err
		}, "closed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "a.yaml")
			put := func(data string) {
				if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			put("1")
			synctest.Test(t, func(t *testing.T) {
				begin := time.Now()
				var got []string
				ctx, cancel := context.WithCancel(t.Context())
				w := &Watcher{Paths: []string{dir}, Poll: 30 * second, notify: test.open}
				ended := make(chan struct{})
				go func() {
					defer close(ended)
					for sources, err := range w.Watch(ctx) {
						what := "error"
						if err == nil {
							what = string(sources[0].Data)
						} else if !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "every 30s") {
							t.Errorf("error %q, want %q in it", err, test.want)
						}
						got = append(got, fmt.Sprintf("%v %s", time.Since(begin), what))
					}
				}()
				for _, data := range []string{"2 hal", "2 half do", "2 done"} {
					// The first is found by the poll after 30 s, the others while it waits for the end of the writing.
					if data == "2 hal" {
						time.Sleep(29*second + 950*millisecond)
					} else {
						time.Sleep(100 * millisecond)
					}
					put(data)
				}
				time.Sleep(60 * second)
				for i := range 50 {
					put(fmt.Sprintf("3 writing %d", i))
					time.Sleep(second)
				}
				cancel()
				<-ended
				want := []string{"0s 1", "0s error", "30.3s 2 done"}
				if len(got) < len(want) || fmt.Sprint(got[:len(want)]) != fmt.Sprint(want) {
					t.Errorf("yielded %q, want first %q", got, want)
				}
				if last := got[len(got)-1]; len(got) != len(want)+2 || !strings.Contains(last, "3 writing") {
					t.Errorf("yielded %q, want two more as the writing goes on", got)
				}
			})
		})
	}
}

// Writing that never stops delays what polling found at most ten times Debounce.
func TestPollingPatience(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.yaml")
	put := func(i int) {
		if err := os.WriteFile(path, fmt.Append(nil, i), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put(-1)
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var when []time.Duration
		ctx, cancel := context.WithCancel(t.Context())
		w := &Watcher{Paths: []string{path}, notify: func() (*fsnotify.Watcher, error) { return nil, errors.ErrUnsupported }}
		go func() {
			for _, err := range w.Watch(ctx) {
				if err == nil {
					when = append(when, time.Since(begin))
				}
			}
		}()
		time.Sleep(25 * millisecond) // never at the moment of a look
		for i := range 700 {         // 35 s
			put(i)
			time.Sleep(50 * millisecond)
		}
		cancel()
		synctest.Wait()
		if len(when) != 2 || when[1] != 31*second {
			t.Errorf("yielded at %v, want at 0 s and 31 s", when)
		}
	})
}

// Once notifications can be had again they are used, and if they are lost once more that is said once more.
func TestNotificationsComeBack(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.yaml"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var opened *fsnotify.Watcher
	broken := true
	w := &Watcher{Paths: []string{dir}, notify: func() (*fsnotify.Watcher, error) {
		if broken {
			return nil, syscall.EMFILE
		}
		var err error
		opened, err = fsnotify.NewWatcher()
		return opened, err
	}}
	s, err := w.begin()
	if err != nil {
		t.Fatal(err)
	}
	defer s.notifier.close()
	if s.look(); !errors.Is(s.notifier.err, syscall.EMFILE) {
		t.Errorf("err = %v, want EMFILE", s.notifier.err)
	}
	broken = false
	if s.look(); s.notifier.err != nil || s.events == nil {
		t.Errorf("err = %v after the limit was raised", s.notifier.err)
	}
	opened.Close()
	broken = true
	if s.look(); !errors.Is(s.notifier.err, fsnotify.ErrClosed) || s.events != nil {
		t.Errorf("err = %v, want %v", s.notifier.err, fsnotify.ErrClosed)
	}
	if s.look(); !errors.Is(s.notifier.err, syscall.EMFILE) {
		t.Errorf("err = %v, want EMFILE", s.notifier.err)
	}
}

// fsnotify sends errors with a lock held that Add, Remove and Close need, as when a folder is renamed and then removed.
func TestErrorsAreReceivedAtAllTimes(t *testing.T) {
	var opened *fsnotify.Watcher
	w := &Watcher{Paths: []string{t.TempDir()}, notify: func() (w *fsnotify.Watcher, err error) {
		opened, err = fsnotify.NewWatcher()
		return opened, err
	}}
	s, err := w.begin()
	if err != nil {
		t.Fatal(err)
	}
	defer s.notifier.close()
	s.look()
	for range 3 {
		select {
		case opened.Errors <- syscall.EINVAL:
		case <-time.After(20 * second):
			t.Fatal("nobody receives errors")
		}
	}
	if why, ok := s.wait(t.Context()); why != notified || !ok {
		t.Errorf("wait() = %v, %v, want a look because of the error", why, ok)
	}
	if state := s.look(); state.err != nil || s.notifier.err != nil || s.events == nil {
		t.Errorf("after the error: %v, %v", state.err, s.notifier.err)
	}
}
