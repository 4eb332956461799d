package kubernetes

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

const (
	pollEvery = 30 * time.Second // and up to as much again at random
	pollSoon  = 2 * time.Second  // after Served.Again, plus or minus half at random
	goneAfter = time.Minute      // how long after it was last found a kind counts as gone

	maxVersions = 100 // of a group; each takes a request
)

// Kind is a kind that the caller knows.
type Kind struct {
	Name     string   // "VirtualService"
	Plural   string   // "virtualservices"; empty means that the server's name is used
	Versions []string // the versions that the caller knows, in order of preference; if the server has none of them, its own order decides
}

// Served asks which kinds of a group the server has, and in which versions. It is safe for concurrent use, but must not be changed while in
// use.
type Served struct {
	Client *Client
	Group  string // not the core group
	Kinds  []Kind

	// Again, if not nil, triggers an early request whenever a value can be received from it.
	Again <-chan struct{}
}

// All yields the kinds that the server has, one version each, in the order of Kinds, at the start and after each change. It asks every 30
// to 60 seconds. It keeps a version that it has yielded as long as the server has it, and drops a kind one minute after it was last found.
//
// Errors are like those of [Watch.All]: what was yielded last stays valid.
func (s Served) All(ctx context.Context) iter.Seq2[[]Resource, error] {
	return func(yield func([]Resource, error) bool) {
		r := asking{Served: s, ctx: ctx, chosen: make(map[string]Resource), found: make(map[string]time.Time)}
		known, told := false, ""
		var last []Resource
		for {
			err := r.ask()
			switch {
			case ctx.Err() != nil:
				return
			case err != nil:
				if text := err.Error(); text != told {
					told = text
					if !yield(nil, err) {
						return
					}
				}
				var e *Error
				errors.As(err, &e)
				if !r.pause(max(r.backoff.next(), e.RetryAfter)) {
					return
				}
				continue
			}
			if now := r.answer(); !known || told != "" || !slices.Equal(now, last) {
				known, told, last = true, "", now
				if !yield(slices.Clone(now), nil) {
					return
				}
			}
			if !r.pause(pollEvery + rand.N(pollEvery)) {
				return
			}
		}
	}
}

// asking is one iteration.
type asking struct {
	Served
	ctx     context.Context
	chosen  map[string]Resource  // by the name of the kind
	found   map[string]time.Time // when it was last there
	backoff backoff
}

// pause waits for d, or for less if the caller asks for an early request. It reports false if the context ends first.
func (r *asking) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	again := r.Again
	for {
		select {
		case <-timer.C:
			return true
		case <-r.ctx.Done():
			return false
		case _, ok := <-again:
			if again = nil; ok {
				timer.Reset(min(d, pollSoon/2+rand.N(pollSoon)))
			}
		}
	}
}

// answer returns the chosen resources in the order of Kinds.
func (r *asking) answer() []Resource {
	var all []Resource
	for _, k := range r.Kinds {
		if chosen, ok := r.chosen[k.Name]; ok {
			all = append(all, chosen)
		}
	}
	return all
}

// ask asks the server for its kinds.
func (r *asking) ask() error {
	versions, err := r.versions()
	if err != nil {
		return err
	}
	have := make(map[versioned]Resource)
	for _, version := range versions {
		if err := r.kinds(version, have); err != nil {
			return err
		}
	}
	now := time.Now()
	for _, k := range r.Kinds {
		chosen, known := r.chosen[k.Name]
		choices := slices.Concat(k.Versions, versions)
		i := slices.IndexFunc(choices, func(version string) bool {
			found, ok := have[versioned{version, k.Name}]
			return ok && (k.Plural == "" || k.Plural == found.Plural)
		})
		switch there := known && have[versioned{chosen.Version, k.Name}] == chosen; {
		case there && (i >= len(k.Versions) || slices.Contains(k.Versions, chosen.Version)):
			r.found[k.Name] = now // keep it, since nothing better is known
		case i >= 0:
			r.chosen[k.Name], r.found[k.Name] = have[versioned{choices[i], k.Name}], now
		case known && now.Sub(r.found[k.Name]) >= goneAfter:
			delete(r.chosen, k.Name)
		}
	}
	return nil
}

// versioned is a kind in a version.
type versioned struct{ version, kind string }

// versions returns the versions of the group; none if there is no such group.
func (r *asking) versions() ([]string, error) {
	var group struct {
		Kind     string
		Versions []struct{ Version string }
	}
	path := "/apis/" + url.PathEscape(r.Group)
	switch err := r.Client.Do(r.ctx, http.MethodGet, path, nil, &group); {
	case errors.Is(err, ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case group.Kind != "APIGroup":
		return nil, notA("APIGroup", path, group.Kind)
	}
	if len(group.Versions) > maxVersions {
		return nil, &Error{What: "GET " + path, Err: fmt.Errorf("%w: a group of %d versions", errNonsense, len(group.Versions))}
	}
	var all []string
	for _, v := range group.Versions {
		all = append(all, v.Version)
	}
	return all, nil
}

// kinds adds the kinds that the server has in a version.
func (r *asking) kinds(version string, have map[versioned]Resource) error {
	var list struct {
		Kind      string
		Resources []struct{ Name, Kind string }
	}
	path := groupPath(r.Group, version)
	switch err := r.Client.Do(r.ctx, http.MethodGet, path, nil, &list); {
	case errors.Is(err, ErrNotFound):
		return nil // it has been removed in the meantime
	case err != nil:
		return err
	case list.Kind != "APIResourceList":
		return notA("APIResourceList", path, list.Kind)
	}
	for _, found := range list.Resources {
		if !strings.Contains(found.Name, "/") { // skip subresources, such as a status
			have[versioned{version, found.Kind}] = Resource{Group: r.Group, Version: version, Plural: found.Name, Kind: found.Kind}
		}
	}
	return nil
}

func notA(want, path, got string) error {
	return &Error{What: "GET " + path, Err: fmt.Errorf("%w: a %q instead of an %s", errNonsense, clean(cmp.Or(got, "nothing")), want)}
}
