package kubernetes

import (
	"context"
	"errors"
	"slices"
	"time"

	kube "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/policy"
)

func (f *Feed) client() (*kube.Client, error) {
	if f.Client != nil {
		return (*kube.Client)(f.Client), nil
	}
	return kube.InCluster()
}

// denied reports whether an error says that this process may not read something.
func denied(err error) bool { return errors.Is(err, kube.ErrDenied) }

// followGroup tells the loop which kinds of a group are served.
func (l *loop) followGroup(client *kube.Client, name string) {
	if name == "" {
		services := kube.Resource{Version: "v1", Plural: "services", Kind: "Service"}
		l.post(func() { l.serves(name, map[string]kube.Resource{"Service": services}, nil) })
		return
	}
	served := kube.Served{Client: client, Group: name, Again: l.groups[name].again}
	for _, k := range l.kinds[name] {
		versions := slices.Clone(k.Versions)
		slices.Reverse(versions)
		served.Kinds = append(served.Kinds, kube.Kind{Name: k.Name, Versions: versions})
	}
	for resources, err := range served.All(l.ctx) {
		byKind := make(map[string]kube.Resource)
		for _, r := range resources {
			byKind[r.Kind] = r
		}
		if !l.post(func() { l.serves(name, byKind, err) }) {
			return
		}
	}
}

// followObjects tells the loop which objects of a kind are in a namespace.
func (l *loop) followObjects(client *kube.Client, w *watch) {
	ctx, cancel := context.WithCancel(l.ctx)
	w.cancel = cancel
	watch := kube.Watch[document]{
		Client: client, Resource: w.resource, Namespace: w.namespace,
		Decode: func(object kube.Object) document { return decode(w, object) },
	}
	again := l.groups[w.group].again
	l.tasks.Go(func() {
		defer cancel()
		for state, err := range watch.All(ctx) {
			if errors.Is(err, kube.ErrNotFound) { // perhaps the kind is served in another version now
				select {
				case again <- struct{}{}:
				default:
				}
			}
			documents := make([]document, 0, len(state.Objects))
			for _, d := range state.Objects {
				documents = append(documents, d)
			}
			if !l.post(func() { l.take(w, documents, err) }) {
				return
			}
		}
	})
}

// decode returns the document of an object. An object that cannot be read counts as the youngest; package policy reports what is wrong.
func decode(w *watch, object kube.Object) document {
	d, err := newDocument(w.kind, w.resource.Version, object.Raw)
	if err == nil {
		return d
	}
	d = document{created: time.Unix(1<<40, 0), namespace: object.Namespace, name: object.Name}
	d.source = policy.Source{Name: sourceName(w.kind, d.namespace, d.name), Data: slices.Clone(object.Raw), Alone: true}
	return d
}
