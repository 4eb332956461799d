package accesslog

import (
	"net"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh"
)

// details returns Envoy's response code details: what answered the call, or why there was no response.
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
	case r.status != 0 && r.failed:
		return "upstream_reset_after_response_started" + r.reset()
	case r.flags&mesh.FlagFaultInjected != 0:
		return "fault_filter_abort"
	case r.flags&mesh.FlagRateLimited != 0:
		return "local_rate_limited"
	case r.flags&mesh.FlagNoRoute != 0:
		return "route_not_found"
	case r.flags&mesh.FlagNoCluster != 0:
		return "cluster_not_found"
	case !r.failed && r.flags&mesh.FlagOverflow == 0 && r.attempts > 0:
		return "via_upstream"
	case r.flags&mesh.FlagNoHealthyUpstream != 0:
		return "no_healthy_upstream"
	case r.flags&mesh.FlagUpstreamTimeout != 0:
		return "response_timeout"
	case r.reset() != "":
		return "upstream_reset_before_response_started" + r.reset()
	case !r.failed:
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
	case r.flags&mesh.FlagCallerGone != 0:
		return "downstream_remote_disconnect"
	case r.reset() != "" && r.status != 0: // by the handler
		return "upstream_reset_after_response_started" + r.reset()
	case r.reset() != "":
		return "upstream_reset_before_response_started" + r.reset()
	case r.answered:
		return "cors_response"
	case r.status != 0:
		return "via_upstream"
	}
	return ""
}

// reset returns how a call was reset, in Envoy's terms.
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

// denial returns the details of a denied call, which name the policy, in the format of Istio's sidecars, or say in Envoy's words what is
// wrong with its token.
func (r *record) denial() string {
	name := "none"
	if r.badToken {
		return "jwt_authn_access_denied{" + strings.ReplaceAll(r.reason, " ", "_") + "}"
	}
	if r.policy != "" {
		namespace, policy, _ := strings.Cut(r.policy, "/")
		name = "ns[" + namespace + "]-policy[" + policy + "]-rule[" + strconv.Itoa(max(0, r.rule)) + "]"
	}
	return "rbac_access_denied_matched_policy[" + name + "]"
}

// cluster returns the destination of a call as Istio names clusters. local is the text of the local address.
func (r *record) cluster(local string) string {
	if r.side == inbound || r.side == inboundConn {
		if local == "" {
			return "inbound|||"
		}
		_, port, _ := net.SplitHostPort(local)
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

// routeName returns the name of the route. As in Istio, it is "default" if no document routes the call, "allow_any" for a host outside
// the mesh, and "block_all" if such a host is refused.
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
