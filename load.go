package mesh

import (
	"math"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/nosidecar/mesh/internal/orca"
	"github.com/nosidecar/mesh/internal/response"
)

const (
	// loadWindow is what a load report is about: the requests that ended in this time.
	loadWindow = time.Second

	// longestBusy is how long a request counts as being in flight at most: a longer one is probably a stream, which is idle.
	longestBusy = 10 * time.Second
)

// loadCounter makes the load reports of this process. It is idle unless on.
type loadCounter struct {
	on          bool
	utilization func() float64 // nil: requests in flight
	start       time.Time

	until                  atomic.Int64 // the end of the window, from start
	requests, failed, busy atomic.Int64 // in the window
	latest                 atomic.Pointer[loadReport]
}

// loadReport is a report as it is sent. It does not change.
type loadReport struct {
	header  []string
	message string
}

func (l *loadCounter) init(config *ServerConfig) {
	l.on, l.utilization, l.start = config.ReportLoad, config.Utilization, time.Now()
	l.until.Store(int64(loadWindow))
}

// reportTo returns the report for an answer to a peer, nil if there is none. A peer without an identity is not told.
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
		l.latest.Store(nil) // there is nothing to say
		return
	}
	l.latest.Store(&loadReport{[]string{r.String()}, r.Message()})
}

// watch adds the report to an answer and counts the request when end is called.
func (l *loadCounter) watch(w http.ResponseWriter, in *inbound) (watched http.ResponseWriter, end func()) {
	if report := l.reportTo(in.Peer); report != nil {
		w.Header()[orca.Header] = report.header
	}
	answer := new(response.Recorder)
	began := in.Start
	return answer.Watch(w), func() {
		p := recover()
		l.ended(began, p != nil || answer.Code() >= http.StatusInternalServerError)
		if p != nil {
			panic(p)
		}
	}
}
