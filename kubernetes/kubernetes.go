// Package kubernetes connects a mesh to the Kubernetes cluster that the process runs in. Documents come from the custom resources of the
// API server, endpoints from Services and EndpointSlices.
//
//	m, err := mesh.New(ctx, kubernetes.InCluster())
//
// docs/kubernetes.md says what a pod needs: rights, labels and an identity. Programs that want only documents or only endpoints use
// policy/kubernetes or discovery/kubernetes.
package kubernetes

import (
	"cmp"
	"errors"
	"io/fs"
	"os"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/discovery"
	cluster "github.com/nosidecar/mesh/discovery/kubernetes"
	kube "github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/policy"
	documents "github.com/nosidecar/mesh/policy/kubernetes"
)

// InCluster is Config{}.Option(): documents and endpoints of the cluster that the process runs in.
func InCluster() mesh.Option { return Config{}.Option() }

// Config says how a process takes part in the mesh of a cluster. The zero value is for a process in a pod.
type Config struct {
	// Kubeconfig is the path of a kubeconfig, for a process outside of the cluster, such as one on a developer's machine. "" means that
	// the process is in a pod.
	Kubeconfig string

	// Context is the context of the kubeconfig; "" means its current one.
	Context string

	// Namespaces are further namespaces whose documents are followed from the start, besides the process's own and the root namespace. A
	// namespace that calls go to is followed from the first call on.
	Namespaces []string

	// Locality is where the process runs. It decides which endpoints are near, and which are meant for its zone. Empty fields are those of
	// the environment, see policy.WorkloadFromEnv. The Region is also that of all endpoints, unless labels of their pods say otherwise. Set
	// it here, not with mesh.WithWorkload, which does not reach the endpoints.
	Locality discovery.Locality

	// Events turns on Events about refused documents, in the namespace of the document: one per generation of the document, however
	// many processes refuse it, and at most one per second. It needs the right to create events; a lack of that right is not
	// reported. Events replace the default log of loads: refused documents are then reported by Mesh.Status and to observers with
	// PolicyLoad, but not logged.
	Events bool
}

// Option returns one option in place of mesh.WithPolicyFeed, mesh.WithDiscovery and mesh.WithEmptyPolicy, since a namespace may well have
// no documents, and of mesh.WithWorkload with Locality and, with a kubeconfig, the namespace of the context. Other fields of the
// workload, such as RootNamespace, come from another mesh.WithWorkload.
//
// In a pod, the namespace, labels and locality come from the environment, see policy.WorkloadFromEnv, and the node from NODE_NAME or else
// from the token. mesh.New fails if the labels are unknown, because then no policy with a selector would protect the process.
func (c Config) Option() mesh.Option {
	return all(c.options)
}

// all combines several options into one. The type that options are applied to has no name outside of package mesh; T stands for it.
func all[T any, O ~func(T) error](options func() ([]O, error)) O {
	return func(to T) error {
		each, err := options()
		for _, option := range each {
			err = errors.Join(err, option(to))
		}
		return err
	}
}

func (c Config) options() ([]mesh.Option, error) {
	client, err := c.client()
	if err != nil {
		return nil, err
	}
	environment, err := policy.WorkloadFromEnv()
	if err != nil {
		return nil, err
	}
	place := environment.Locality
	place = discovery.Locality{Region: cmp.Or(c.Locality.Region, place.Region), Zone: cmp.Or(c.Locality.Zone, place.Zone),
		SubZone: cmp.Or(c.Locality.SubZone, place.SubZone)}
	feed := &documents.Feed{Client: client, Namespaces: c.Namespaces}
	options := []mesh.Option{
		mesh.WithDiscovery(&cluster.Resolver{
			Client: client, Need: feed.Need, Zone: place.Zone, Region: place.Region, Node: os.Getenv("NODE_NAME"),
		}),
		mesh.WithEmptyPolicy(),
	}
	if c.Locality != (discovery.Locality{}) {
		options = append(options, mesh.WithWorkload(policy.Workload{Locality: place}))
	}
	if c.Events {
		e := newEvents(feed, (*kube.Client)(client))
		options = append(options, mesh.WithPolicyFeed(e), mesh.WithObserver(mesh.Observer{PolicyLoad: e.loaded}))
	} else {
		options = append(options, mesh.WithPolicyFeed(feed))
	}
	if c.Kubeconfig != "" {
		options = append(options, mesh.WithWorkload(policy.Workload{Namespace: (*kube.Client)(client).Namespace()}))
	} else if err := labelled(labelsFile); err != nil {
		return nil, err
	}
	return options, nil
}

func (c Config) client() (*cluster.Client, error) {
	if c.Kubeconfig != "" {
		return cluster.Kubeconfig(c.Kubeconfig, c.Context)
	}
	return cluster.InCluster()
}

// labelsFile is the file into which the downward API writes the labels of the pod.
const labelsFile = "/etc/istio/pod/labels"

// labelled returns an error if the labels of the pod are unknown.
func labelled(file string) error {
	if os.Getenv("ISTIO_METAJSON_LABELS") != "" {
		return nil
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return errors.New("kubernetes: the labels of the pod are unknown, so no policy with a selector would protect it: mount metadata.labels of the " +
		"downward API as the file " + file + ", as docs/kubernetes.md shows, or set ISTIO_METAJSON_LABELS")
}
