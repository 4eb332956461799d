package metrics_test

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

func known(v string) bool { return v != "" && v != "unknown" }

var ipAddress = regexp.MustCompile(`^\d+\.\d+\.\d+\.\d+(:\d+)?$`)

// whyNot returns why Kiali would leave a series out of its graph, its health or its security, "" if it does not.
func whyNot(s sample, tcp bool) string {
	l := s.labels
	needed := []string{"destination_service", "destination_service_name", "destination_service_namespace", "response_flags"}
	for _, side := range []string{"source_", "destination_"} {
		needed = append(needed, side+"workload", side+"workload_namespace", side+"canonical_service", side+"canonical_revision",
			side+"principal", side+"cluster", side+"app", side+"version")
	}
	if !tcp {
		needed = append(needed, "request_protocol", "response_code")
	}
	for _, name := range needed {
		if l[name] == "" {
			return name + " is empty"
		}
	}
	for _, side := range []string{"source_", "destination_"} {
		switch {
		case known(l[side+"workload_namespace"]) && !known(l[side+"workload"]) && !known(l[side+"canonical_service"]):
			return side + "workload_namespace is there without a workload"
		case !known(l[side+"cluster"]):
			return side + "cluster is no name"
		}
	}
	switch {
	case !known(l["destination_workload"]) && l["destination_service"] == l["destination_service_name"] && ipAddress.MatchString(l["destination_service"]):
		return "the service is an address"
	case !tcp && !slices.Contains([]string{"http", "grpc"}, l["request_protocol"]):
		return "request_protocol is " + l["request_protocol"]
	case l["request_protocol"] == "grpc" && l["response_code"] == "200" && l["grpc_response_status"] == "":
		return "no status of gRPC"
	case strings.Contains(l["source_principal"]+l["destination_principal"], "spiffe://") &&
		!(strings.HasPrefix(l["source_principal"], "spiffe://") && strings.HasPrefix(l["destination_principal"], "spiffe://") &&
			l["connection_security_policy"] == "mutual_tls"):
		return "one principal, or principals without mTLS"
	}
	return ""
}

// takenByKiali fails the test for each series that Kiali leaves out.
func takenByKiali(t *testing.T, p *process) {
	t.Helper()
	for name, tcp := range map[string]bool{"istio_requests_total": false, "istio_tcp_sent_bytes_total": true, "istio_tcp_connections_opened_total": true} {
		for _, s := range p.scrape(t, name) {
			if why := whyNot(s, tcp); why != "" {
				t.Errorf("Kiali skips %s%v: %s", name, s, why)
			}
		}
	}
}
