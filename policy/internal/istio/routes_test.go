package istio_test

import (
	"math"
	"net/http"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nosidecar/mesh/balancer"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/yamldoc"
	"github.com/nosidecar/mesh/policy/internal/istio"
	"github.com/nosidecar/mesh/policy/route"
	"github.com/nosidecar/mesh/retry"
)

// TestRetries compares what retries come to with what Istio says they mean.
func TestRetries(t *testing.T) {
	on := func(list string) retry.On {
		o, err := retry.ParseOn(list)
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
	const byDefault = "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
	tests := []struct {
		name, retries string
		want          retry.Config
	}{
		{"none means the default of the mesh", "", retry.Config{Retries: 2, On: on(byDefault)}},
		{"attempts 0 turns them off", "retries: {attempts: 0}", retry.Config{}},
		{"empty turns them off", "retries: {}", retry.Config{}},
		{"attempts beyond the first", "retries: {attempts: 3}", retry.Config{Retries: 3, On: on(byDefault)}},
		{"all fields", "retries: {attempts: 1, perTryTimeout: 2s, retryOn: '5xx,429', backoff: 50ms}",
			retry.Config{Retries: 1, On: on("5xx,429"), PerTryTimeout: 2 * time.Second, Backoff: 50 * time.Millisecond}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all, _ := services(t, document("ns/a", "hosts: [a], ", "{route: [{destination: {host: a}}], "+tt.retries+"}"))
			if tt.want.Retries > 0 { // Envoy looks at none of these
				tt.want.MaxRetryAfter, tt.want.AnyMethod, tt.want.NestedRetries = -1, true, true
			}
			if got := all["ns/a"].Routes(istio.Client{})[0].Retry; !got.Equal(tt.want) {
				t.Errorf("Retry = %+v, want %+v", got, tt.want)
			}
		})
	}
	if got := istio.DefaultRetry(); got.Retries != 2 || got.On != on(byDefault) {
		t.Errorf("DefaultRetry() = %+v", got)
	}
}

// TestHeaderMatches sends requests with and without a header through the forms that a match of it can have.
func TestHeaderMatches(t *testing.T) {
	absent, empty, a, b := http.Header{}, http.Header{"X": {""}}, http.Header{"X": {"a"}}, http.Header{"X": {"a", "b"}}
	tests := []struct {
		match                string
		absent, empty, a, ab bool
	}{
		{"headers: {x: {}}", false, true, true, true},
		{"headers: {x: {exact: ''}}", false, true, false, false},
		{"headers: {x: {exact: a}}", false, false, true, false},
		{"headers: {x: {exact: 'a,b'}}", false, false, false, true},
		{"headers: {X: {prefix: a}}", false, false, true, true},
		{"headers: {x: {regex: '.*'}}", false, true, true, true},
		{"headers: {x: {regex: 'a'}}", false, false, true, false}, // the whole value
		{"withoutHeaders: {x: {}}", true, false, false, false},
		{"withoutHeaders: {x: {regex: '*'}}", true, false, false, false},
		{"withoutHeaders: {x: {exact: a}}", true, true, false, true},
		{"withoutHeaders: {x: {exact: ''}}", false, false, true, true},
		{"withoutHeaders: {x: {regex: '.*'}}", false, false, false, false},
		{"withoutHeaders: {x: {regex: '.+'}}", true, true, false, false},
		{"withoutHeaders: {x: {prefix: a}}", true, true, false, false},
	}
	for _, tt := range tests {
		all, docs := services(t, document("ns/a", "hosts: [a], ", "{match: [{"+tt.match+"}], route: [{destination: {host: a}}]}"))
		table := all["ns/a"].Table(docs["ns/a"], istio.Client{})
		if table == nil {
			t.Fatal(docs["ns/a"].Problems)
		}
		for _, c := range []struct {
			header http.Header
			want   bool
		}{{absent, tt.absent}, {empty, tt.empty}, {a, tt.a}, {b, tt.ab}} {
			req := route.Request{Method: "GET", Scheme: "http", Authority: "a", Path: "/", Header: c.header, Port: 80}
			if entry, _, _ := table.Match(&req); (entry != nil) != c.want {
				t.Errorf("%s: %v matches: %v, want %v", tt.match, c.header, entry != nil, c.want)
			}
		}
	}
}

// TestMirrorPercent checks the shares in all the spellings that documents have had.
func TestMirrorPercent(t *testing.T) {
	for share, want := range map[string]float64{
		"":                             1_000_000,
		"mirrorPercentage: {value: 5}": 50_000,
		"mirrorPercentage: {value: 5}, mirrorPercent: 50": 50_000,
		"mirrorPercent: 50":  500_000,
		"mirror_percent: 50": 500_000,
	} {
		all, _ := services(t, document("ns/a", "hosts: [a], ", "{route: [{destination: {host: a}}], mirror: {host: b}, "+share+"}"))
		if got := all["ns/a"].Routes(istio.Client{})[0].Mirrors; len(got) != 1 || math.Round(got[0].Fraction*1e6) != want {
			t.Errorf("%s: mirrors = %+v, want %v per million", share, got, want)
		}
	}
	all, _ := services(t, document("ns/a", "hosts: [a], ", "{route: [{destination: {host: a}}], mirror: {host: b}, mirrorPercent: 0}"))
	if got := all["ns/a"].Routes(istio.Client{})[0].Mirrors; got != nil {
		t.Errorf("mirrors of 0%% = %+v, want none", got)
	}
}

// TestFaultFraction checks that a percentage is taken to a millionth, and cut off after it as Istio does.
func TestFaultFraction(t *testing.T) {
	for percentage, want := range map[string]float64{
		"0":        0,
		"0.1":      1000, // a tenth of a percent, not ten percent
		"0.01":     100,
		"0.57":     5699, // as a float64 it is 5699.999...
		"0.29":     2900,
		"0.0001":   1,
		"10":       100_000,
		"99.99999": 999_999,
		"100":      1_000_000,
	} {
		all, _ := services(t, document("ns/a", "hosts: [a], ", "{route: [{destination: {host: a}}], fault: {"+
			"delay: {percentage: {value: "+percentage+"}, fixedDelay: 1s}, abort: {percentage: {value: "+percentage+"}, httpStatus: 503}}}"))
		f := all["ns/a"].Routes(istio.Client{})[0].Fault
		if f.Delay.Fraction != want/1e6 || f.Abort.Fraction != want/1e6 {
			t.Errorf("%s%%: delay %v, abort %v, want %v millionths", percentage, f.Delay.Fraction, f.Abort.Fraction, want)
		}
	}
}

// TestFaultPercent checks that a share above 100 counts as that.
func TestFaultPercent(t *testing.T) {
	all, _ := services(t, document("ns/a", "hosts: [a], ", "{route: [{destination: {host: a}}], fault: {delay: {fixedDelay: 1s, percent: 150}}}"))
	if got := all["ns/a"].Routes(istio.Client{})[0].Fault.Delay.Fraction; got != 1 {
		t.Errorf("Fraction = %v, want 1", got)
	}
}

// TestSettings_Extremes checks values that Istio takes although they say little.
func TestSettings_Extremes(t *testing.T) {
	doc := yamldoc.Parse([]byte(`
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: x}
spec:
  host: a
  trafficPolicy:
    outlierDetection: {consecutiveErrors: -1, consecutiveGatewayErrors: 4294967295}
    connectionPool: {tcp: {tcpKeepalive: {probes: 4294967295}}}
    retryBudget: {minRetryConcurrency: 4294967295}
    loadBalancer: {consistentHash: {httpCookie: {name: c, ttl: 900ms}}}
`))[0][0]
	var dr istio.DestinationRule
	if new(yamldoc.Decoder).Decode(doc, &dr) {
		dr.Check(doc)
	}
	if doc.Failed() {
		t.Fatal(doc.Problems)
	}
	s := dr.Spec.TrafficPolicy.Settings(discovery.Locality{}, nil)
	if s.Outlier.Consecutive5xx != 0 || s.Outlier.ConsecutiveGateway != math.MaxInt32 {
		t.Errorf("Outlier = %+v", s.Outlier)
	}
	if s.Pool.Keepalive.Probes != math.MaxInt32 || s.RetryLimit.MinConcurrency != math.MaxInt32 {
		t.Errorf("Pool = %+v, RetryLimit = %+v", s.Pool, s.RetryLimit)
	}
	if key := s.Balancer.HashKey; !key.Generate || key.TTL != 0 {
		t.Errorf("HashKey = %+v, want a cookie for the session", key)
	}
}

func TestVirtualService_Applies(t *testing.T) {
	client := istio.Client{Namespace: "ns", Labels: map[string]string{"app": "a"}}
	tests := []struct {
		name, match string
		port        int
		want        bool
	}{
		{"no match", "[]", 80, true},
		{"empty match", "[{}]", 80, true},
		{"a path", "[{uri: {exact: /never}}]", 80, true},
		{"its port", "[{port: 80}]", 80, true},
		{"another port", "[{port: 81}]", 80, false},
		{"any port", "[{port: 81}]", 0, true},
		{"no port", "[{port: 0}]", 80, true},
		{"one of two ports", "[{port: 81}, {port: 80}]", 80, true},
		{"its labels", "[{sourceLabels: {app: a}}]", 80, true},
		{"other labels", "[{sourceLabels: {app: b}}]", 80, false},
		{"its namespace", "[{sourceNamespace: ns}]", 80, true},
		{"another namespace", "[{sourceNamespace: other}]", 80, false},
		{"a gateway", "[{gateways: [g]}]", 80, false},
		{"the mesh, whatever the labels", "[{gateways: [g, mesh], sourceLabels: {app: b}, sourceNamespace: other}]", 80, true},
		{"its labels at another port", "[{sourceLabels: {app: a}, port: 81}, {sourceLabels: {app: b}}]", 80, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all, _ := services(t, document("ns/a", "hosts: [a], ", "{match: "+tt.match+", route: [{destination: {host: a}}]}"))
			if got := all["ns/a"].Applies(client, tt.port); got != tt.want {
				t.Errorf("Applies = %v, want %v", got, tt.want)
			}
		})
	}
}

// TestVirtualService_Destinations: routes that are only for gateways lead nowhere here.
func TestVirtualService_Destinations(t *testing.T) {
	all, _ := services(t, document("ns/a", "hosts: [a], ", `
		{match: [{gateways: [g]}], route: [{destination: {host: hidden}}]},
		{match: [{gateways: [g, mesh]}], route: [{destination: {host: b}}, {destination: {host: c}, weight: 1}], mirror: {host: d}},
		{route: [{destination: {host: e}}], mirrors: [{destination: {host: f}}]}`))
	var got []string
	for d, at := range all["ns/a"].Destinations() {
		got = append(got, d.Host+" "+at)
	}
	want := []string{"b spec.http[1].route[0].destination", "c spec.http[1].route[1].destination", "d spec.http[1].mirror",
		"e spec.http[2].route[0].destination", "f spec.http[2].mirrors[0].destination"}
	if !slices.Equal(got, want) {
		t.Errorf("Destinations yields %q, want %q", got, want)
	}
}

func TestHTTPRoute_Ports(t *testing.T) {
	for match, want := range map[string][]int{
		"[]":                                nil,
		"[{port: 80}, {port: 81}]":          {80, 81},
		"[{port: 80}, {port: 0}]":           nil,
		"[{port: 80}, {uri: {prefix: /a}}]": nil,
	} {
		all, _ := services(t, document("ns/a", "hosts: [a], ", "{match: "+match+", route: [{destination: {host: a}}]}"))
		if got := all["ns/a"].Spec.HTTP[0].Ports(); !slices.Equal(got, want) {
			t.Errorf("Ports of %s = %v, want %v", match, got, want)
		}
	}
}

// TestFaultPercentage: the newer of the two fields counts.
func TestFaultPercentage(t *testing.T) {
	all, _ := services(t, document("ns/a", "hosts: [a], ", "{route: [{destination: {host: a}}], fault: {delay: {fixedDelay: 1s, percent: 50, percentage: {value: 5}}}}"))
	if got := all["ns/a"].Routes(istio.Client{})[0].Fault.Delay.Fraction; got != 0.05 {
		t.Errorf("fraction = %v, want 0.05", got)
	}
}

// TestFailoverPriority: the first label that the caller lacks ends the comparison, and without any there is no preference.
func TestFailoverPriority(t *testing.T) {
	own := discovery.Locality{Region: "eu"}
	for priority, want := range map[string]balancer.Locality{
		"[missing, app]":         {},
		"[app, missing, zone=x]": {Enabled: true, Own: own, FailoverPriority: []balancer.Label{{Name: "app", Value: "a"}}},
		"[topology.kubernetes.io/region, zone=x]": {Enabled: true, Own: own,
			FailoverPriority: []balancer.Label{{Name: "topology.kubernetes.io/region", Value: "eu"}, {Name: "zone", Value: "x"}}},
	} {
		doc := yamldoc.Parse([]byte("apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a, trafficPolicy: " +
			"{outlierDetection: {}, loadBalancer: {localityLbSetting: {failoverPriority: " + priority + "}}}}"))[0][0]
		var dr istio.DestinationRule
		if new(yamldoc.Decoder).Decode(doc, &dr) {
			dr.Check(doc)
		}
		if doc.Failed() {
			t.Fatal(doc.Problems)
		}
		if got := dr.Spec.TrafficPolicy.Settings(own, map[string]string{"app": "a"}).Balancer.Locality; !reflect.DeepEqual(got, want) {
			t.Errorf("locality of %s = %+v, want %+v", priority, got, want)
		}
	}
}
