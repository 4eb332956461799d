// Command metrics-otlp pushes the metrics of a mesh by OTLP, for those who do not scrape: the same metrics, with the same names and
// labels, by the bridge of OpenTelemetry for Prometheus.
//
// It sends them to the collector that OTEL_EXPORTER_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_METRICS_ENDPOINT names, otherwise to its own
// collector, which prints what it receives.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/metrics"
	"github.com/prometheus/client_golang/prometheus"
	bridge "go.opentelemetry.io/contrib/bridges/prometheus"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetrichttp"
	sdk "go.opentelemetry.io/otel/sdk/metric"
	collector "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	otlp "go.opentelemetry.io/proto/otlp/metrics/v1"
	"google.golang.org/protobuf/proto"
)

func main() {
	if err := run(context.Background(), os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer) error {
	options := []otlpmetrichttp.Option{}
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT") == "" {
		printing := httptest.NewServer(&printer{out: out})
		defer printing.Close()
		options = append(options, otlpmetrichttp.WithEndpointURL(printing.URL+"/v1/metrics"))
	}
	exporter, err := otlpmetrichttp.New(ctx, options...)
	if err != nil {
		return err
	}

	// The registry is read every ten seconds, and once more at the end.
	registry := prometheus.NewRegistry()
	producer := bridge.NewMetricProducer(bridge.WithGatherer(registry))
	reader := sdk.NewPeriodicReader(exporter, sdk.WithProducer(producer), sdk.WithInterval(10*time.Second))
	provider := sdk.NewMeterProvider(sdk.WithReader(reader))

	m, err := calls(ctx, registry)
	if m != nil {
		defer m.Close() // after its state was sent for the last time
	}
	return errors.Join(err, provider.Shutdown(ctx))
}

// calls makes some calls through a mesh, whose metrics are in the registry.
func calls(ctx context.Context, registry *prometheus.Registry) (*mesh.Mesh, error) {
	recorded, err := metrics.New(metrics.Config{Registerer: registry, Name: "web"})
	if err != nil {
		return nil, err
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/lost" {
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	address, err := url.Parse(server.URL)
	if err != nil {
		return nil, err
	}
	port, err := strconv.Atoi(address.Port())
	if err != nil {
		return nil, err
	}
	m, err := mesh.New(ctx, mesh.WithObserver(recorded.Observer()), mesh.WithDiscovery(discovery.Static{
		"orders": {{Address: address.Hostname(), Port: port, Labels: map[string]string{"app": "orders"}}},
	}))
	if err != nil {
		return nil, err
	}
	for _, path := range []string{"/1", "/2", "/3", "/lost"} {
		resp, err := m.Client().Get("http://orders" + path)
		if err != nil {
			return m, err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			return m, err
		}
	}
	// The mesh stays open until the end of the program, as does its state in the metrics.
	return m, nil
}

// printer is a collector that prints what it gets.
type printer struct {
	mu  sync.Mutex
	out io.Writer
}

// ServeHTTP implements http.Handler.
func (p *printer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	data, err := io.ReadAll(r.Body)
	var request collector.ExportMetricsServiceRequest
	if err == nil {
		err = proto.Unmarshal(data, &request)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, resource := range request.ResourceMetrics {
		for _, scope := range resource.ScopeMetrics {
			for _, metric := range scope.Metrics {
				p.print(metric)
			}
		}
	}
}

func (p *printer) print(m *otlp.Metric) {
	var lines []string
	line := func(labels []*common.KeyValue, format string, v ...any) {
		lines = append(lines, m.Name+chosen(labels)+" "+fmt.Sprintf(format, v...))
	}
	for _, point := range slices.Concat(m.GetSum().GetDataPoints(), m.GetGauge().GetDataPoints()) {
		line(point.Attributes, "%v", point.GetAsDouble())
	}
	for _, point := range m.GetHistogram().GetDataPoints() {
		line(point.Attributes, "count %d", point.Count)
	}
	slices.Sort(lines)
	for _, l := range lines {
		fmt.Fprintln(p.out, l)
	}
}

// chosen returns a few of the labels: there are 25.
func chosen(labels []*common.KeyValue) string {
	var out []string
	for _, l := range labels {
		if l.Key == "destination_service_name" || l.Key == "response_code" || l.Key == "result" {
			out = append(out, l.Key+"="+l.Value.GetStringValue())
		}
	}
	slices.Sort(out)
	return "{" + strings.Join(out, ", ") + "}"
}
