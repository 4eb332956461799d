package discovery_test

import (
	"slices"
	"testing"

	"github.com/nosidecar/mesh/discovery"
)

func TestEndpoint_DialPort(t *testing.T) {
	several := discovery.Endpoint{
		Address: "10.0.0.1",
		Port:    9000,
		Ports:   []discovery.Port{{Name: "http", Number: 80, Target: 8080}, {Name: "grpc", Number: 90}},
	}
	only := several
	only.OnlyPorts = true
	for _, tt := range []struct {
		name     string
		endpoint discovery.Endpoint
		number   int
		want     int
	}{
		{"mapped", several, 80, 8080},
		{"mapped to itself", several, 90, 90},
		{"not mapped", several, 443, 9000},
		{"first", several, 0, 8080},
		{"own port", at("10.0.0.1", 9000), 80, 9000},
		{"the caller's", at("10.0.0.1", 0), 80, 80},
		{"nobody says", at("10.0.0.1", 0), 0, 0},
		{"mapped, and no other", only, 80, 8080},
		{"not mapped, and no other", only, 443, 0},
		{"first, and no other", only, 0, 8080},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.endpoint.DialPort(tt.number); got != tt.want {
				t.Errorf("DialPort(%d) = %d, want %d", tt.number, got, tt.want)
			}
		})
	}
}

func TestService_Names(t *testing.T) {
	remote := orders
	remote.Local = false
	for _, tt := range []struct {
		name    string
		service discovery.Service
		want    []string
	}{
		{"same namespace", orders, []string{"orders.shop.svc.cluster.local", "orders.shop.svc", "orders.shop", "orders"}},
		{"other namespace", remote, []string{"orders.shop.svc.cluster.local", "orders.shop.svc", "orders.shop"}},
		{"outside", discovery.Service{Host: "api.example.com"}, []string{"api.example.com"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.service.Names(); !slices.Equal(got, tt.want) {
				t.Errorf("Names() = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLocality_String(t *testing.T) {
	for want, l := range map[string]discovery.Locality{
		"":       {},
		"r":      {Region: "r"},
		"r/z":    {Region: "r", Zone: "z"},
		"r/z/s":  {Region: "r", Zone: "z", SubZone: "s"},
		"r//s":   {Region: "r", SubZone: "s"},
		"/z":     {Zone: "z"},
		"//s":    {SubZone: "s"},
		"a b/ c": {Region: "a b", Zone: " c"},
	} {
		if got := l.String(); got != want {
			t.Errorf("%#v.String() = %q, want %q", l, got, want)
		}
	}
}
