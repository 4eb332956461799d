package route_test

import (
	"testing"

	"github.com/nosidecar/mesh/policy/route"
)

func TestTargetString(t *testing.T) {
	for want, target := range map[string]route.Target{
		"web": {Host: "web"}, "web:80": {Host: "web", Port: 80}, "web subset v2": {Host: "web", Subset: "v2"},
		"web:80 subset v2": {Host: "web", Port: 80, Subset: "v2"},
	} {
		if got := target.String(); got != want {
			t.Errorf("%+v is %q, want %q", target, got, want)
		}
	}
}
