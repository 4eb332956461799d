package accesslog

import (
	"cmp"
	"net"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/workload"
)

// Attribute implements telemetry.Attributes, for the filters of documents.
func (r *record) Attribute(name string) (any, bool) {
	request := r.side == outbound || r.side == inbound
	switch name {
	case "request.path":
		return r.requestURI(), request
	case "request.url_path":
		path, _, _ := strings.Cut(r.requestURI(), "?")
		return path, request
	case "request.host":
		return r.authority, request
	case "request.method":
		return cmp.Or(r.method, "GET"), request
	case "request.useragent":
		return r.userAgent, r.userAgent != ""
	case "request.headers":
		return r.headers, request
	case "request.duration", "response.duration":
		return r.duration, true
	case "response.code":
		return int64(r.code), request
	case "response.flags":
		return envoyFlags(r.flags), true
	case "response.grpc_status":
		return int64(r.grpcStatus), r.grpcStatus >= 0
	case "connection.mtls":
		return r.peerID != "", true
	case "source.address":
		if r.remote != nil && r.side == inboundConn {
			return r.remote.String(), true
		}
		return r.remoteText, r.remoteText != ""
	case "destination.port":
		return r.port()
	case "xds.cluster_name":
		local := ""
		if r.local != nil {
			local = r.local.String()
		}
		name := r.cluster(local)
		return name, name != ""
	}
	client := r.side == outbound || r.side == outboundConn
	if field, ok := strings.CutPrefix(name, "filter_state.upstream_peer."); ok && client {
		return r.peerField(field)
	}
	if field, ok := strings.CutPrefix(name, "filter_state.downstream_peer."); ok && !client {
		return r.peerField(field)
	}
	return nil, false
}

// port returns the port to which the call was made.
func (r *record) port() (any, bool) {
	if r.side == outbound || r.side == outboundConn {
		return int64(r.target.Port), r.target.Port != 0
	}
	if r.local == nil {
		return nil, false
	}
	_, text, _ := net.SplitHostPort(r.local.String())
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil
}

// peerField returns a field of the peer, as metrics and spans have it. Its labels come from discovery, its namespace and service account
// from its identity.
func (r *record) peerField(field string) (any, bool) {
	service, account := workload.NamespaceOf(r.target.Host), workload.AccountOf(r.peerID)
	w, labels := workload.ByIdentity(r.peerID, ""), map[string]string(nil)
	if r.peer != nil {
		account = workload.AccountAt(r.peer, r.peerID, service)
		w, labels = workload.ByDiscovery(r.peer, r.peerID, service, ""), r.peer.Labels
	}
	value := ""
	switch field {
	case "labels":
		return labels, labels != nil
	case "namespace":
		value = cmp.Or(account.Namespace, service)
	case "workload":
		value = w.Name
	case "app":
		value = w.App
	case "version":
		value = w.Version
	case "service":
		value = w.Service
	case "revision":
		value = w.Revision
	}
	return value, value != "" && value != workload.Unknown
}

// envoyFlags returns flags as the bits that Envoy passes to expressions.
func envoyFlags(flags mesh.Flags) (bits int64) {
	for _, f := range [...]struct {
		flag mesh.Flags
		bit  int
	}{
		{mesh.FlagNoHealthyUpstream, 1}, {mesh.FlagUpstreamTimeout, 2}, {mesh.FlagRemoteReset, 4}, {mesh.FlagConnectFailure, 5},
		{mesh.FlagConnectionTerminated, 6}, {mesh.FlagOverflow, 7}, {mesh.FlagNoRoute, 8}, {mesh.FlagDelayInjected, 9},
		{mesh.FlagFaultInjected, 10}, {mesh.FlagRateLimited, 11}, {mesh.FlagCallerGone, 14}, {mesh.FlagRetriesExhausted, 15},
		{mesh.FlagNoCluster, 24},
	} {
		if flags&f.flag != 0 {
			bits |= 1 << f.bit
		}
	}
	return bits
}
