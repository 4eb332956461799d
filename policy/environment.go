package policy

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"strconv"
	"strings"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/policy/internal/istio"
)

// WorkloadFromEnv returns the workload of the process, from the environment variables and files that Istio's agent uses. Fields that the
// environment does not set are empty.
//
//	Namespace      POD_NAMESPACE, otherwise the file in which Kubernetes stores the namespace of the service account
//	Labels         ISTIO_METAJSON_LABELS, a JSON object, overridden by the file /etc/istio/pod/labels of the downward API
//	Address        INSTANCE_IP, otherwise POD_IP
//	TrustDomain    TRUST_DOMAIN
//	ServiceAccount SERVICE_ACCOUNT
//	ClusterDomain  the search list of /etc/resolv.conf, which contains "svc.cluster.local" in a pod
//	Locality       the label istio-locality ("region.zone.subzone"), otherwise the labels topology.kubernetes.io/region and
//	               /zone and topology.istio.io/subzone
//
// The error names variables and files that are there but cannot be read.
func WorkloadFromEnv() (Workload, error) {
	return workloadFrom(os.Getenv, os.ReadFile)
}

// Or returns w with its empty fields set to those of defaults. Labels are not merged.
func (w Workload) Or(defaults Workload) Workload {
	w.Namespace = cmp.Or(w.Namespace, defaults.Namespace)
	w.RootNamespace = cmp.Or(w.RootNamespace, defaults.RootNamespace)
	w.ClusterDomain = cmp.Or(w.ClusterDomain, defaults.ClusterDomain)
	w.TrustDomain = cmp.Or(w.TrustDomain, defaults.TrustDomain)
	w.ServiceAccount = cmp.Or(w.ServiceAccount, defaults.ServiceAccount)
	w.Paths = cmp.Or(w.Paths, defaults.Paths)
	w.Locality = cmp.Or(w.Locality, defaults.Locality)
	w.Address = cmp.Or(w.Address, defaults.Address)
	if w.Keys == nil {
		w.Keys = defaults.Keys
	}
	if w.Files == nil {
		w.Files = defaults.Files
	}
	if w.Expressions == nil {
		w.Expressions = defaults.Expressions
	}
	if w.Filters == nil {
		w.Filters = defaults.Filters
	}
	w.Service = cmp.Or(w.Service, defaults.Service)
	w.Unlabelled = w.Unlabelled || defaults.Unlabelled
	w.AllowByDefault = w.AllowByDefault || defaults.AllowByDefault
	if w.Labels == nil {
		w.Labels = defaults.Labels
	}
	if w.Ports == nil {
		w.Ports = defaults.Ports
	}
	return w
}

func workloadFrom(getenv func(string) string, readFile func(string) ([]byte, error)) (Workload, error) {
	var errs []error
	read := func(path string) string {
		text, err := readFile(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("policy: %w", err))
		}
		return string(text)
	}
	w := Workload{
		Namespace:      getenv("POD_NAMESPACE"),
		TrustDomain:    getenv("TRUST_DOMAIN"),
		ServiceAccount: getenv("SERVICE_ACCOUNT"),
		Address:        cmp.Or(getenv("INSTANCE_IP"), getenv("POD_IP")),
	}
	if w.Namespace == "" {
		w.Namespace = strings.TrimSpace(read("/var/run/secrets/kubernetes.io/serviceaccount/namespace"))
	}
	if text := getenv("ISTIO_METAJSON_LABELS"); text != "" {
		if err := json.Unmarshal([]byte(text), &w.Labels); err != nil {
			errs = append(errs, fmt.Errorf("policy: ISTIO_METAJSON_LABELS: %w", err))
		}
	}
	const labelsFile = "/etc/istio/pod/labels"
	labels, err := parseLabels(read(labelsFile))
	if err != nil {
		errs = append(errs, fmt.Errorf("policy: %s: %w", labelsFile, err))
	}
	if w.Labels == nil {
		w.Labels = labels
	} else {
		maps.Copy(w.Labels, labels)
	}
	w.ClusterDomain = clusterDomain(read("/etc/resolv.conf"))
	w.Locality = localityOf(w.Labels)
	return w, errors.Join(errs...)
}

// parseLabels parses labels as the downward API writes them: one key="value" per line, quoted as in Go.
func parseLabels(text string) (map[string]string, error) {
	var labels map[string]string
	number := 0
	for line := range strings.Lines(text) {
		number++
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		key, quoted, ok := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !ok || err != nil || key == "" {
			return nil, fmt.Errorf(`line %d is not key="value"`, number)
		}
		if labels == nil {
			labels = make(map[string]string)
		}
		labels[key] = value
	}
	return labels, nil
}

// clusterDomain returns the cluster domain in the search list of a resolv.conf, or "" if there is none.
func clusterDomain(resolvConf string) string {
	for line := range strings.Lines(resolvConf) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "search" {
			continue
		}
		for _, name := range fields[1:] {
			if domain, ok := strings.CutPrefix(strings.TrimSuffix(name, "."), "svc."); ok {
				return domain
			}
		}
	}
	return ""
}

func localityOf(labels map[string]string) discovery.Locality {
	if own := labels[istio.LocalityLabel]; own != "" {
		return istio.LabelledLocality(own)
	}
	return discovery.Locality{
		Region:  labels["topology.kubernetes.io/region"],
		Zone:    labels["topology.kubernetes.io/zone"],
		SubZone: labels["topology.istio.io/subzone"],
	}
}
