package metrics

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/nosidecar/mesh"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Metrics has the metrics of a process. [New] returns one. It is safe for concurrent use.
type Metrics struct {
	config    Config
	settings  *settings
	store     store
	hosts     hosts
	claims    claims
	tails     tails
	state     state
	collector *collector
	over      atomic.Bool

	mu       sync.Mutex
	watchers []weak.Pointer[watcher] // each is kept alive by its mesh
}

// New returns metrics that stay registered until Close. The error says what is wrong with the Config, or that metrics with these
// names are already registered.
func New(c Config) (*Metrics, error) {
	s, err := c.settings(os.Getenv, os.Hostname)
	if err != nil {
		return nil, err
	}
	m := &Metrics{config: c, settings: s}
	m.store = store{settings: s, paths: make(map[identity]*path), pairs: make(map[[2]string]*dto.LabelPair),
		altered: make(map[alteredKey]*series)}
	m.hosts = hosts{most: max(s.most/4, 16), used: make(map[string]int64)}
	m.claims = claims{used: make(map[claim]int64), perPeer: make(map[string]int)}
	m.tails = tails{most: s.endpoints, all: make(map[tailKey]*tail)}
	m.state.init()
	m.collector = &collector{m}
	if err := s.registerer.Register(m.collector); err != nil {
		if errors.As(err, new(prometheus.AlreadyRegisteredError)) {
			err = fmt.Errorf("%w: a process needs one Metrics, with an Observer for each mesh; otherwise set Registerer, or Close the former", err)
		}
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return m, nil
}

// Observer returns an observer for [mesh.WithObserver], which records the calls and the state of a mesh. Each mesh needs its own.
func (m *Metrics) Observer() mesh.Observer {
	w := newWatcher(m)
	m.watch(w)
	return w.observer()
}

func (m *Metrics) watch(w *watcher) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers = append(m.watchers, weak.Make(w))
}

// Close unregisters the metrics. The observers may still be used afterwards, but they no longer record anything. Close always returns
// nil, and may be called more than once.
func (m *Metrics) Close() error {
	if !m.over.Swap(true) {
		m.settings.registerer.Unregister(m.collector)
	}
	return nil
}

// each calls f for the watchers of all meshes that still exist.
func (m *Metrics) each(f func(*watcher)) {
	m.mu.Lock()
	var all []*watcher
	m.watchers = slices.DeleteFunc(m.watchers, func(p weak.Pointer[watcher]) bool {
		w := p.Value()
		if w != nil {
			all = append(all, w)
		}
		return w == nil
	})
	m.mu.Unlock()
	for _, w := range all {
		f(w)
	}
}

// collector is the prometheus.Collector of a Metrics.
type collector struct{ m *Metrics }

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, list := range families {
		for _, f := range list {
			ch <- f.desc
		}
	}
	c.m.state.describe(ch)
	ch <- attemptDuration
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	m, now := c.m, time.Now()
	m.each(func(w *watcher) { w.scrape(now) })
	before := now.Add(-m.settings.idle).Unix()
	m.hosts.sweep(before)
	m.claims.sweep(before)
	m.state.expire(before)
	m.store.collect(ch, now.Unix())
	m.tails.collect(ch, before)
	m.state.collect(m, ch)
}
