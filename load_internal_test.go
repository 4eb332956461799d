package mesh

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/orca"
)

func TestLoadReports(t *testing.T) {
	full := func() float64 { return 0.75 }
	for _, test := range []struct {
		name   string
		config ServerConfig
		peer   string
		takes  time.Duration
		want   string // in flight, requests per second, errors per second; "" if nothing is reported
	}{
		{"off", ServerConfig{}, "web", 100 * time.Millisecond, ""},
		{"requests in flight", ServerConfig{ReportLoad: true}, "web", 100 * time.Millisecond, "1.0, 10, 5"},
		{"utilization", ServerConfig{ReportLoad: true, Utilization: full}, "web", 100 * time.Millisecond, "0.8, 10, 5"},
		{"no utilization", ServerConfig{ReportLoad: true, Utilization: func() float64 { return 0 }}, "web", 100 * time.Millisecond, ""},
		{"not a number", ServerConfig{ReportLoad: true, Utilization: math.NaN}, "web", 100 * time.Millisecond, ""},
		{"no identity", ServerConfig{ReportLoad: true}, "", 100 * time.Millisecond, ""},
		{"streams", ServerConfig{ReportLoad: true}, "web", 100 * time.Second, "0.1, 0, 0"},
	} {
		synctest.Test(t, func(t *testing.T) {
			var l loadCounter
			l.init(&test.config)
			for i := range 44 {
				began := time.Now()
				time.Sleep(test.takes)
				if l.on {
					l.ended(began, i%2 == 0)
				}
			}
			report, got := l.reportTo(test.peer), ""
			if report != nil {
				r, ok := orca.Decode(report.message)
				if text, same := orca.Take(map[string][]string{orca.Header: report.header}); !ok || !same || math.Abs(text.Requests-r.Requests) > 0.01 {
					t.Errorf("%s: the header is %q, the message says %v", test.name, report.header, r)
				}
				got = fmt.Sprintf("%.1f, %.0f, %.0f", r.Utilization, r.Requests, r.Errors)
			}
			if got != test.want {
				t.Errorf("%s: the report is %q, want %q", test.name, got, test.want)
			}
		})
	}
}

// TestReportsInTrailersOfHandlers: a gRPC answer with its status in the trailer gets the report there, however its handler sets trailers,
// unless the handler has set a report itself.
func TestReportsInTrailersOfHandlers(t *testing.T) {
	const prefix = http.TrailerPrefix
	l := loadCounter{on: true}
	l.latest.Store(&loadReport{trailer: []string{"report"}})
	for _, test := range []struct {
		name   string
		answer http.Header
		told   bool
	}{
		{"grpc-go", http.Header{"Trailer": {"Grpc-Status", "Grpc-Message"}, "Grpc-Status": {"0"}, prefix + "x-mine": {"1"}}, true},
		{"announced at once", http.Header{"Trailer": {"Grpc-Message, Grpc-Status"}, "Grpc-Status": {"0"}}, true},
		{"announced by nobody", http.Header{prefix + "Grpc-Status": {"0"}}, true},
		{"announced and not set", http.Header{"Trailer": {"Grpc-Status"}}, false},
		{"status in the header", http.Header{"Grpc-Status": {"5"}}, false},
		{"not gRPC", http.Header{"Content-Type": {"text/plain"}}, false},
		{"reported as grpc-go does", http.Header{prefix + "Grpc-Status": {"0"}, prefix + "endpoint-load-metrics-bin": {"x"}}, false},
		{"reported as net/http does", http.Header{"Trailer": {"Grpc-Status", orca.BinaryHeader}, "Grpc-Status": {"0"}, orca.BinaryHeader: {"x"}}, false},
		{"reported in the header", http.Header{prefix + "Grpc-Status": {"0"}, orca.Header: {"x"}}, false},
	} {
		want := maps.Clone(test.answer)
		if test.told {
			want[prefix+orca.BinaryHeader] = []string{"report"}
		}
		if l.tellAtEnd(test.answer, "web"); fmt.Sprint(test.answer) != fmt.Sprint(want) {
			t.Errorf("%s: the answer has %v, want %v", test.name, test.answer, want)
		}
	}
}
