package accesslog

import (
	"net"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh"
)

// details says in Envoy's words who answered, or why nobody did.
func (r *record) details() string {
	switch {
	case r.badPath:
		return "path_normalization_failed"
	case r.denied:
		return r.denial()
	case r.side == inbound:
		return r.inboundDetails()
	case r.flags&mesh.FlagCallerGone != 0:
		return "downstream_remote_disconnect"
	case r.status != 0 && r.err != nil:
		return "upstream_reset_after_response_started" + r.reset()
	case r.flags&mesh.FlagFaultInjected != 0:
		return "fault_filter_abort"
	case r.flags&mesh.FlagRateLimited != 0:
		return "local_rate_limited"
	case r.flags&mesh.FlagNoRoute != 0:
		return "route_not_found"
	case r.flags&mesh.FlagNoCluster != 0:
		return "cluster_not_found"
	case r.err == nil && r.flags&mesh.FlagOverflow == 0 && r.attempts > 0:
		return "via_upstream"
	case r.flags&mesh.FlagNoHealthyUpstream != 0:
		return "no_healthy_upstream"
	case r.flags&mesh.FlagUpstreamTimeout != 0:
		return "response_timeout"
	case r.reset() != "":
		return "upstream_reset_before_response_started" + r.reset()
	case r.err == nil:
		return "direct_response"
	}
	return ""
}

func (r *record) inboundDetails() string {
	switch {
	case r.flags&mesh.FlagRateLimited != 0:
		return "local_rate_limited"
	case r.flags&mesh.FlagOverflow != 0:
		return "overload"
	case r.status != 0:
		return "via_upstream"
	}
	return ""
}

// reset says how a call was reset.
func (r *record) reset() string {
	switch {
	case r.flags&mesh.FlagConnectFailure != 0:
		return "{connection_failure}"
	case r.flags&mesh.FlagConnectionTerminated != 0:
		return "{connection_termination}"
	case r.flags&mesh.FlagRemoteReset != 0:
		return "{remote_reset}"
	case r.flags&mesh.FlagOverflow != 0:
		return "{overflow}"
	}
	return ""
}

// denial names the policy that denied, as Istio's sidecars do.
func (r *record) denial() string {
	name := "none"
	if r.policy != "" {
		namespace, policy, _ := strings.Cut(r.policy, "/")
		name = "ns[" + namespace + "]-policy[" + policy + "]-rule[" + strconv.Itoa(max(0, r.rule)) + "]"
	}
	return "rbac_access_denied_matched_policy[" + name + "]"
}

// cluster names where a call went, as Istio names clusters.
func (r *record) cluster() string {
	if r.side == inbound || r.side == inboundConn {
		if r.local == nil {
			return "inbound|||"
		}
		_, port, _ := net.SplitHostPort(r.local.String())
		return "inbound|" + port + "||"
	}
	switch {
	case r.outside && r.flags&mesh.FlagNoRoute != 0:
		return "BlackHoleCluster"
	case r.outside:
		return "PassthroughCluster"
	case r.target.Host == "":
		return ""
	}
	port := ""
	if r.target.Port != 0 {
		port = strconv.Itoa(r.target.Port)
	}
	return "outbound|" + port + "|" + r.target.Subset + "|" + r.target.Host
}

// routeName is "default" where no document routes, as with Istio, "allow_any" outside the mesh and "block_all" where that is
// refused.
func (r *record) routeName() string {
	switch {
	case r.side == inboundConn || r.side == outboundConn:
		return ""
	case r.route != "":
		return r.route
	case r.side == inbound:
		return "default"
	case r.outside && r.flags&mesh.FlagNoRoute != 0:
		return "block_all"
	case r.outside:
		return "allow_any"
	case !r.routed && r.target.Host != "":
		return "default"
	}
	return ""
}

// transportFailure says why there was no connection.
func (r *record) transportFailure() string {
	if r.err != nil && r.flags&mesh.FlagConnectFailure != 0 {
		return r.err.Error()
	}
	return ""
}
