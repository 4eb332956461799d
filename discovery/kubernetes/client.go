package kubernetes

import "github.com/nosidecar/mesh/internal/kubernetes"

// Client is a connection to an API server. All parts of a program that read from the server can share it: a [Resolver], and the documents
// of a mesh. It is safe for concurrent use and has no goroutines. The zero value cannot be used: see [InCluster] and [Kubeconfig].
type Client kubernetes.Client

// InCluster returns a client for a process in a pod. The address comes from KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT. The token
// and the certificate authority are those of the service account, in /var/run/secrets/kubernetes.io/serviceaccount, and are read again when
// they are renewed. InCluster sends nothing. An error names what is missing.
func InCluster() (*Client, error) {
	c, err := kubernetes.InCluster()
	return (*Client)(c), err
}

// Kubeconfig returns a client for a process outside the cluster. path is a file. "" means the files in the variable KUBECONFIG, or else
// ~/.kube/config. context is one of its contexts, and "" means the current one. Settings that this client does not support (plugins that
// print a token, impersonation, passwords) are an error that names them. Files with a token or a certificate authority are read again when
// they change; a client certificate is read once. Kubeconfig sends nothing.
func Kubeconfig(path, context string) (*Client, error) {
	c, err := kubernetes.Kubeconfig(path, context)
	return (*Client)(c), err
}
