package kubernetes

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	kube "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/policy"
)

const (
	perEvent    = time.Second // between two Events of a process
	mostPending = 100         // Events that wait; more are dropped, since Mesh.Status has all refused documents
	mostMessage = 1000        // bytes of a message; the API server takes 1024
)

// events wraps a feed. It writes an Event about each of the feed's documents that is refused.
type events struct {
	mesh.Feed
	client  *kube.Client
	pending chan event

	mu      sync.Mutex
	sources map[string]policy.Source // of the last set, by name
	told    map[string]string        // the name of the last Event about each source
}

func newEvents(feed mesh.Feed, client *kube.Client) *events {
	return &events{Feed: feed, client: client, pending: make(chan event, mostPending), told: make(map[string]string)}
}

// String names the feed in errors.
func (e *events) String() string { return fmt.Sprint(e.Feed) }

// Watch is the feed's Watch. While it runs, Events are written.
func (e *events) Watch(ctx context.Context) iter.Seq2[[]policy.Source, error] {
	return func(yield func([]policy.Source, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		var writer sync.WaitGroup
		defer writer.Wait()
		defer cancel()
		writer.Go(func() { e.write(ctx) })
		for sources, err := range e.Feed.Watch(ctx) {
			if err == nil {
				e.take(sources)
			}
			if !yield(sources, err) {
				return
			}
		}
	}
}

// take keeps what Events need to know about the documents.
func (e *events) take(sources []policy.Source) {
	byName := make(map[string]policy.Source, len(sources))
	for _, s := range sources {
		byName[s.Name] = s
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sources = byName
	for name := range e.told {
		if _, there := byName[name]; !there {
			delete(e.told, name)
		}
	}
}

// loaded queues an Event for each document that a load refuses, unless there has been one for its generation.
func (e *events) loaded(load mesh.PolicyLoad) {
	e.mu.Lock()
	defer e.mu.Unlock()
	seen := make(map[string]bool)
	for _, f := range load.Findings {
		source, ours := e.sources[f.File]
		if !ours || f.Severity != policy.Error || seen[f.File] {
			continue
		}
		seen[f.File] = true
		ev, err := newEvent(source, f)
		if err != nil || e.told[f.File] == ev.Metadata.Name {
			continue
		}
		select {
		case e.pending <- ev:
			e.told[f.File] = ev.Metadata.Name
		default: // the next load tries again
		}
	}
}

// write writes Events, one after the other.
func (e *events) write(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		select {
		case <-ctx.Done():
			return
		case ev := <-e.pending:
			path := "/api/v1/namespaces/" + ev.Metadata.Namespace + "/events"
			// If the Event already exists, another process has written it. Other failures are not reported, since Mesh.Status
			// has all refused documents.
			_ = e.client.Do(ctx, http.MethodPost, path, ev, nil)
			pause.Reset(perEvent)
		}
	}
}

// event is an Event of the core API.
type event struct {
	APIVersion     string    `json:"apiVersion"`
	Kind           string    `json:"kind"`
	Metadata       metadata  `json:"metadata"`
	InvolvedObject reference `json:"involvedObject"`
	Reason         string    `json:"reason"`
	Message        string    `json:"message"`
	Type           string    `json:"type"`
	Source         component `json:"source"`
	First          time.Time `json:"firstTimestamp"`
	Last           time.Time `json:"lastTimestamp"`
	Count          int       `json:"count"`
}

type metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
}

type reference struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Namespace  string `json:"namespace"`
	Name       string `json:"name"`
	UID        string `json:"uid"`
}

type component struct {
	Component string `json:"component"`
}

// newEvent returns the Event about a refused document. All processes give it the same name for the same generation.
func newEvent(source policy.Source, f policy.Finding) (event, error) {
	var document struct {
		APIVersion, Kind string
		Metadata         struct {
			Name, Namespace, UID string
			Generation           int64
		}
	}
	if err := json.Unmarshal(source.Data, &document); err != nil {
		return event{}, err
	}
	m := document.Metadata
	if m.UID == "" {
		return event{}, errors.New("no object of an API server")
	}
	message := f.Message
	if f.Field != "" {
		message = f.Field + ": " + message
	}
	if f.InForce != "" {
		message += " (in force: " + f.InForce + ")"
	}
	if len(message) > mostMessage {
		message = strings.ToValidUTF8(message[:mostMessage], "") + "..."
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", m.UID, m.Generation))
	now := time.Now().UTC().Truncate(time.Second)
	return event{
		APIVersion: "v1", Kind: "Event", Metadata: metadata{fmt.Sprintf("mesh.%x", sum[:10]), m.Namespace},
		InvolvedObject: reference{document.APIVersion, document.Kind, m.Namespace, m.Name, m.UID},
		Reason:         "Refused", Message: message, Type: "Warning", Source: component{"mesh"}, First: now, Last: now, Count: 1,
	}, nil
}
