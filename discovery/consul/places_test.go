package consul_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/discovery/consul"
	"github.com/nosidecar/mesh/internal/await"
)

// What a place says is part of each read; the open edition of Consul cannot show that it is, and refuses what it does not know.
func TestPlacesAreAskedFor(t *testing.T) {
	for name, test := range map[string]struct {
		host  string
		place consul.Place
		want  string
	}{
		"nothing":              {"web", consul.Place{}, "dc= ns= partition= peer="},
		"namespace, partition": {"web", consul.Place{Namespace: "shop", Partition: "eu"}, "dc= ns=shop partition=eu peer="},
		"datacenter":           {"web", consul.Place{Datacenter: "dc2", Partition: "eu"}, "dc=dc2 ns= partition=eu peer="},
		"peer":                 {"web", consul.Place{Peer: "other", Namespace: "shop"}, "dc= ns=shop partition= peer=other"},
		"datacenter of a host": {"web.service.dc3.consul", consul.Place{Peer: "other", Namespace: "shop"}, "dc=dc3 ns=shop partition= peer="},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan string, 1)
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				q := r.URL.Query()
				select {
				case asked <- fmt.Sprintf("%s dc=%s ns=%s partition=%s peer=%s", r.URL.Path, q.Get("dc"), q.Get("ns"), q.Get("partition"), q.Get("peer")):
				default:
				}
				w.Header().Set("X-Consul-Index", "7")
				w.Header().Set("X-Consul-LastContact", "0")
				fmt.Fprint(w, `[{"Node": {"Node": "n", "Address": "10.0.0.1"}, "Service": {"ID": "web-1", "Service": "web", "Port": 80}}]`)
			}))
			defer s.Close()
			client, err := consul.NewClient(&api.Config{Address: s.URL})
			if err != nil {
				t.Fatal(err)
			}
			resolver, err := consul.New(client, consul.Config{Places: []consul.Place{test.place}})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for endpoints, err := range resolver.Watch(ctx, discovery.Service{Host: test.host}) {
				if err != nil || len(endpoints) != 1 {
					t.Errorf("%v, %v", endpoints, err)
				}
				break
			}
			if got := await.Receive(t, "a read", asked); got != "/v1/health/service/web "+test.want {
				t.Errorf("asked for %s, want %s", got, test.want)
			}
		})
	}
}
