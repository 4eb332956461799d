package realservers

import "math/rand/v2"

// maker makes documents, some of which have mistakes. The same seed makes the same documents.
type maker struct{ *rand.Rand }

// of returns one of the values, and one time in fifteen one of the bad ones.
func (g maker) of(good []any, bad ...any) any {
	if len(bad) > 0 && g.IntN(15) == 0 {
		return bad[g.IntN(len(bad))]
	}
	return good[g.IntN(len(good))]
}

// set sets a field of an object, n times in ten.
func (g maker) set(object map[string]any, n int, field string, good []any, bad ...any) {
	if g.IntN(10) < n {
		object[field] = g.of(good, bad...)
	}
}

type (
	values = []any
)

var istioKinds = []struct {
	api, kind, plural string
	spec              func(maker) object
}{
	{"networking.istio.io/v1", "VirtualService", "virtualservices", maker.virtualService},
	{"networking.istio.io/v1", "DestinationRule", "destinationrules", maker.destinationRule},
	{"networking.istio.io/v1", "ServiceEntry", "serviceentries", maker.serviceEntry},
	{"security.istio.io/v1", "PeerAuthentication", "peerauthentications", maker.peerAuthentication},
	{"security.istio.io/v1", "AuthorizationPolicy", "authorizationpolicies", maker.authorizationPolicy},
	{"security.istio.io/v1", "RequestAuthentication", "requestauthentications", maker.requestAuthentication},
	{"telemetry.istio.io/v1", "Telemetry", "telemetries", maker.telemetry},
}

var hosts = values{"reviews", "ratings", "reviews.shop.svc.cluster.local", "api.example.com", "reviews.other"}

func (g maker) virtualService() object {
	spec := object{"hosts": g.of(values{values{"reviews"}, values{"reviews", "ratings"}, values{"*.example.com"}, values{"api.example.com"}, values{"10.1.2.3"}},
		values{"reviews:8080"}, values{"re*views"}, values{""}, values{"*"}, values{"host_!"}, values{}, values{"reviews", "reviews"})}
	g.set(spec, 2, "exportTo", values{values{"."}, values{"*"}, values{"shop"}}, values{"shop", "."}, values{"SHOP!"}, values{".", "*"})
	g.set(spec, 1, "gateways", values{values{"mesh"}, values{"shop/gate", "mesh"}}, values{"/gate"}, values{"shop/GATE!"})
	var http values
	for range 1 + g.IntN(3) {
		http = append(http, g.httpRoute())
	}
	spec["http"] = http
	g.set(spec, 1, "tcp", values{values{object{"route": values{object{"destination": object{"host": "reviews", "port": object{"number": 80}}}}}}},
		values{object{"route": values{}}}, values{object{}})
	return spec
}

func (g maker) httpRoute() object {
	route := object{}
	g.set(route, 3, "name", values{"one", "two"}, "")
	if g.IntN(2) == 0 {
		match := object{}
		g.set(match, 6, "uri", values{object{"prefix": "/api"}, object{"exact": "/a"}, object{"regex": "/[a-z]+"}},
			object{"regex": "("}, object{"prefix": ""}, object{}, object{"prefix": "/a", "exact": "/b"}, object{"prefx": "/a"})
		g.set(match, 4, "headers", values{object{"x-user": object{"exact": "a"}}, object{"x-user": object{"regex": "^a.*"}}, object{"x-user": object{"prefix": ""}}},
			object{"": object{"exact": "a"}}, object{"x-user": object{"regex": "["}})
		g.set(match, 2, "method", values{object{"exact": "GET"}}, object{"regex": "(("})
		g.set(match, 2, "queryParams", values{object{"v": object{"exact": "1"}}}, object{"v": object{"regex": "*"}})
		g.set(match, 2, "sourceLabels", values{object{"app": "web"}}, object{"app!": "web"})
		g.set(match, 1, "port", values{80, 8080}, 0, 70000, -1)
		g.set(match, 1, "withoutHeaders", values{object{"x-a": object{"exact": "1"}}}, object{"": object{}})
		route["match"] = values{match}
	}
	switch g.IntN(8) {
	case 0:
		redirect := object{"uri": "/new"}
		g.set(redirect, 3, "redirectCode", values{301, 302, 307}, 200, 99)
		g.set(redirect, 3, "authority", values{"example.com"})
		route["redirect"] = redirect
	case 1:
		response := object{"status": g.of(values{200, 404, 503}, 99, 1000, 0)}
		g.set(response, 5, "body", values{object{"string": "no"}}, object{}, object{"string": "a", "bytes": "Yg=="})
		route["directResponse"] = response
	default:
		route["route"] = g.destinations()
	}
	if g.IntN(40) == 0 {
		route["route"] = g.destinations() // beside a redirect, perhaps
	}
	if g.IntN(60) == 0 {
		delete(route, "route")
	}
	g.set(route, 3, "timeout", values{"1s", "0.5s", "0s"}, "1", "-1s", "1us")
	g.set(route, 3, "retries", values{object{"attempts": 3}, object{"attempts": 2, "perTryTimeout": "1s", "retryOn": "5xx,reset"}, object{"attempts": 0}},
		object{"attempts": -1}, object{"attempts": 2, "perTryTimeout": "0.1ms"}, object{"attempts": 2, "retryOn": "5yy"}, object{"attempts": 2, "retryOn": "503,gateway-error"}, object{"attempts": "3"})
	g.set(route, 2, "fault", values{object{"delay": object{"percentage": object{"value": 0.1}, "fixedDelay": "5s"}}, object{"abort": object{"percentage": object{"value": 10}, "httpStatus": 503}}},
		object{"delay": object{"fixedDelay": "0s"}}, object{"abort": object{"percentage": object{"value": 101}, "httpStatus": 503}}, object{"abort": object{"httpStatus": 9999}},
		object{"abort": object{"grpcStatus": "NO_SUCH"}}, object{})
	g.set(route, 2, "mirror", values{object{"host": "ratings"}}, object{"host": ""}, object{"host": "ratings:80"})
	g.set(route, 1, "mirrorPercentage", values{object{"value": 10}}, object{"value": -1}, object{"value": 101})
	g.set(route, 1, "headers", values{object{"request": object{"set": object{"x-a": "1"}}}, object{"response": object{"remove": values{"x-b"}}}},
		object{"request": object{"set": object{"": "1"}}})
	g.set(route, 1, "rewrite", values{object{"uri": "/b"}, object{"authority": "b"}, object{"uriRegexRewrite": object{"match": "^/a", "rewrite": "/b"}}},
		object{}, object{"uriRegexRewrite": object{"match": "(", "rewrite": "/b"}}, object{"uri": "/b", "uriRegexRewrite": object{"match": "^/a", "rewrite": "/b"}})
	g.set(route, 1, "corsPolicy", values{object{"allowOrigins": values{object{"exact": "https://a"}}, "allowMethods": values{"GET"}, "maxAge": "24h"}},
		object{"allowMethods": values{"GETT"}}, object{"maxAge": "1.5s"}, object{"allowOrigins": values{object{"regex": "("}}})
	return route
}

func (g maker) destinations() values {
	destination := func() object {
		d := object{"host": g.of(hosts, "reviews:80", "", "*.example.com", "re views")}
		g.set(d, 2, "subset", values{"v1", "v2"}, "v!", "")
		g.set(d, 4, "port", values{object{"number": 80}, object{"number": 8080}}, object{"number": 0}, object{"number": 65536}, object{})
		return d
	}
	if g.IntN(2) == 0 {
		d := object{"destination": destination()}
		g.set(d, 1, "weight", values{100, 1}, -1)
		return values{d}
	}
	first, second := object{"destination": destination()}, object{"destination": destination()}
	first["weight"] = g.of(values{90, 50, 1}, 0, -1)
	second["weight"] = g.of(values{10, 50, 1}, 0)
	g.set(first, 1, "headers", values{object{"request": object{"add": object{"x-v": "1"}}}}, object{"request": object{"add": object{"": "1"}}})
	return values{first, second}
}

func (g maker) destinationRule() object {
	spec := object{"host": g.of(hosts, "", "reviews:80", "ca!rt", "*")}
	g.set(spec, 8, "trafficPolicy", values{g.trafficPolicy()})
	if g.IntN(2) == 0 {
		one := object{"name": g.of(values{"v1"}, "", "v 1", "v!"), "labels": g.of(values{object{"version": "v1"}}, object{"vers ion": "v1"}, object{}, object{"version": "v 1"})}
		two := object{"name": g.of(values{"v2"}, "v1"), "labels": object{"version": "v2"}}
		g.set(two, 3, "trafficPolicy", values{g.trafficPolicy()})
		spec["subsets"] = values{one, two}
	}
	g.set(spec, 1, "exportTo", values{values{"."}, values{"*"}}, values{".", "*"}, values{"shop!"})
	return spec
}

func (g maker) trafficPolicy() object {
	p := object{}
	g.set(p, 5, "loadBalancer", values{object{"simple": "ROUND_ROBIN"}, object{"simple": "LEAST_REQUEST"}, object{"simple": "RANDOM"},
		object{"consistentHash": object{"httpHeaderName": "x-user"}}, object{"consistentHash": object{"useSourceIp": true}},
		object{"consistentHash": object{"httpCookie": object{"name": "c", "ttl": "0s"}}}, object{"simple": "LEAST_REQUEST", "warmup": object{"duration": "10s"}}},
		object{"simple": "ROUND_ROBBIN"}, object{"simple": "RANDOM", "consistentHash": object{"useSourceIp": true}}, object{"consistentHash": object{}},
		object{"consistentHash": object{"httpCookie": object{"name": "", "ttl": "1s"}}}, object{"consistentHash": object{"httpHeaderName": ""}},
		object{"localityLbSetting": object{"distribute": values{object{"from": "a/*", "to": object{"a/*": 50}}}}})
	g.set(p, 5, "connectionPool", values{object{"tcp": object{"maxConnections": 100}}, object{"http": object{"http1MaxPendingRequests": 10, "http2MaxRequests": 100}},
		object{"tcp": object{"connectTimeout": "2s"}, "http": object{"maxRequestsPerConnection": 2, "idleTimeout": "30s"}}},
		object{"tcp": object{"maxConnections": -1}}, object{"http": object{"maxRetries": -1}}, object{}, object{"tcp": object{"connectTimeout": "0.1ms"}}, object{"http": object{"idleTimeout": "0s"}})
	g.set(p, 5, "outlierDetection", values{object{"consecutive5xxErrors": 5, "interval": "10s", "baseEjectionTime": "30s"}, object{"consecutiveGatewayErrors": 3, "maxEjectionPercent": 50}, object{}},
		object{"maxEjectionPercent": 101}, object{"interval": "0s"}, object{"baseEjectionTime": "-1s"}, object{"minHealthPercent": -1}, object{"consecutive5xxErrors": -1})
	g.set(p, 3, "tls", values{object{"mode": "DISABLE"}, object{"mode": "ISTIO_MUTUAL"}, object{"mode": "SIMPLE", "sni": "a.example.com"}},
		object{"mode": "MUTUAL"}, object{"mode": "NONE"}, object{"mode": "ISTIO_MUTUAL", "clientCertificate": "/c.pem"}, object{"mode": "SIMPLE", "credentialName": "a", "caCertificates": "/ca.pem"})
	g.set(p, 1, "portLevelSettings", values{values{object{"port": object{"number": 80}, "loadBalancer": object{"simple": "RANDOM"}}}},
		values{object{"loadBalancer": object{"simple": "RANDOM"}}}, values{object{"port": object{"number": 0}, "loadBalancer": object{"simple": "RANDOM"}}})
	return p
}

func (g maker) serviceEntry() object {
	spec := object{"hosts": g.of(values{values{"api.example.com"}, values{"*.example.com"}, values{"a.example.com", "b.example.com"}},
		values{""}, values{"*"}, values{}, values{"a.example.com:80"}, values{"a example"})}
	spec["ports"] = g.of(values{values{object{"number": 443, "name": "https", "protocol": "HTTPS"}}, values{object{"number": 80, "name": "http", "protocol": "HTTP"}},
		values{object{"number": 80, "name": "http", "protocol": "HTTP"}, object{"number": 81, "name": "tcp", "protocol": "TCP"}}},
		values{object{"number": 0, "name": "http", "protocol": "HTTP"}}, values{object{"number": 80, "name": "", "protocol": "HTTP"}}, values{object{"number": 80, "name": "http", "protocol": "HTTTP"}},
		values{object{"number": 80, "name": "a", "protocol": "HTTP"}, object{"number": 80, "name": "b", "protocol": "HTTP"}},
		values{object{"number": 80, "name": "a", "protocol": "HTTP"}, object{"number": 81, "name": "a", "protocol": "HTTP"}}, values{object{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 70000}})
	spec["resolution"] = g.of(values{"DNS", "STATIC", "NONE"}, "DNSS", "DNS_ROUND_ROBIN")
	if spec["resolution"] == "STATIC" || g.IntN(6) == 0 {
		spec["endpoints"] = g.of(values{values{object{"address": "10.0.0.1"}}, values{object{"address": "10.0.0.1", "ports": object{"http": 8080}, "labels": object{"version": "v1"}}}},
			values{object{"address": ""}}, values{object{"address": "not an address"}}, values{object{"address": "10.0.0.1", "ports": object{"no": 1}}}, values{object{"address": "10.0.0.1", "weight": -1}})
	}
	g.set(spec, 4, "location", values{"MESH_EXTERNAL", "MESH_INTERNAL"}, "MESH")
	g.set(spec, 3, "addresses", values{values{"10.9.0.1"}, values{"10.9.0.0/16"}}, values{"10.9.0"}, values{"10.9.0.0/33"})
	g.set(spec, 1, "exportTo", values{values{"."}, values{"*"}}, values{"a!"})
	g.set(spec, 1, "subjectAltNames", values{values{"spiffe://cluster.local/ns/a/sa/b"}})
	g.set(spec, 1, "workloadSelector", values{object{"labels": object{"app": "a"}}})
	return spec
}

func (g maker) selector() object {
	return object{"matchLabels": g.of(values{object{"app": "web"}, object{"app": "web", "version": "v1"}}, object{"": "web"}, object{"app": "w eb"}, object{"app*": "web"}, object{})}
}

func (g maker) peerAuthentication() object {
	spec := object{}
	g.set(spec, 5, "selector", values{g.selector()}, object{"matchLabel": object{"app": "web"}}, object{})
	g.set(spec, 8, "mtls", values{object{"mode": "STRICT"}, object{"mode": "PERMISSIVE"}, object{"mode": "DISABLE"}, object{"mode": "UNSET"}}, object{"mode": "strict"}, object{"modes": "STRICT"}, object{})
	g.set(spec, 2, "portLevelMtls", values{object{"8080": object{"mode": "DISABLE"}}}, object{"0": object{"mode": "DISABLE"}}, object{"http": object{"mode": "DISABLE"}}, object{"70000": object{"mode": "STRICT"}}, object{})
	return spec
}

func (g maker) authorizationPolicy() object {
	spec := object{}
	g.set(spec, 6, "selector", values{g.selector()}, object{"matchLabel": object{"app": "web"}})
	g.set(spec, 7, "action", values{"ALLOW", "DENY", "AUDIT"}, "allow", "CUSTOM")
	if g.IntN(40) == 0 {
		spec["provider"] = object{"name": "ext"}
	}
	var rules values
	for range g.IntN(3) {
		rule := object{}
		source := object{}
		g.set(source, 4, "principals", values{values{"cluster.local/ns/shop/sa/web"}, values{"*"}, values{"*/sa/web"}}, values{""}, values{}, values{"a*b"})
		g.set(source, 3, "namespaces", values{values{"shop"}, values{"sh*"}}, values{""}, values{"s*p"})
		g.set(source, 2, "ipBlocks", values{values{"10.0.0.0/8"}, values{"10.0.0.1"}}, values{"not-an-ip"}, values{"10.0.0.0/33"}, values{""})
		g.set(source, 1, "requestPrincipals", values{values{"*"}, values{"https://a/*"}}, values{""})
		g.set(source, 1, "notNamespaces", values{values{"other"}}, values{})
		g.set(source, 1, "serviceAccounts", values{values{"shop/web"}, values{"web"}}, values{"a/b/c"}, values{"*"}, values{""})
		g.set(rule, 6, "from", values{values{object{"source": source}}}, values{object{}}, values{}, values{object{"sauce": object{}}})
		operation := object{}
		g.set(operation, 5, "methods", values{values{"GET"}, values{"GET", "POST"}, values{"*"}}, values{""}, values{})
		g.set(operation, 5, "paths", values{values{"/api/*"}, values{"/a", "/b"}, values{"*/x"}, values{"/a/{*}/b"}, values{"/a/{**}"}}, values{""}, values{"/a/{x}/b"}, values{"/{**}/{*}"})
		g.set(operation, 2, "ports", values{values{"8080"}}, values{"http"}, values{"0"}, values{"80-90"}, values{"70000"})
		g.set(operation, 2, "hosts", values{values{"a.example.com"}, values{"*.example.com"}}, values{""}, values{"a*b"})
		g.set(rule, 6, "to", values{values{object{"operation": operation}}}, values{object{}}, values{})
		g.set(rule, 2, "when", values{values{object{"key": "request.headers[x-a]", "values": values{"1"}}}, values{object{"key": "source.namespace", "notValues": values{"a"}}}},
			values{object{"key": "nope", "values": values{"1"}}}, values{object{"key": "request.headers[x-a]"}}, values{object{"key": "", "values": values{"1"}}}, values{object{"key": "source.ip", "values": values{"x"}}})
		if g.IntN(25) == 0 {
			rule["form"] = values{}
		}
		rules = append(rules, rule)
	}
	if rules != nil {
		spec["rules"] = rules
	}
	return spec
}

func (g maker) requestAuthentication() object {
	rule := object{"issuer": g.of(values{"https://issuer.example.com"}, "")}
	rule["jwks"] = `{"keys":[{"kty":"RSA","kid":"a","n":"u1SU1LfVLPHCozMxH2Mo4lgOEePzNm0tRgeLezV6ffAt0gunVTLw7onLRnrq0_IzW7yWR7QkrmBL7jTKEn5u-qKhbwKfBstIs-bMY2Zkp18gnTxKLxoS2tFczGkPLPgizskuemMghRniWaoLcyehkd3qqGElvW_VDL5AaWTg0nLVkjRo9z-40RQzuVaE8AkAFmxZzow3x-VJYKdjykkJ0iT9wCS0DRTXu269V264Vf_3jvredZiKRkgwlL9xNAwxXFg0x_XFw005UWVRIkdgcKWTjpBP2dPwVZ4WWC-9aGVd-Gyn1o0CLelf4rEjGoXbAAEgAqeGUxrcIlbjXfbcmw","e":"AQAB"}]}`
	switch g.IntN(12) {
	case 0:
		rule["jwks"] = "not JSON"
	case 1:
		rule["jwksUri"] = "https://issuer.example.com/keys" // beside jwks
	case 2, 3, 4:
		delete(rule, "jwks")
		rule["jwksUri"] = g.of(values{"https://issuer.example.com/keys", "http://keys.shop:8080/k"}, "ftp://a", "issuer", "")
	}
	g.set(rule, 3, "audiences", values{values{"a"}}, values{""}, values{})
	g.set(rule, 3, "fromHeaders", values{values{object{"name": "x-token", "prefix": "Bearer "}}}, values{object{"name": ""}}, values{object{}})
	g.set(rule, 2, "fromParams", values{values{"token"}}, values{""})
	g.set(rule, 2, "fromCookies", values{values{"token"}}, values{""})
	g.set(rule, 2, "outputClaimToHeaders", values{values{object{"header": "x-sub", "claim": "sub"}}}, values{object{"header": "", "claim": "sub"}}, values{object{"header": "x sub", "claim": "sub"}}, values{object{"header": "x-sub", "claim": ""}})
	g.set(rule, 1, "forwardOriginalToken", values{true, false}, "yes")
	g.set(rule, 1, "timeout", values{"5s"}, "0s", "0.1ms")
	spec := object{"jwtRules": values{rule}}
	g.set(spec, 5, "selector", values{g.selector()})
	return spec
}

func (g maker) telemetry() object {
	spec := object{}
	g.set(spec, 4, "selector", values{g.selector()})
	g.set(spec, 5, "tracing", values{values{object{"randomSamplingPercentage": 10.0}}, values{object{"disableSpanReporting": true}},
		values{object{"customTags": object{"a": object{"literal": object{"value": "b"}}}}}},
		values{object{"randomSamplingPercentage": 101.0}}, values{object{"randomSamplingPercentage": -1.0}}, values{object{"customTags": object{"a": object{"literal": object{"value": ""}}}}},
		values{object{"customTags": object{"": object{"literal": object{"value": "a"}}}}}, values{object{"customTags": object{"a": object{"header": object{"name": ""}}}}})
	g.set(spec, 5, "metrics", values{values{object{"overrides": values{object{"match": object{"metric": "REQUEST_COUNT"}, "disabled": true}}}}},
		values{object{"overrides": values{object{"match": object{"metric": "NO_SUCH"}, "disabled": true}}}}, values{object{"overrides": values{object{"tagOverrides": object{"a": object{"operation": "UPSERT"}}}}}},
		values{object{"reportingInterval": "0.1ms"}})
	g.set(spec, 5, "accessLogging", values{values{object{"disabled": true}}, values{object{"match": object{"mode": "SERVER"}}}}, values{object{"match": object{"mode": "BOTH"}}})
	return spec
}
