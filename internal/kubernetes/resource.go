package kubernetes

import (
	"encoding/json"
	"net/url"
)

// Resource is a kind in one version, with its place in the API.
type Resource struct {
	Group   string // "discovery.k8s.io"; empty for the core group
	Version string // "v1"
	Plural  string // "endpointslices"
	Kind    string // "EndpointSlice"
}

// APIVersion returns the apiVersion of the resource's objects.
func (r Resource) APIVersion() string {
	if r.Group == "" {
		return r.Version
	}
	return r.Group + "/" + r.Version
}

// String returns the resource as "endpointslices.v1.discovery.k8s.io".
func (r Resource) String() string {
	if r.Group == "" {
		return r.Plural + "." + r.Version
	}
	return r.Plural + "." + r.Version + "." + r.Group
}

// path returns the URL path of the resource. An empty namespace means all namespaces.
func (r Resource) path(namespace string) string {
	path := groupPath(r.Group, r.Version)
	if namespace != "" {
		path += "/namespaces/" + url.PathEscape(namespace)
	}
	return path + "/" + url.PathEscape(r.Plural)
}

func groupPath(group, version string) string {
	if group == "" {
		return "/api/" + url.PathEscape(version)
	}
	return "/apis/" + url.PathEscape(group) + "/" + url.PathEscape(version)
}

// Key identifies an object of a kind. Namespace is empty for kinds without namespaces.
type Key struct{ Namespace, Name string }

// Object is one object as the server sent it.
type Object struct {
	Key
	UID, ResourceVersion string
	Raw                  json.RawMessage // may lack kind and apiVersion, as the items of lists do
}
