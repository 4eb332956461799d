package kubernetes

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// accountDir is the folder with the service account of a pod.
const accountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// InCluster returns the client of a pod. The API server comes from the environment; token, certificate authority and namespace come from
// the pod's service account.
func InCluster() (*Client, error) { return inCluster(accountDir) }

func inCluster(dir string) (*Client, error) {
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, errors.New("kubernetes: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set: this process does not run in a pod")
	}
	namespace, err := os.ReadFile(filepath.Join(dir, "namespace"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("kubernetes: namespace: %w", err)
	}
	return New(Config{
		Server:    "https://" + net.JoinHostPort(host, port),
		Namespace: strings.TrimSpace(string(namespace)),
		// The file is required: with the roots of the system, any server with a certificate for this address would be trusted.
		CAFile:    filepath.Join(dir, "ca.crt"),
		TokenFile: filepath.Join(dir, "token"),
	})
}
