package metrics

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/grpccode"
	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// tails has the durations of attempts by endpoint, which show a slow endpoint among many.
type tails struct {
	most int

	mu  sync.Mutex
	all map[tailKey]*tail
}

// tailKey is an endpoint of a destination, and the result of attempts.
type tailKey struct {
	target   route.Target
	endpoint string
	failed   bool
}

// bounded returns the key with what labels show of it.
func (k tailKey) bounded() tailKey {
	for _, s := range [...]*string{&k.target.Host, &k.target.Subset, &k.endpoint} {
		*s = workload.Bounded(*s)
	}
	return k
}

// otherEndpoints is the label value of the endpoints beyond the bound.
const otherEndpoints = "other"

type tail struct {
	tailKey
	used   atomic.Int64
	hist   histogram
	labels []*dto.LabelPair
}

var tailNames = append(slices.Clone(targetNames), "endpoint", "result")

var attemptDuration = prometheus.NewDesc("mesh_attempt_duration_milliseconds",
	"Time until the end of the response of an attempt, by endpoint and result: success or failure.", tailNames, nil)

// attemptEnd records an attempt, unless the caller cancelled it.
func (w *watcher) attemptEnd(_ context.Context, a *mesh.Attempt) {
	if w.over.Load() || a.Peer == nil || a.Err != nil && errors.Is(a.Err, context.Canceled) {
		return
	}
	now := a.Start.Add(a.Duration).Unix()
	key := tailKey{a.Call.Target, a.Endpoint, hasFailed(a)}
	var e *endpoint
	if known, ok := w.endpoints.Load(a.Peer); ok {
		e = known.(*endpoint)
		if t := e.tails[index(key.failed)].Load(); t != nil && t.target == key.target && t.endpoint == key.endpoint && t.touch(now) {
			t.hist.observe(&limitsMicro, a.Duration.Microseconds())
			return
		}
	}
	t := w.tails.of(key.bounded(), now)
	if e != nil && t.endpoint == key.endpoint {
		e.tails[index(key.failed)].Store(t)
	}
	t.hist.observe(&limitsMicro, a.Duration.Microseconds())
}

// hasFailed reports whether an attempt got no response, or one that reports a failure of the server.
func hasFailed(a *mesh.Attempt) bool {
	return a.Err != nil || a.Status == 0 || a.Status >= 500 || grpccode.ServerFault(uint32(a.GRPCStatus))
}

// index returns the index in a pair whose second element is for true.
func index(second bool) int {
	if second {
		return 1
	}
	return 0
}

func (t *tail) touch(now int64) bool { return touch(&t.used, now) }

// of returns the tail for key, or the one of all other endpoints if there are too many.
func (ts *tails) of(key tailKey, now int64) *tail {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t := ts.all[key]; t != nil {
		t.touch(now)
		return t
	}
	if len(ts.all) >= 2*ts.most {
		key = tailKey{route.Target{Host: unknown}, otherEndpoints, key.failed}
		if t := ts.all[key]; t != nil {
			t.touch(now)
			return t
		}
	}
	t := &tail{tailKey: key}
	t.used.Store(now)
	values := append(targetValues(key.target.Host, key.target.Port, key.target.Subset), key.endpoint, "success")
	if key.failed {
		values[4] = "failure"
	}
	for i, name := range tailNames {
		t.labels = append(t.labels, &dto.LabelPair{Name: &name, Value: &values[i]})
	}
	t.labels[0], t.labels[1] = t.labels[1], t.labels[0] // sorted by name
	t.labels = slices.Clip(t.labels)                    // wrappers of the registry append to it
	ts.all[key] = t
	return t
}

func (ts *tails) collect(ch chan<- prometheus.Metric, before int64) {
	ts.mu.Lock()
	maps.DeleteFunc(ts.all, func(_ tailKey, t *tail) bool {
		used := t.used.Load()
		return used < before && t.used.CompareAndSwap(used, expired)
	})
	all := slices.Collect(maps.Values(ts.all))
	ts.mu.Unlock()
	for _, t := range all {
		ch <- t
	}
}

// Desc implements prometheus.Metric.
func (t *tail) Desc() *prometheus.Desc { return attemptDuration }

// Write implements prometheus.Metric.
func (t *tail) Write(out *dto.Metric) error {
	out.Label, out.Histogram = t.labels, t.hist.write(1000)
	return nil
}
