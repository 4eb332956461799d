// Package kubernetes finds the endpoints of services in a Kubernetes cluster, from its Services and EndpointSlices. It speaks to the API
// server over plain HTTP, and needs no client library.
//
// A [Resolver] is the discovery of a mesh or of a layer:
//
//	resolver := new(kubernetes.Resolver) // in a pod
//	m, err := mesh.New(ctx, mesh.WithPolicyDir("mesh.d"), mesh.WithDiscovery(resolver))
//	resp, err := m.Client().Get("http://orders.shop/")
//
// # Endpoints
//
// An endpoint that is ready takes calls. One that terminates drains: it ends its calls and gets no new ones. If none is ready, those that
// terminate and still serve take calls, as kube-proxy has it. Others are no endpoints. Of a service with two families of
// addresses, the endpoints are those of the Service's first family, or of the other if none of the first takes calls. Hints
// for nodes and zones (trafficDistribution) are followed as kube-proxy does, if [Resolver].Node and Zone are known.
//
// Ports are those of the Service, by name, and lead to the ports that each slice says: pods of two versions may differ. A pod that does not
// serve a port yet, while a rollout adds it, gets no calls to that port, and a port that the Service does not have gets none at all; only a
// headless Service leads to any port of its pods, as its name in DNS does. Ports of UDP and SCTP are left out. The zone of an endpoint is that of its slice, its region is
// [Resolver].Region; the labels istio-locality and topology.kubernetes.io/region of its pod come first. Its labels are those of its pod, security.istio.io/tlsMode
// among them, and its service account is "namespace/name": a mesh expects the SPIFFE ID
// spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME, as Istio writes it. Both come from the pod by its uid, so hand-made endpoints have none.
//
// A Service of type ExternalName is looked up in DNS, and its endpoints take calls on the port that the caller asks for. One without
// EndpointSlices is known, and empty.
//
// # What is read
//
// Each called service is read by a watch of the Service by its name, a watch of its EndpointSlices by their label, and, if it selects pods
// and [Resolver].Pods wants them, a watch of these pods by the selector. If more than 50 services of a namespace are called, one watch of
// all Services and one of all EndpointSlices of the namespace take the place of the first two; pods are never read by namespace. A
// service that does not exist costs one watch. Changes are collected for 50 to 100 ms. If the server cannot be reached, or answers with an
// error, the last endpoints hold; the watch is resumed where it was, and read anew only if the server says that it must be.
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
// or a ClusterRole with these rules. The last one is for labels and service accounts; it lets this process read the pods of the namespace
// with the values of their environment variables. Without it, set [Resolver].Pods.
//
// A denial is an error that says "denied". What was read before holds. If it comes at the start, calls fail, rather than leave the mesh;
// only a name that the DNS of the cluster does not know either is taken for a host outside.
//
// # What is not done
//
// sessionAffinity, internalTrafficPolicy and externalTrafficPolicy are not followed: Envoy does not either. The weights that other
// implementations read from annotations mean nothing here. appProtocol is not a matter of endpoints: whoever reads Services as documents, as
// policy/kubernetes does, knows by it, or by the names of ports, which ports speak HTTP/2. Labels of Nodes are not read, since that needs a right
// for the whole cluster: see [Resolver].Region.
package kubernetes
