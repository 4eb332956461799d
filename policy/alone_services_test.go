package policy_test

import (
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy/route"
)

// TestAlone_ServiceWithoutItsAnnotations: annotations that cannot be enforced take the settings away, not the ports by which the Service is reached.
func TestAlone_ServiceWithoutItsAnnotations(t *testing.T) {
	const good, bad = "balancer.linkerd.io/failure-accrual: consecutive", "balancer.linkerd.io/failure-accrual: consecutive, timeout.linkerd.io/response: 3s"
	service := func(annotations, ports string) object {
		return object{kind: "Service of v1", name: "api", annotations: annotations, spec: "{ports: [" + ports + "]}"}
	}
	const web, grpc, wrong = "{name: http, port: 80}", "{name: grpc, port: 80}", "{name: grpc, port: 80, protocol: HTTP}"
	f := newFeed(t)
	at := func(when string, http2, accrues bool) {
		t.Helper()
		c := f.plan.Cluster(route.Target{Host: "api.shop.svc.cluster.local", Port: 80})
		if c.UpgradeHTTP2 != http2 || (c.Accrual.Failures == 7 && c.Accrual.Min == time.Second) != accrues {
			t.Errorf("%s: HTTP/2 %v, accrual %+v; want %v and %v", when, c.UpgradeHTTP2, c.Accrual, http2, accrues)
		}
	}
	f.yields(service(bad, grpc))
	f.refused("Service shop/api: its ports")
	f.says("timeout.linkerd.io/request is, and bounds the whole call")
	at("refused", true, false)
	f.yields(service(bad, wrong))
	f.refused("Service shop/api: nothing")
	at("unreadable", false, false)
	f.yields(service(bad, web))
	f.refused("Service shop/api: its ports")
	at("with another port", false, false)
	f.yields(service(good, grpc))
	f.refused()
	at("mended", true, true)
	f.yields(service(bad, web))
	f.refused("Service shop/api: last good")
	at("with a last good version", true, true)
	f.yields()
	at("removed", false, false)
}
