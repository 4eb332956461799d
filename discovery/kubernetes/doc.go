// Package kubernetes finds the endpoints of services in a Kubernetes cluster, from its Services and EndpointSlices. It talks to the API
// server with net/http and needs no client library.
//
// A [Resolver] is the discovery of a mesh or of a layer:
//
//	resolver := new(kubernetes.Resolver) // in a pod
//	m, err := mesh.New(ctx, mesh.WithPolicyDir("mesh.d"), mesh.WithDiscovery(resolver))
//	resp, err := m.Client().Get("http://orders.shop/")
//
// # Endpoints
//
// An endpoint that is ready gets calls. One that is terminating drains: it finishes its calls and gets no new ones. If no endpoint is ready,
// those that are terminating and still serve get calls, as with kube-proxy. Other endpoints are left out. If a service has two families of
// addresses, the endpoints are those of the Service's first family, or of the other family if none of the first can take calls. Hints
// for nodes and zones (trafficDistribution) are followed as kube-proxy follows them, if [Resolver].Node and Zone are known.
//
// Ports are those of the Service. By their names they lead to the ports in each slice, so pods of two versions may listen on different ports.
// A pod that does not serve a port yet, because a rollout is adding it, gets no calls to that port. A port that the Service does not have gets
// no calls at all, except that a headless Service leads to any port of its pods, as its DNS name does. UDP and SCTP ports are left out.
//
// The zone of an endpoint comes from its slice, and its region is [Resolver].Region. The labels istio-locality and
// topology.kubernetes.io/region of its pod take precedence. The labels of an endpoint are those of its pod, including
// security.istio.io/tlsMode. Its service account is "namespace/name": a mesh expects the SPIFFE ID
// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME, as in Istio. Labels and account come from the pod with the uid in the slice, so hand-made
// endpoints have neither.
//
// A Service of type ExternalName is looked up in DNS. Its endpoints get calls on the port that the caller asks for. A Service without
// EndpointSlices is known and empty.
//
// # What is read
//
// For each service that is called, the resolver opens a watch of the Service by its name, a watch of its EndpointSlices by their label, and, if
// it selects pods and [Resolver].Pods wants them, a watch of these pods by the selector. If more than 50 services of a namespace are called,
// one watch of all Services and one of all EndpointSlices of the namespace replace the first two. Pods are never read by namespace. A
// service that does not exist costs one watch. Changes are collected for 50 to 100 ms. If the server cannot be reached or answers with an
// error, the last endpoints stay in use. The watch is resumed where it ended, and everything is read again only if the server requires it.
//
// # Rights
//
// In each namespace whose services are called, the service account of this process needs
//
//	apiVersion: rbac.authorization.k8s.io/v1
//	kind: Role
//	metadata: {namespace: shop, name: mesh-discovery}
//	rules:
//	- {apiGroups: [""], resources: [services], verbs: [list, watch]}
//	- {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}
//	- {apiGroups: [""], resources: [pods], verbs: [list, watch]}
//
// or a ClusterRole with these rules. The last rule is for labels and service accounts. It also lets this process read the values of the
// environment variables of all pods in the namespace. Without this rule, set [Resolver].Pods.
//
// A denial is an error that contains "denied". What was read before stays in use. If the denial comes at the start, calls fail and do not
// bypass the mesh. Only a name that the DNS of the cluster does not know either counts as a host outside the mesh.
//
// # What is not enforced
//
// sessionAffinity, internalTrafficPolicy and externalTrafficPolicy are ignored, as in Envoy. Weights in annotations, which other
// implementations read, are ignored. appProtocol does not concern endpoints: policy/kubernetes reads Services as documents, and knows from
// appProtocol, or from the names of ports, which ports speak HTTP/2. Labels of Nodes are not read, since that needs a right for the whole
// cluster: see [Resolver].Region.
package kubernetes
