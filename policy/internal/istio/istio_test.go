package istio_test

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// TestFields compares the fields that are declared with those of the custom resource definitions of istio.io/api
// v1.31.1, which testdata/fields.txt lists: none is missing, none is invented.
func TestFields(t *testing.T) {
	data, err := os.ReadFile("testdata/fields.txt")
	if err != nil {
		t.Fatal(err)
	}
	want := strings.Split(strings.TrimSpace(string(data)), "\n")
	var got []string
	for kind, of := range map[string]reflect.Type{
		"VirtualService":        reflect.TypeFor[istio.VirtualService](),
		"DestinationRule":       reflect.TypeFor[istio.DestinationRule](),
		"ServiceEntry":          reflect.TypeFor[istio.ServiceEntry](),
		"PeerAuthentication":    reflect.TypeFor[istio.PeerAuthentication](),
		"AuthorizationPolicy":   reflect.TypeFor[istio.AuthorizationPolicy](),
		"RequestAuthentication": reflect.TypeFor[istio.RequestAuthentication](),
		"Telemetry":             reflect.TypeFor[istio.Telemetry](),
	} {
		for _, f := range yamldoc.Fields(of) {
			if strings.HasPrefix(f.Path, "spec.") {
				got = append(got, kind+" "+f.Path)
			}
			if (f.State == yamldoc.Enforced) != (f.Reason == "") {
				t.Errorf("%s %s is %s, reason %q", kind, f.Path, f.State, f.Reason)
			}
		}
	}
	slices.Sort(got)
	for _, field := range want {
		if _, found := slices.BinarySearch(got, field); !found {
			t.Errorf("missing: %s", field)
		}
	}
	for _, field := range got {
		if _, found := slices.BinarySearch(want, field); !found {
			t.Errorf("not in the API: %s", field)
		}
	}
}

func TestResolve(t *testing.T) {
	tests := []struct{ host, want string }{
		{"reviews", "reviews.prod.svc.cluster.local"},
		{"Reviews", "reviews.prod.svc.cluster.local"},
		{"reviews.other", "reviews.other"},
		{"reviews.example.com.", "reviews.example.com"},
		{"*", "*"},
		{"*.example.com", "*.example.com"},
		{"10.0.0.7", "10.0.0.7"},
		{"2001:db8::1", "2001:db8::1"},
	}
	for _, tt := range tests {
		if got := istio.Resolve(tt.host, "prod", "cluster.local"); got != tt.want {
			t.Errorf("Resolve(%q) = %q, want %q", tt.host, got, tt.want)
		}
	}
}

func TestMatches(t *testing.T) {
	tests := []struct {
		host, other string
		want        bool
	}{
		{"a.com", "a.com", true},
		{"a.com", "b.com", false},
		{"*.a.com", "x.a.com", true},
		{"*.a.com", "x.y.a.com", true},
		{"*.a.com", "a.com", false},
		{"*a.com", "ba.com", true},
		{"*", "a.com", true},
		{"*.com", "*.a.com", true},
		{"*.a.com", "*.com", false},
	}
	for _, tt := range tests {
		if got := istio.Matches(tt.host, tt.other); got != tt.want {
			t.Errorf("Matches(%q, %q) = %v, want %v", tt.host, tt.other, got, tt.want)
		}
	}
}

func TestVisibleFrom(t *testing.T) {
	tests := []struct {
		name            string
		exportTo        []string
		visible, public bool
	}{
		{"by default", nil, true, true},
		{"to all", []string{"*"}, true, true},
		{"by name", []string{"x", "client"}, true, false},
		{"to its own", []string{"."}, false, false},
		{"to another", []string{"x"}, false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			visible, public := istio.VisibleFrom("client", "server", tt.exportTo)
			if visible != tt.visible || public != tt.public {
				t.Errorf("VisibleFrom = %v, %v, want %v, %v", visible, public, tt.visible, tt.public)
			}
		})
	}
	if visible, public := istio.VisibleFrom("client", "client", []string{"."}); !visible || public {
		t.Error("a private document is not seen in its own namespace")
	}
}
