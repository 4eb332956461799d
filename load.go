package mesh

import (
	"encoding/base64"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/failure"
	"github.com/nosidecar/mesh/internal/orca"
)

const (
	// loadWindow is the time that a load report covers, at least.
	loadWindow = time.Second

	// longestBusy is the longest time for which a request counts as in flight. A longer request is probably an idle stream.
	longestBusy = 10 * time.Second
)

// loadCounter makes the load reports of this process. It does nothing unless on is set.
type loadCounter struct {
	on          bool
	utilization func() float64 // nil: requests in flight
	start       time.Time

	until                  atomic.Int64 // the end of the window, in nanoseconds from start
	requests, failed, busy atomic.Int64 // in the window
	latest                 atomic.Pointer[loadReport]
}

// loadReport is a report as it is sent. It is never changed.
type loadReport struct {
	header  []string
	message string   // for the metadata of gRPC
	trailer []string // the message as net/http sends it
}

func (l *loadCounter) init(config *ServerConfig) {
	l.on, l.utilization, l.start = config.ReportLoad, config.Utilization, time.Now()
	l.until.Store(int64(loadWindow))
}

// reportTo returns the report for an answer to a peer, or nil if there is none. A peer without an identity gets no report.
func (l *loadCounter) reportTo(peer string) *loadReport {
	if !l.on || peer == "" {
		return nil
	}
	return l.latest.Load()
}

// ended counts a request whose handler has returned.
func (l *loadCounter) ended(began time.Time, failed bool) {
	now := time.Now()
	l.requests.Add(1)
	l.busy.Add(int64(min(now.Sub(began), longestBusy)))
	if failed {
		l.failed.Add(1)
	}
	at, until := int64(now.Sub(l.start)), l.until.Load()
	if at < until || !l.until.CompareAndSwap(until, at+int64(loadWindow)) {
		return
	}
	seconds := time.Duration(at - until + int64(loadWindow)).Seconds()
	r := orca.Report{
		Requests:    float64(l.requests.Swap(0)) / seconds,
		Errors:      float64(l.failed.Swap(0)) / seconds,
		Utilization: time.Duration(l.busy.Swap(0)).Seconds() / seconds,
	}
	if l.utilization != nil {
		r.Utilization = l.utilization()
	}
	if !(r.Utilization > 0 && r.Utilization <= math.MaxFloat32) {
		l.latest.Store(nil) // there is nothing to report
		return
	}
	message := r.Message()
	l.latest.Store(&loadReport{[]string{r.String()}, message, []string{base64.RawStdEncoding.EncodeToString([]byte(message))}})
}

// count counts a request for the load report. It is called after release, because Utilization may panic. Requests that were
// refused, or were ended because they are no longer allowed, do not count: they do not show how long requests take.
func (in *inbound) count(failed bool) {
	if loads := &in.mesh.server.loads; loads.on && in.begun && in.Decision.Allowed {
		loads.ended(in.Start, failed)
	}
}

// failed reports whether the answer of an HTTP handler that has returned says that the request failed.
func (in *inbound) failed(answer http.Header, gRPC bool) bool {
	status := in.recorder.Code()
	if gRPC {
		status = failure.GRPCStatus(uint32(failure.GRPCAnswer(status, answer)))
	}
	return status >= http.StatusInternalServerError
}

// tell adds the report to the header of an answer.
func (l *loadCounter) tell(h http.Header, peer string) {
	if report := l.reportTo(peer); report != nil {
		h[orca.Header] = report.header
	}
}

// tellAtEnd adds the report to the trailer of a gRPC answer whose handler has returned, unless the handler has set a report itself. An
// answer with the status in its header cannot have a trailer.
func (l *loadCounter) tellAtEnd(h http.Header, peer string) {
	report := l.reportTo(peer)
	if report == nil || h[orca.Header] != nil || h[orca.BinaryHeader] != nil {
		return
	}
	if setsTrailer(h, "Grpc-Status") && !setsTrailer(h, orca.BinaryHeader) {
		h[http.TrailerPrefix+orca.BinaryHeader] = report.trailer
	}
}

// setsTrailer reports whether a handler has set a trailer, in one of the two ways of net/http.
func setsTrailer(h http.Header, name string) bool {
	if len(h[name]) > 0 {
		for _, declared := range h["Trailer"] {
			for declared := range strings.SplitSeq(declared, ",") {
				if strings.EqualFold(strings.TrimSpace(declared), name) {
					return true
				}
			}
		}
	}
	for key := range h { // grpc-go does not write names as net/http does
		if key, ok := strings.CutPrefix(key, http.TrailerPrefix); ok && strings.EqualFold(key, name) {
			return true
		}
	}
	return false
}
