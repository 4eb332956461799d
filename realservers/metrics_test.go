package realservers

import (
	"encoding/json"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/realservers/servers"
	"github.com/nosidecar/mesh/tlsid"
)

// Two processes call each other over HTTP, gRPC and raw TCP, and a Prometheus scrapes them: every query of the dashboard and those of
// Istio's documentation return data, and the two ends of each call agree.
func TestPrometheus(t *testing.T) {
	leak.Check(t)
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		t.Fatal(err)
	}
	ca.RotateEvery = -1
	var all []addresses
	for _, service := range []string{"user-service", "order-service"} {
		dir := t.TempDir()
		if err := ca.WriteFiles(dir, "default", service); err != nil {
			t.Fatal(err)
		}
		all = append(all, startProcess(t, service, dir))
	}
	registry, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	jobs := map[string][]string{}
	for _, p := range all {
		jobs[p.Service] = []string{p.Control}
		post(t, p, "/registry", string(registry))
	}
	plaintext(t, all[0].HTTP)
	prometheus := servers.StartPrometheus(t, jobs, "")
	for range 3 { // rates need more than one value
		for _, p := range all {
			post(t, p, "/calls", "")
		}
	}

	some := func(s []servers.Sample) bool { return len(s) > 0 }
	for title, exprs := range dashboardQueries(t) {
		for _, expr := range exprs {
			if prometheus.Await(t, expr, some); t.Failed() {
				t.Fatalf("a query of the panel %q has no answer", title)
			}
		}
	}
	for _, expr := range []string{
		`istio_requests_total{destination_service="user-service.default.svc.cluster.local",response_code="200"}`,
		`istio_request_duration_milliseconds_bucket{destination_service="user-service.default.svc.cluster.local",le="100"}`,
		`rate(istio_requests_total[5m])`, `rate(istio_requests_total{response_code=~"5.."}[5m])`,
		`histogram_quantile(0.95, rate(istio_request_duration_milliseconds_bucket[5m]))`,
	} {
		prometheus.Await(t, expr, some)
	}
	bothEndsAgree(t, prometheus)
	for metric, want := range map[string]string{ // three rounds of five bytes each way, in both directions, seen from both ends
		"istio_tcp_connections_opened_total": "12", "istio_tcp_connections_closed_total": "12",
		"istio_tcp_sent_bytes_total": "60", "istio_tcp_received_bytes_total": "60",
	} {
		prometheus.Await(t, `sum(`+metric+`{request_protocol="tcp"})`, func(s []servers.Sample) bool { return len(s) == 1 && s[0].Value == want })
	}
}

// bothEndsAgree compares the series of calls that are neither retried nor end here. A destination knows of the source of a raw
// connection only what its certificate says.
func bothEndsAgree(t *testing.T, prometheus *servers.Prometheus) {
	t.Helper()
	const unknown = "source_workload source_version source_canonical_revision"
	for selector, ignored := range map[string]string{
		`istio_requests_total{request_protocol="http",response_code=~"200|404",destination_service=~"(user|order)-service.*",`: "",
		`istio_requests_total{request_protocol="grpc",`: "", `istio_tcp_connections_opened_total{`: unknown, `istio_tcp_received_bytes_total{`: unknown,
	} {
		side := func(reporter string) (series []string) {
			samples, err := prometheus.Query(selector + `reporter="` + reporter + `"}`)
			if err != nil {
				return []string{err.Error()}
			}
			for _, s := range samples {
				series = append(series, shared(s, ignored))
			}
			slices.Sort(series)
			return series
		}
		var source, destination []string
		if !await.Done(func() bool { // Prometheus sees the last values of one end before those of the other
			source, destination = side("source"), side("destination")
			return slices.Equal(source, destination) && len(source) >= 2
		}) {
			t.Errorf("%s...}: the sources say\n%s\nthe destinations\n%s", selector, strings.Join(source, "\n"), strings.Join(destination, "\n"))
		}
	}
}

// shared returns what both ends say of a call. The ports for gRPC and raw TCP have names of their own here, which only callers know.
func shared(s servers.Sample, ignored string) string {
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(s.Labels)) {
		if slices.Contains([]string{"reporter", "job", "instance"}, name) || slices.Contains(strings.Fields(ignored), name) {
			continue
		}
		value := s.Labels[name]
		if name == "destination_service" || name == "destination_service_name" {
			value = strings.TrimPrefix(strings.TrimPrefix(value, "grpc-"), "tcp-")
		}
		labels = append(labels, name+"="+value)
	}
	return strings.Join(labels, " ") + ": " + s.Value
}

// dashboardQueries returns the queries of each panel of the dashboard, with all its choices made.
func dashboardQueries(t *testing.T) map[string][]string {
	t.Helper()
	data, err := os.ReadFile("../dashboards/mesh.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(data, &dashboard); err != nil {
		t.Fatal(err)
	}
	replace := strings.NewReplacer("$job", ".*", "$destination", ".*", "$__rate_interval", "1m")
	queries := map[string][]string{}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			queries[p.Title] = append(queries[p.Title], replace.Replace(target.Expr))
		}
	}
	if len(queries) < 25 {
		t.Fatalf("%d panels have queries", len(queries))
	}
	return queries
}

// post asks a process for something.
func post(t *testing.T, p addresses, path, body string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+p.Control+path, "", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if text, _ := io.ReadAll(resp.Body); resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s: %s", p.Service, resp.Status, text)
	}
}

// plaintext has a process refuse a connection, since it comes without TLS.
func plaintext(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		return
	}
	_, _ = io.Copy(io.Discard, conn)
}
