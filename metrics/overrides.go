package metrics

import (
	"cmp"
	"net/http"
	"slices"
	"strings"

	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/policy/telemetry"
	dto "github.com/prometheus/client_model/go"
)

// variant is a series as documents change it, for one set of the values that come from headers.
type variant struct {
	side   *telemetry.Side
	tags   []telemetry.Tag // those whose value is a header
	values []string        // of tags
	of     []*series       // by metric of the kind: the series that counts it, or nil if it is not exported
}

// mostVariants is the maximum number of variants that a series remembers. Others are looked up every time.
const mostVariants = 16

// alteredKey is a metric with labels that documents have changed.
type alteredKey struct {
	metric string // its name in documents
	labels string // by keyOf
}

// overridden returns side if documents change its metrics, and nil otherwise.
func overridden(side *telemetry.Side) *telemetry.Side {
	if side.Metrics == nil {
		return nil
	}
	return side
}

// targets returns the series that count the metrics of s, and marks them as used now.
func (st *store) targets(s *series, side *telemetry.Side, header http.Header, now int64) []*series {
	if list := s.variants.Load(); list != nil {
		for _, v := range *list {
			if v.side == side && v.has(header) && v.touch(now) {
				return v.of
			}
		}
	}
	return st.alter(s, side, header, now).of
}

func (v *variant) has(header http.Header) bool {
	for i := range v.tags {
		if valueOf(&v.tags[i], header) != v.values[i] {
			return false
		}
	}
	return true
}

// valueOf returns what counts of the value of a tag: a header may be long.
func valueOf(tag *telemetry.Tag, header http.Header) string {
	value := tag.Value(header)
	return value[:min(len(value), workload.Longest)]
}

func (v *variant) touch(now int64) bool {
	for _, s := range v.of {
		if s != nil && !s.touch(now) {
			return false
		}
	}
	return true
}

// alter looks up or creates the series that count the metrics of s, and remembers them as a variant.
func (st *store) alter(s *series, side *telemetry.Side, header http.Header, now int64) *variant {
	st.mu.Lock()
	defer st.mu.Unlock()
	list := families[s.key&kinds]
	v := &variant{side: side, of: make([]*series, len(list))}
	full := false
	for i := range list {
		metric, changed := side.Metrics[list[i].name]
		for _, tag := range metric.Set {
			if tag.Header != "" {
				v.tags, v.values = append(v.tags, tag), append(v.values, strings.Clone(valueOf(&tag, header)))
			}
		}
		switch {
		case metric.Disabled:
		case !changed || len(metric.Remove) == 0 && len(metric.Set) == 0:
			v.of[i] = s
		default:
			if v.of[i] = st.alteredLocked(s, &list[i], &metric, header, now); v.of[i] == nil {
				full = true
			}
		}
	}
	if full {
		st.drop(isInbound(s))
		return v // not remembered: the next call tries again
	}
	kept := []*variant{v}
	if old := s.variants.Load(); old != nil {
		for _, o := range *old {
			if len(kept) < mostVariants && (o.side != side || !slices.Equal(o.values, v.values)) {
				kept = append(kept, o)
			}
		}
	}
	s.variants.Store(&kept)
	return v
}

func isInbound(s *series) bool {
	return slices.ContainsFunc(s.labels, func(l *dto.LabelPair) bool { return l.GetName() == "reporter" && l.GetValue() == "destination" })
}

// alteredLocked returns the series of one metric with labels that documents have changed, or nil if there is no room for it.
func (st *store) alteredLocked(s *series, f *family, metric *telemetry.Metric, header http.Header, now int64) *series {
	labels := slices.DeleteFunc(slices.Clone(s.labels), func(l *dto.LabelPair) bool {
		return slices.Contains(metric.Remove, l.GetName()) || slices.ContainsFunc(metric.Set, func(t telemetry.Tag) bool { return t.Name == l.GetName() })
	})
	for i := range metric.Set {
		value := cmp.Or(workload.Bounded(metric.Set[i].Value(header)), unknown)
		labels = append(labels, st.pairLocked(metric.Set[i].Name, strings.Clone(value)))
	}
	slices.SortFunc(labels, byName)
	key := alteredKey{f.name, keyOf(labels)}
	if found := st.altered[key]; found != nil && found.touch(now) {
		return found
	}
	if !st.roomLocked(now) {
		return nil
	}
	out := &series{key: s.key, labels: slices.Clip(labels)}
	out.used.Store(now)
	if f.count < 0 || s.hists != nil {
		out.hists = newHistograms(st.settings)
	}
	st.altered[key] = out
	st.count++
	return out
}

func byName(a, b *dto.LabelPair) int { return cmp.Compare(a.GetName(), b.GetName()) }

func keyOf(labels []*dto.LabelPair) string {
	var b strings.Builder
	for _, l := range labels {
		b.WriteString(l.GetName())
		b.WriteByte(0xff)
		b.WriteString(l.GetValue())
		b.WriteByte(0xff)
	}
	return b.String()
}

// sweepAlteredLocked removes the altered series that have expired.
func (st *store) sweepAlteredLocked(now, idle int64) {
	for key, s := range st.altered {
		if used := s.used.Load(); now-used > idle && s.used.CompareAndSwap(used, expired) {
			delete(st.altered, key)
			st.count--
		}
	}
}

// merged adds the altered series to the samples. An altered series may have the same labels as another one from before the documents
// changed; these become one sample.
func merged(all []*sample, altered map[alteredKey]*series) []*sample {
	if len(altered) == 0 {
		return all
	}
	known := make(map[alteredKey]*sample, len(all))
	for _, m := range all {
		known[alteredKey{m.family.name, keyOf(m.of[0].labels)}] = m
	}
	for key, s := range altered {
		list := families[s.key&kinds]
		i := slices.IndexFunc(list, func(f family) bool { return f.name == key.metric })
		if m := known[key]; m != nil {
			m.of = append(m.of, s)
		} else {
			all = append(all, &sample{&list[i], []*series{s}})
		}
	}
	return all
}
