package policy_test

import (
	"testing"
)

// What authorizes nobody any more, because it is refused or gone, opens nothing; and the last good version of what is refused stays.
func TestAlone_LinkerdServers(t *testing.T) {
	server := object{kind: "Server", name: "web", spec: "{podSelector: {matchLabels: {app: web}}, port: 80}"}
	policy := object{kind: "AuthorizationPolicy of policy.linkerd.io/v1alpha1", name: "web", spec: "{targetRef: {group: policy.linkerd.io, kind: Server, name: web}, " +
		"requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: web}]}"}
	const mtls = "MeshTLSAuthentication of policy.linkerd.io/v1alpha1"
	all := object{kind: mtls, name: "web", spec: "{identities: ['*']}"}
	bad := object{kind: mtls, name: "web", spec: "{identities: [7]}"}
	const a = "cluster.local/ns/shop/sa/a"

	f := newFeed(t)
	asked := func(step string, want bool) {
		t.Helper()
		if got := f.asked("/", a); got.Allowed != want {
			t.Errorf("%s: allowed %t (%s), want %t\n%v", step, got.Allowed, got.Reason, want, f.findings)
		}
	}
	f.yields(server, policy, all)
	asked("all good", true)
	f.yields(server, policy, bad)
	f.refused("MeshTLSAuthentication shop/web: last good")
	asked("the authentication is refused", true)
	f.yields(server, policy)
	asked("it is gone", false)
	f.says("there is no MeshTLSAuthentication shop/web")
	f.yields(server, policy, bad)
	f.refused("MeshTLSAuthentication shop/web: nothing")
	asked("it is refused, and was never good", false)
	f.says("authorizes nobody: MeshTLSAuthentication shop/web is refused")
	f.yields(server, all)
	asked("without the policy", false)
	f.yields(policy, all)
	asked("without the server", true)
	f.yields(server, policy, all)
	server.spec = "{podSelector: {matchLabels: {app: web}}, port: none of them}"
	f.yields(server, policy, all)
	f.refused("Server shop/web: last good")
	asked("the server is refused", true)
	f.yields(server)
	f.refused("Server shop/web: last good")
	asked("so is nobody authorized", false)
	f.yields(policy, all)
	f.yields(server, policy, all)
	f.refused("Server shop/web: denial")
	f.denies("Server shop/web")
}

// The older of two Servers for a port counts; without times neither does.
func TestAlone_LinkerdServersForOnePort(t *testing.T) {
	open := object{kind: "Server", name: "a", created: 1, spec: "{podSelector: {}, port: 80, accessPolicy: all-unauthenticated}"}
	shut := object{kind: "Server", name: "b", created: 2, spec: "{podSelector: {matchLabels: {app: web}}, port: 80}"}
	f := newFeed(t)
	f.yields(shut, open)
	f.refused()
	f.allows("/")
	f.says("Server shop/a is about the same port of this workload and is older")
	shut.created = 0
	f.yields(shut, open)
	if f.asked("/").Allowed {
		t.Error("the older one does not count")
	}
}

// A route of a Server that is refused lets nothing through that it would have refused.
func TestAlone_RoutesOfServers(t *testing.T) {
	server := object{kind: "Server", name: "web", spec: "{podSelector: {matchLabels: {app: web}}, port: 80, accessPolicy: all-authenticated}"}
	const kind, to = "HTTPRoute of policy.linkerd.io/v1beta3", "{parentRefs: [{group: policy.linkerd.io, kind: Server, name: web}], rules: "
	route := object{kind: kind, name: "r", spec: to + "[{matches: [{path: {value: /public}}]}]}"}
	bad := object{kind: kind, name: "r", spec: to + "[{matches: [{queryParams: [{name: a, value: b}]}]}]}"}
	const a = "cluster.local/ns/shop/sa/a"
	f := newFeed(t)
	asked := func(step string, want bool, path string) {
		t.Helper()
		if got := f.asked(path, a); got.Allowed != want {
			t.Errorf("%s: %s is allowed: %t (%s), want %t\n%v", step, path, got.Allowed, got.Reason, want, f.findings)
		}
	}
	f.yields(server, route)
	asked("good", true, "/public")
	asked("good", false, "/")
	f.yields(server, bad)
	f.refused("HTTPRoute shop/r: last good")
	asked("refused", true, "/public")
	asked("refused", false, "/")
	f.yields(server)
	asked("gone", true, "/")
	f.yields(server, bad)
	f.refused("HTTPRoute shop/r: denial")
	asked("refused, and never good", false, "/public")
	for _, wrong := range []string{"{group: policy.linkerd.io, name: web}", "{kind: Sever, name: web}", "{group: gateway.networking.k8s.io, kind: Server, name: web}"} {
		f.yields(server, object{kind: kind, name: "r", spec: "{parentRefs: [" + wrong + "], rules: []}"})
		f.refused("HTTPRoute shop/r: denial")
	}
	f.yields(server, object{kind: kind, name: "r", spec: "{parentRefs: [{kind: Service, name: web}], rules: []}"})
	f.refused("HTTPRoute shop/r: nothing")
	f.yields(server, object{kind: kind, name: "r", spec: to + "null}"})
	f.says("has no value and counts as absent")
}
