// Package kubernetes follows policy documents that are custom resources of a Kubernetes API server, which kubectl applies.
//
//	mesh.New(ctx, mesh.WithPolicyFeed(&kubernetes.Feed{}), mesh.WithEmptyPolicy(), ...)
//
// The package github.com/nosidecar/mesh/kubernetes combines it with discovery in one option. docs/kubernetes.md lists the rights that it
// needs.
package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	discovery "github.com/nosidecar/mesh/discovery/kubernetes"
	"github.com/nosidecar/mesh/internal/namespaces"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy"
)

// Feed follows the documents of a cluster, for mesh.WithPolicyFeed: those of the process's own namespace, of the root namespace
// (policy.Workload.RootNamespace, by default istio-system), of Namespaces, and, with Need, of the namespaces that calls go to. It follows all kinds that package policy knows, in the
// newest version that both know; a kind that is not installed has no documents until it is. Its fields must not change once it is
// used; then it is safe for concurrent use.
//
// It opens one watch per kind and namespace, over one or two connections.
type Feed struct {
	// Client sends requests to the API server. nil means a client of the cluster that the process runs in.
	Client *discovery.Client

	// Namespace is the namespace of this process. "" means the client's: that of its pod, or of the context in its kubeconfig. It must be
	// the namespace of the mesh's workload. If it is not, Watch yields an error: the policies that protect the process would be unknown.
	Namespace string

	// Namespaces are further namespaces to follow from the start, such as one with ServiceEntries for everybody.
	Namespaces []string

	// Logger gets a message when all documents of a kind disappear at once. nil means slog.Default().
	Logger *slog.Logger

	mu     sync.Mutex
	needed map[string]struct{} // the namespaces that Need was called with
	loops  map[*loop]struct{}
}

// String names the feed in errors.
func (*Feed) String() string { return "the documents of Kubernetes" }

func (f *Feed) log() *slog.Logger { return cmp.Or(f.Logger, slog.Default()) }

// Watch yields the documents at the start and after every change, until ctx ends. Each document is a source of its own, named
// "NAMESPACE/KIND/NAME"; they are ordered from old to new. Documents stand alone: see policy.Source. The first set is yielded when every
// kind has been read in every namespace that is followed from the start. It may be empty, see mesh.WithEmptyPolicy.
//
// If something cannot be read, Watch yields an error, and the documents that were read before stay in force. An error has the method
// Temporary. It reports false if this process has not been allowed, for 15 seconds since the start, to read a kind that protects somebody,
// such as AuthorizationPolicy: then waiting does not help. Other kinds that it may not read are left out.
func (f *Feed) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		client, err := f.client()
		if err != nil {
			yield(nil, err)
			return
		}
		own, root, err := f.namespaces(ctx, client.Namespace())
		if err != nil {
			yield(nil, err)
			return
		}
		l := newLoop(ctx, f, own, root)
		l.start = func(l *loop, w *watch) { l.followObjects(client, w) }
		f.enter(l)
		defer func() {
			cancel()
			f.leave(l)
			l.tasks.Wait()
		}()
		for group := range l.kinds {
			l.tasks.Go(func() { l.followGroup(client, group) })
		}
		l.run(yield)
	}
}

// namespaces returns the namespace of this process and the root namespace. inherited is the namespace of the client, which may be empty.
func (f *Feed) namespaces(ctx context.Context, inherited string) (own, root string, err error) {
	mesh, inMesh := namespaces.From(ctx)
	own, root = cmp.Or(f.Namespace, inherited, mesh.Own), cmp.Or(mesh.Root, namespaces.DefaultRoot)
	if own == "" {
		return "", "", errors.New("kubernetes: the namespace of this process is unknown: set Feed.Namespace")
	}
	for _, name := range append([]string{own, root}, f.Namespaces...) {
		if !yamldoc.IsLabel(name) {
			return "", "", fmt.Errorf("kubernetes: %q is not the name of a namespace: use lower-case letters, digits and hyphens", name)
		}
	}
	if inMesh && own != mesh.Own {
		return "", "", fmt.Errorf("kubernetes: the documents of the namespace %s are followed, and the workload is in %s: correct Namespace in "+
			"mesh.WithWorkload, or the variable POD_NAMESPACE", own, mesh.Own)
	}
	return own, root, nil
}

// enter makes calls of Need wait for a loop.
func (f *Feed) enter(l *loop) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.loops == nil {
		f.loops = make(map[*loop]struct{})
	}
	f.loops[l] = struct{}{}
	for name := range maps.Keys(f.needed) {
		l.want(name)
	}
}

// leave undoes enter.
func (f *Feed) leave(l *loop) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.loops, l)
}

// Need makes the feed follow a namespace, limited to documents about calls to its services. It returns when the consumer of Watch has
// taken the documents of the namespace, when ctx ends, or after 5 seconds. Documents that cannot be read in time are reported by Watch
// and follow later. If no Watch runs, Need returns at once, and the next Watch follows the namespace.
func (f *Feed) Need(ctx context.Context, namespace string) {
	f.mu.Lock()
	_, known := f.needed[namespace]
	if !known {
		if f.needed == nil {
			f.needed = make(map[string]struct{})
		}
		f.needed[namespace] = struct{}{}
	}
	loops := make([]*loop, 0, len(f.loops))
	for l := range f.loops {
		loops = append(loops, l)
	}
	f.mu.Unlock()
	expiry := time.NewTimer(patience + settle)
	defer expiry.Stop()
	for _, l := range loops {
		if !known {
			l.want(namespace)
		}
		select {
		case <-l.awaits(namespace):
		case <-l.ctx.Done():
		case <-ctx.Done():
			return
		case <-expiry.C:
			return
		}
	}
}

func plural(n int) string {
	if n == 1 {
		return "1 other"
	}
	return strconv.Itoa(n) + " others"
}
