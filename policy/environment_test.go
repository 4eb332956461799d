package policy

import (
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"

	"github.com/nosidecar/mesh/discovery"
)

func TestWorkloadFromEnv(t *testing.T) {
	const (
		namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
		labelsFile    = "/etc/istio/pod/labels"
		resolvConf    = "/etc/resolv.conf"
	)
	tests := []struct {
		name  string
		env   map[string]string
		files map[string]string
		want  Workload
		err   string
	}{
		{name: "nothing"},
		{
			name: "variables",
			env: map[string]string{
				"POD_NAMESPACE": "shop", "INSTANCE_IP": "10.0.0.1", "POD_IP": "10.0.0.2",
				"TRUST_DOMAIN": "corp.example", "ISTIO_METAJSON_LABELS": `{"app":"cart","istio-locality":"eu.eu-a.r1"}`,
			},
			files: map[string]string{namespaceFile: "other"},
			want: Workload{
				Namespace: "shop", TrustDomain: "corp.example", Address: "10.0.0.1", Labels: map[string]string{"app": "cart", "istio-locality": "eu.eu-a.r1"},
				Locality: discovery.Locality{Region: "eu", Zone: "eu-a", SubZone: "r1"},
			},
		},
		{
			name: "files",
			env:  map[string]string{"POD_IP": "10.0.0.2"},
			files: map[string]string{
				namespaceFile: "prod\n",
				labelsFile:    "app=\"cart\"\ntopology.kubernetes.io/region=\"eu\"\n\nnote=\"a \\\"b\\\"=c\"",
				resolvConf:    "nameserver 10.0.0.10\nsearch prod.svc.corp.example svc.corp.example corp.example\noptions ndots:5\n",
			},
			want: Workload{
				Namespace: "prod", Address: "10.0.0.2", ClusterDomain: "corp.example",
				Labels:   map[string]string{"app": "cart", "topology.kubernetes.io/region": "eu", "note": `a "b"=c`},
				Locality: discovery.Locality{Region: "eu"},
			},
		},
		{
			name:  "the file's labels win over the variable's",
			env:   map[string]string{"ISTIO_METAJSON_LABELS": `{"app":"a","version":"v1"}`},
			files: map[string]string{labelsFile: `version="v2"`},
			want:  Workload{Labels: map[string]string{"app": "a", "version": "v2"}},
		},
		{
			name:  "not readable",
			env:   map[string]string{"ISTIO_METAJSON_LABELS": `{"app":1}`, "POD_NAMESPACE": "shop"},
			files: map[string]string{labelsFile: "app=cart"},
			want:  Workload{Namespace: "shop", Labels: map[string]string{"app": ""}},
			err:   "line 1 is not key=",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			getenv := func(name string) string { return tt.env[name] }
			got, err := workloadFrom(getenv, func(path string) ([]byte, error) {
				if text, ok := tt.files[path]; ok {
					return []byte(text), nil
				}
				return nil, fs.ErrNotExist
			})
			if (err != nil) != (tt.err != "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			if tt.err == "" && !maps.Equal(got.Labels, tt.want.Labels) {
				t.Errorf("labels %v, want %v", got.Labels, tt.want.Labels)
			}
			got.Labels, tt.want.Labels = nil, nil
			if got.Namespace != tt.want.Namespace || got.Address != tt.want.Address ||
				got.ClusterDomain != tt.want.ClusterDomain || got.Locality != tt.want.Locality {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}

	unreadable := errors.New("permission denied")
	_, err := workloadFrom(func(string) string { return "" }, func(string) ([]byte, error) { return nil, unreadable })
	if !errors.Is(err, unreadable) {
		t.Errorf("error %v, want %v", err, unreadable)
	}
}

func TestWorkload_Or(t *testing.T) {
	env := Workload{
		Namespace: "env", Labels: map[string]string{"app": "env"}, ClusterDomain: "env", TrustDomain: "env",
		Locality: discovery.Locality{Region: "env"}, Address: "10.0.0.1",
	}
	all := Workload{
		Namespace: "own", Labels: map[string]string{}, ClusterDomain: "own", TrustDomain: "own",
		Locality: discovery.Locality{Region: "own"}, Address: "10.0.0.2",
	}
	if got := all.Or(env); got.Namespace != "own" || len(got.Labels) != 0 || got.ClusterDomain != "own" ||
		got.TrustDomain != "own" || got.Locality.Region != "own" || got.Address != "10.0.0.2" {
		t.Errorf("Or = %+v, want what is set to win", got)
	}
	if got := (Workload{}).Or(env); got.Namespace != "env" || got.Labels["app"] != "env" || got.ClusterDomain != "env" ||
		got.TrustDomain != "env" || got.Locality.Region != "env" || got.Address != "10.0.0.1" {
		t.Errorf("Or = %+v, want the defaults", got)
	}
}
