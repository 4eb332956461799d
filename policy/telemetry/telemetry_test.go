package telemetry_test

import (
	"net/http"
	"testing"

	"github.com/nosidecar/mesh/policy/telemetry"
)

func TestNothingIsSaid(t *testing.T) {
	var s *telemetry.Settings
	for _, side := range []*telemetry.Side{s.Client(), s.Server()} {
		if side.Tracing.Disabled || side.Tracing.LimitsSampling || !side.Log.Keeps(nil) || side.Metrics != nil {
			t.Errorf("%+v", side)
		}
	}
}

func TestSides(t *testing.T) {
	s := telemetry.New(telemetry.Side{Log: telemetry.AccessLog{Disabled: true}}, telemetry.Side{})
	if s.Client().Log.Keeps(nil) || !s.Server().Log.Keeps(nil) {
		t.Error("the sides are mixed up")
	}
}

type filter bool

func (f filter) Keeps(telemetry.Attributes) bool { return bool(f) }

func TestFilters(t *testing.T) {
	for _, tt := range []struct {
		log  telemetry.AccessLog
		want bool
	}{
		{telemetry.AccessLog{}, true},
		{telemetry.AccessLog{Disabled: true}, false},
		{telemetry.AccessLog{Filters: []telemetry.Filter{filter(false)}}, false},
		{telemetry.AccessLog{Filters: []telemetry.Filter{filter(false), filter(true)}}, true},
		{telemetry.AccessLog{Disabled: true, Filters: []telemetry.Filter{filter(true)}}, false},
	} {
		if got := tt.log.Keeps(nil); got != tt.want {
			t.Errorf("%+v: %t, want %t", tt.log, got, tt.want)
		}
	}
}

func TestTags(t *testing.T) {
	header := http.Header{"X-Tenant": {"blue", "red"}}
	for _, tt := range []struct {
		tag  telemetry.Tag
		want string
	}{
		{telemetry.Tag{Name: "a", Text: "b"}, "b"},
		{telemetry.Tag{Name: "a", Header: "X-Tenant"}, "blue"},
		{telemetry.Tag{Name: "a", Header: "X-Other", Text: "b"}, "b"},
		{telemetry.Tag{Name: "a", Header: "X-Other"}, ""},
	} {
		if got := tt.tag.Value(header); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.tag, got, tt.want)
		}
	}
}
