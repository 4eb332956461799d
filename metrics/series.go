package metrics

import (
	"math/bits"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// outcome is the key of a series within its path. It packs what differs between the calls of a path: kind, code, gRPC status, flags,
// protocol and security.
type outcome uint64

const (
	kindRequest outcome = iota << 60
	kindMessages
	kindTCP
	kinds outcome = 3 << 60

	isGRPC outcome = 1 << 59
	isMTLS outcome = 1 << 58
)

// noStatus stands for the absence of a gRPC status.
const noStatus = 0xff

func newOutcome(code, grpcStatus int, flags mesh.Flags) outcome {
	if code < 0 || code > 999 {
		code = 0
	}
	switch {
	case grpcStatus < 0:
		grpcStatus = noStatus
	case grpcStatus > 16:
		grpcStatus = 2 // UNKNOWN, as in every client; otherwise a peer could create any number of series
	}
	return kindRequest | outcome(code)<<40 | outcome(grpcStatus)<<32 | outcome(flags)
}

func (o outcome) code() string { return strconv.Itoa(int(o >> 40 & 0x3ff)) }

func (o outcome) grpcStatus() string {
	if status := o >> 32 & 0xff; status != noStatus {
		return strconv.Itoa(int(status))
	}
	return ""
}

func (o outcome) protocol() string {
	switch {
	case o&kinds == kindTCP:
		return "tcp"
	case o&isGRPC != 0:
		return "grpc"
	}
	return "http"
}

func (o outcome) policy() string {
	if o&isMTLS != 0 {
		return "mutual_tls"
	}
	return "none"
}

// The counters of a series, by its kind.
const (
	requests = 0

	requestMessages  = 0
	responseMessages = 1

	opened   = 0
	closed   = 1
	sent     = 2
	received = 3
)

// series is one set of labels, with all metrics that have these labels.
type series struct {
	key    outcome
	used   atomic.Int64 // the time of the last call, in Unix seconds; expired once the series is no longer collected
	counts [4]atomic.Uint64
	hists  *histograms // of requests; nil for other kinds
	labels []*dto.LabelPair

	shown    [4]atomic.Bool             // which counters of messages and connections are exported
	variants atomic.Pointer[[]*variant] // the series that replace this one under Telemetry documents
}

const expired = -1

// touch marks the series as used now. It reports false if the series is no longer collected.
func (s *series) touch(now int64) bool { return touch(&s.used, now) }

func touch(second *atomic.Int64, now int64) bool {
	used := second.Load()
	for used != now && used != expired {
		if second.CompareAndSwap(used, now) {
			return true
		}
		used = second.Load()
	}
	return used != expired
}

// path is an identity with its series.
type path struct {
	identity identity
	pairs    []*dto.LabelPair        // the labels of the identity
	gone     atomic.Bool             // no longer collected
	series   atomic.Pointer[[]keyed] // never nil, and never changed in place
}

// noSeries is the list of a new path.
var noSeries []keyed

type keyed struct {
	key outcome
	*series
}

// mostOutcomes bounds the series of one path, so that a peer that keeps answering with new codes does not use up the room of all
// others.
const mostOutcomes = 64

func (p *path) find(key outcome) *series {
	for _, k := range *p.series.Load() {
		if k.key == key {
			return k.series
		}
	}
	return nil
}

// buckets are those of all histograms. They are Istio's.
var buckets = []float64{
	0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
}

const bucketCount = 19 // without the one for larger values

// limits are the bounds of the buckets in some unit.
type limits struct {
	upper [bucketCount]int64
	first [64]uint8 // by the number of bits of a value: the first bucket that may be its own
}

// The bounds in whole microseconds and in whole bytes.
var limitsMicro, limitsBytes = newLimits(1000), newLimits(1)

func newLimits(scale float64) limits {
	var l limits
	for i, b := range buckets {
		l.upper[i] = int64(b * scale)
	}
	for n := 1; n < len(l.first); n++ {
		i := int(l.first[n-1])
		for i < bucketCount && l.upper[i] < 1<<(n-1) {
			i++
		}
		l.first[n] = uint8(i)
	}
	return l
}

// The histograms of a series of requests.
const (
	duration = iota
	requestBytes
	responseBytes
	histogramCount
)

type histograms struct {
	own       [histogramCount]histogram
	exemplars [bucketCount + 1]atomic.Pointer[dto.Exemplar] // of durations
	native    []prometheus.Histogram                        // used instead of own, if set
	observed  [histogramCount]atomic.Bool                   // which native ones have an observation
}

func newHistograms(c *settings) *histograms {
	h := new(histograms)
	if c.native {
		h.native = newNative()
	}
	return h
}

type histogram struct {
	sum    atomic.Int64
	counts [bucketCount + 1]atomic.Uint64
}

func (h *histogram) observe(limits *limits, v int64) {
	h.counts[bucketOf(limits, v)].Add(1)
	h.sum.Add(v)
}

// bucketOf returns the bucket of a value. Those of smaller values with fewer bits are not looked at.
func bucketOf(limits *limits, v int64) int {
	i := int(limits.first[bits.Len64(uint64(max(0, v)))])
	for i < bucketCount && v > limits.upper[i] {
		i++
	}
	return i
}

// observe adds a duration in microseconds, or a size, to one of the histograms.
func (h *histograms) observe(which int, v int64) {
	if h.native != nil && !h.observed[which].Load() {
		h.observed[which].Store(true)
	}
	switch {
	case h.native != nil && which == duration:
		h.native[which].Observe(float64(v) / 1000)
	case h.native != nil:
		h.native[which].Observe(float64(v))
	case which == duration:
		h.own[which].observe(&limitsMicro, v)
	default:
		h.own[which].observe(&limitsBytes, v)
	}
}

// write returns one of the histograms.
func (h *histograms) write(which int) (*dto.Histogram, error) {
	if h.native != nil {
		var m dto.Metric
		if err := h.native[which].Write(&m); err != nil {
			return nil, err
		}
		return m.Histogram, nil
	}
	if which == duration {
		return h.own[which].write(1000), nil
	}
	return h.own[which].write(1), nil
}

// write returns the histogram with the sum of its values divided by scale.
func (h *histogram) write(scale float64) *dto.Histogram {
	out := make([]dto.Bucket, bucketCount)
	list := make([]*dto.Bucket, bucketCount)
	counts := make([]uint64, bucketCount+1)
	var all uint64
	for i := range counts {
		all += h.counts[i].Load()
		counts[i] = all
		if i < bucketCount {
			out[i].CumulativeCount, out[i].UpperBound = &counts[i], &buckets[i]
			list[i] = &out[i]
		}
	}
	sum := float64(h.sum.Load()) / scale
	return &dto.Histogram{SampleCount: &counts[bucketCount], SampleSum: &sum, Bucket: list}
}

// store has all paths, and bounds them.
type store struct {
	settings *settings

	mu       sync.Mutex
	paths    map[identity]*path
	count    int   // of series
	swept    int64 // when sweepLocked last ran, in Unix seconds
	pairs    map[[2]string]*dto.LabelPair
	altered  map[alteredKey]*series
	overflow [2]atomic.Uint64 // calls and raw connections that were not counted, by reporter
}

// intern returns the path of an identity, or nil if there is no room for it.
func (st *store) intern(id identity, now int64) *path {
	st.mu.Lock()
	defer st.mu.Unlock()
	if p := st.paths[id]; p != nil {
		return p
	}
	if !st.roomLocked(now) || len(st.paths) >= st.settings.most {
		return nil
	}
	p := &path{identity: id}
	p.series.Store(&noSeries)
	for i, v := range id.values() {
		p.pairs = append(p.pairs, st.pairLocked(identityNames[i], v))
	}
	st.paths[id] = p
	return p
}

// roomLocked reports whether one more series may be added.
func (st *store) roomLocked(now int64) bool {
	if st.count >= st.settings.most && now-st.swept >= 10 {
		st.sweepLocked(now)
	}
	return st.count < st.settings.most
}

// of returns the series of an outcome, which is used now. It is nil if there is no room for it or the path is gone.
func (st *store) of(p *path, key outcome, now int64) *series {
	if s := p.find(key); s != nil && s.touch(now) {
		return s
	}
	return st.add(p, key, now)
}

// add returns the series of an outcome, or nil if there is no room for it or the path is gone.
func (st *store) add(p *path, key outcome, now int64) *series {
	st.mu.Lock()
	defer st.mu.Unlock()
	if s := p.find(key); s != nil {
		s.touch(now) // it cannot have expired: that happens only in sweepLocked
		return s
	}
	room := st.roomLocked(now) // may sweep, which changes the path
	list := *p.series.Load()
	if !room || p.gone.Load() || len(list) >= mostOutcomes {
		return nil
	}
	s := &series{key: key, labels: st.labelsLocked(p, key)}
	s.used.Store(now)
	if key&kinds == kindRequest {
		s.hists = newHistograms(st.settings)
	}
	st.count++
	list = append(slices.Clip(slices.Clone(list)), keyed{key, s})
	p.series.Store(&list)
	return s
}

// sweepLocked removes the series that have expired, and paths without series.
func (st *store) sweepLocked(now int64) {
	st.swept = now
	idle := int64(st.settings.idle / time.Second)
	for id, p := range st.paths {
		list := *p.series.Load()
		kept := slices.DeleteFunc(slices.Clone(list), func(k keyed) bool {
			used := k.used.Load()
			return now-used > idle && k.used.CompareAndSwap(used, expired)
		})
		if len(kept) < len(list) {
			st.count -= len(list) - len(kept)
			p.series.Store(&kept)
		}
		if len(kept) == 0 { // perhaps it never had any
			delete(st.paths, id)
			p.gone.Store(true)
		}
	}
	st.sweepAlteredLocked(now, idle)
	clear(st.pairs) // series keep those that they use
}

// pairLocked returns a label. Series share equal labels.
func (st *store) pairLocked(name, value string) *dto.LabelPair {
	key := [2]string{name, value}
	pair := st.pairs[key]
	if pair == nil {
		pair = &dto.LabelPair{Name: &key[0], Value: &key[1]}
		st.pairs[key] = pair
	}
	return pair
}

// labelsLocked returns the labels of a series, sorted by name.
func (st *store) labelsLocked(p *path, key outcome) []*dto.LabelPair {
	labels := slices.Clone(p.pairs)
	add := func(name, value string) { labels = append(labels, st.pairLocked(name, value)) }
	if kind := key & kinds; kind != kindMessages {
		add("request_protocol", key.protocol())
		add("response_flags", mesh.Flags(uint32(key)).String())
		add("connection_security_policy", key.policy())
		if kind == kindRequest {
			add("response_code", key.code())
			add("grpc_response_status", key.grpcStatus())
		}
	}
	slices.SortFunc(labels, byName)
	return slices.Clip(labels) // wrappers of the registry append to it
}
