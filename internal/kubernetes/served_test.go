package kubernetes_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
)

// A kind that is served only in versions which nobody knew is there all the same: whoever reads its documents refuses them.
func TestServed_ChoosesVersions(t *testing.T) {
	of := func(version, plural, kind string) kubernetes.Resource {
		return kubernetes.Resource{Group: "mesh.example.com", Version: version, Plural: plural, Kind: kind}
	}
	routes, newer := of("v1", "routes", "Route"), of("v2", "routes", "Route")
	for _, test := range []struct {
		name   string
		kind   kubernetes.Kind
		served []kubernetes.Resource
		want   string // the version; "" for none
	}{
		{"the preferred one", kubernetes.Kind{Name: "Route", Versions: []string{"v2", "v1"}}, []kubernetes.Resource{routes, newer}, "v2"},
		{"the one that is known", kubernetes.Kind{Name: "Route", Versions: []string{"v1"}}, []kubernetes.Resource{routes, newer}, "v1"},
		{"one that is not known", kubernetes.Kind{Name: "Route", Versions: []string{"v1"}}, []kubernetes.Resource{newer}, "v2"},
		{"any", kubernetes.Kind{Name: "Route"}, []kubernetes.Resource{newer}, "v2"},
		{"with a plural", kubernetes.Kind{Name: "Route", Plural: "routes"}, []kubernetes.Resource{newer}, "v2"},
		{"with another plural", kubernetes.Kind{Name: "Route", Plural: "routen"}, []kubernetes.Resource{newer}, ""},
		{"another kind", kubernetes.Kind{Name: "Gate"}, []kubernetes.Resource{newer}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				client := kubetest.New(test.served...).Memory(t)
				defer client.CloseIdleConnections()
				var got []string
				for resources, err := range (kubernetes.Served{Client: client, Group: "mesh.example.com", Kinds: []kubernetes.Kind{test.kind}}).All(ctx) {
					if err != nil {
						t.Fatal(err)
					}
					for _, r := range resources {
						got = append(got, r.Version)
						if r.Plural != "routes" {
							t.Errorf("read at %q, want routes", r.Plural)
						}
					}
					break
				}
				if want := slices.DeleteFunc([]string{test.want}, func(s string) bool { return s == "" }); !slices.Equal(got, want) {
					t.Errorf("chosen: %q, want %q", got, want)
				}
			})
		})
	}
}
