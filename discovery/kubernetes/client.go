package kubernetes

import "github.com/nosidecar/mesh/internal/kubernetes"

// Client is a connection to an API server, which everything of a program that reads from it may share: a [Resolver], and the documents of
// a mesh. It is safe for concurrent use, and holds no goroutine. The zero value is of no use: see [InCluster] and [Kubeconfig].
type Client kubernetes.Client

// InCluster returns a client for a process in a pod: the address is that of KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT, the token
// and the certificate authority are those of the service account, in /var/run/secrets/kubernetes.io/serviceaccount. The token is read
// again as it is renewed. It sends nothing; an error says what is missing.
func InCluster() (*Client, error) {
	c, err := kubernetes.InCluster()
	return (*Client)(c), err
}

// Kubeconfig returns a client for a process outside the cluster. path is a file; "" means the files of the variable KUBECONFIG, or else
// ~/.kube/config. context is one of its contexts; "" means its current one. What such a file can ask for and this client does not do
// (plugins that are run for a token, impersonation, passwords) is an error that names it. It sends nothing.
func Kubeconfig(path, context string) (*Client, error) {
	c, err := kubernetes.Kubeconfig(path, context)
	return (*Client)(c), err
}
