// Package dashboards generates a dashboard for Grafana, mesh.json. It shows what Istio's dashboards do not show about a mesh. The file
// alerts.yaml has alert rules for Prometheus.
package dashboards

import (
	"encoding/json"
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	"github.com/grafana/grafana-foundation-sdk/go/common"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/table"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
)

// query is a query of a panel. It leads to one line or several.
type query struct{ expr, legend string }

// panel is a panel of a row.
type panel struct {
	title, help string
	unit        string // Grafana's name of the unit; "" for plain numbers
	queries     []query
	kind        kind
	bad         float64 // for an overview: the threshold of red; 0 means none
	minimum     bool    // for an overview: it is red below bad rather than above it
}

type kind int

const (
	lines kind = iota
	overview
	rows
)

// row has the panels about one subject.
type row struct {
	title  string
	panels []panel
}

// JSON returns the dashboard in the format that Grafana imports.
func JSON() ([]byte, error) {
	b := dashboard.NewDashboardBuilder("Mesh in-process").
		Uid("mesh-in-process").
		Description("What is in force in the processes of the mesh, and why calls fail. Istio's dashboards show the traffic.").
		Tags([]string{"mesh"}).
		Time("now-1h", "now").
		Refresh("30s").
		Tooltip(dashboard.DashboardCursorSyncCrosshair).
		Readonly().
		Timezone(common.TimeZoneBrowser).
		WithVariable(dashboard.NewDatasourceVariableBuilder("datasource").Label("Data source").Type("prometheus")).
		WithVariable(choice("job", "Job", `label_values(mesh_ready, job)`)).
		WithVariable(choice("destination", "Destination", `label_values(mesh_endpoints{job=~"$job"}, destination_service)`))
	for _, r := range content() {
		b = b.WithRow(dashboard.NewRowBuilder(r.title))
		for _, p := range r.panels {
			b = b.WithPanel(p.build())
		}
	}
	made, err := b.Build()
	if err != nil {
		return nil, fmt.Errorf("dashboards: %w", err)
	}
	text, err := json.MarshalIndent(made, "", "  ")
	return append(text, '\n'), err
}

func source() common.DataSourceRef {
	return common.DataSourceRef{Type: cog.ToPtr("prometheus"), Uid: cog.ToPtr("$datasource")}
}

// choice returns a variable that lets the reader select several values, or all.
func choice(name, label, values string) *dashboard.QueryVariableBuilder {
	return dashboard.NewQueryVariableBuilder(name).
		Label(label).
		Datasource(source()).
		Query(dashboard.StringOrMap{String: cog.ToPtr(values)}).
		Refresh(dashboard.VariableRefreshOnTimeRangeChanged).
		Sort(dashboard.VariableSortAlphabeticalAsc).
		Multi(true).IncludeAll(true).AllValue(".*").
		Current(dashboard.VariableOption{
			Text: dashboard.StringOrArrayOfString{String: cog.ToPtr("All")}, Value: dashboard.StringOrArrayOfString{String: cog.ToPtr("$__all")},
		})
}

func (p *panel) build() cog.Builder[dashboard.Panel] {
	switch p.kind {
	case overview:
		b := stat.NewPanelBuilder().Title(p.title).Description(p.help).Datasource(source()).Unit(p.unit).Height(4).Span(4).
			ColorMode(common.BigValueColorModeValue).
			ReduceOptions(common.NewReduceDataOptionsBuilder().Calcs([]string{"lastNotNull"})).
			Thresholds(p.thresholds())
		for _, t := range p.targets() {
			b = b.WithTarget(t)
		}
		return b
	case rows:
		b := table.NewPanelBuilder().Title(p.title).Description(p.help).Datasource(source()).Unit(p.unit).Height(8).Span(12)
		for _, t := range p.targets() {
			b = b.WithTarget(t.Instant().Format(prometheus.PromQueryFormatTable))
		}
		return b
	default:
		b := timeseries.NewPanelBuilder().Title(p.title).Description(p.help).Datasource(source()).Unit(p.unit).Height(8).Span(12).
			Min(0).LineWidth(1).FillOpacity(5).ShowPoints(common.VisibilityModeNever).
			Legend(common.NewVizLegendOptionsBuilder().ShowLegend(true).DisplayMode(common.LegendDisplayModeList).Placement(common.LegendPlacementBottom))
		for _, t := range p.targets() {
			b = b.WithTarget(t)
		}
		return b
	}
}

func (p *panel) targets() (all []*prometheus.DataqueryBuilder) {
	for i, q := range p.queries {
		all = append(all, prometheus.NewDataqueryBuilder().Expr(q.expr).LegendFormat(q.legend).RefId(string(rune('A'+i))).Datasource(source()))
	}
	return all
}

func (p *panel) thresholds() *dashboard.ThresholdsConfigBuilder {
	first, then := "green", "red"
	if p.minimum {
		first, then = then, first
	}
	steps := []dashboard.Threshold{{Color: first}}
	if p.bad != 0 {
		steps = append(steps, dashboard.Threshold{Color: then, Value: &p.bad})
	}
	return dashboard.NewThresholdsConfigBuilder().Mode(dashboard.ThresholdsModeAbsolute).Steps(steps)
}
