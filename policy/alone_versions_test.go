package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/internal/jwttest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// TestAlone_TwoVersionsOfOneAuthentication: of two versions of one PeerAuthentication or RequestAuthentication, the stricter one counts, whatever
// their order, or the one that was in force before. If neither is known, everything is denied.
func TestAlone_TwoVersionsOfOneAuthentication(t *testing.T) {
	feeds := func(kind string, specs ...string) (sources []policy.Source) {
		for i, spec := range specs {
			source := object{kind: kind, name: "x", uid: 1, spec: spec}.source()
			source.Name = fmt.Sprintf("feed%d", i+1)
			sources = append(sources, source)
		}
		return sources
	}
	mtls := func(mode string, ports ...string) string {
		spec := "{selector: {matchLabels: {app: web}}, mtls: {mode: " + mode + "}"
		if len(ports) > 0 {
			spec += ", portLevelMtls: {" + strings.Join(ports, ", ") + "}"
		}
		return spec + "}"
	}
	const strict, permissive, disabled = "80: {mode: STRICT}", "80: {mode: PERMISSIVE}", "80: {mode: DISABLE}"
	for _, test := range []struct {
		name, one, two string
		strict         bool // port 80; otherwise everything is denied
	}{
		{"STRICT and PERMISSIVE", mtls("STRICT"), mtls("PERMISSIVE"), true},
		{"STRICT and DISABLE", mtls("STRICT"), mtls("DISABLE"), true},
		{"STRICT and UNSET", mtls("STRICT"), mtls("UNSET"), true},
		{"STRICT and nothing", mtls("STRICT"), "{selector: {matchLabels: {app: web}}}", true},
		{"one port", mtls("PERMISSIVE", strict), mtls("PERMISSIVE", permissive), true},
		{"all ports and one", mtls("STRICT"), mtls("PERMISSIVE", strict), true},
		{"each at another port", mtls("STRICT", permissive), mtls("PERMISSIVE", strict), false},
		{"PERMISSIVE and DISABLE", mtls("PERMISSIVE", permissive), mtls("PERMISSIVE", disabled), false},
		{"PERMISSIVE and UNSET", mtls("PERMISSIVE"), mtls("UNSET"), false},
		{"other workloads", mtls("STRICT"), "{selector: {matchLabels: {app: other}}, mtls: {mode: STRICT}}", false},
		{"all workloads", mtls("STRICT"), "{mtls: {mode: STRICT}}", false},
	} {
		for _, order := range [][]string{{test.one, test.two}, {test.two, test.one}} {
			t.Run(test.name, func(t *testing.T) {
				f := newFeed(t)
				for range 2 {
					f.takes(feeds("PeerAuthentication", order...)...)
					if !test.strict {
						f.denies("PeerAuthentication shop/x")
						continue
					}
					f.refused("PeerAuthentication shop/x: nothing")
					f.says("PeerAuthentication shop/x is there in another version, too, in feed")
					f.says("which is stricter and counts")
					if mode := f.plan.Inbound().Mode(80); mode != tlsid.Strict {
						t.Errorf("the mode is %v", mode)
					}
				}
			})
		}
	}

	rule := func(issuer string) string {
		return "{jwtRules: [{issuer: " + issuer + ", jwks: '" + jwttest.KeySet(jwttest.New("k")) + "'}]}"
	}
	for kind, specs := range map[string][3]string{
		"PeerAuthentication":    {mtls("PERMISSIVE", permissive), mtls("PERMISSIVE", disabled), mtls("UNSET")},
		"RequestAuthentication": {rule("a"), rule("b"), rule("c")},
	} {
		t.Run(kind, func(t *testing.T) {
			before, changed, other := specs[0], specs[1], specs[2]
			f := newFeed(t)
			f.takes(feeds(kind, before, changed)...)
			f.denies(kind + " shop/x")
			f.says("is there in another version, too, in feed1")
			f.takes(feeds(kind, before, before)...)
			f.allows("/")
			for _, order := range [][]string{{before, changed}, {changed, before}} {
				f.takes(feeds(kind, order...)...)
				f.allows("/")
				f.refused(kind + " shop/x: nothing")
				f.says("which was in force before and counts")
			}
			f.takes(feeds(kind, changed, other)...) // the version from before is still the last good one
			f.allows("/")
			f.takes(feeds(kind, changed, changed)...)
			f.allows("/")
			f.takes(feeds(kind, before, changed)...)
			f.says("which was in force before and counts")
		})
	}
}
