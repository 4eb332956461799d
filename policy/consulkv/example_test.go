package consulkv_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http/httptest"

	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul/kvtest"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/consulkv"
)

func ExampleStore() {
	agent := httptest.NewServer(kvtest.New()) // yours is a real one: leave Client out for that of the environment
	defer agent.Close()
	client, err := api.NewClient(&api.Config{Address: agent.URL})
	if err != nil {
		fmt.Println(err)
		return
	}
	store := &consulkv.Store{Prefix: "mesh/shop", Client: client}
	if _, err := store.Pull(context.Background()); errors.Is(err, fs.ErrNotExist) {
		fmt.Println("nothing is published")
	}

	// What mesh push does, which checks the documents first.
	changed, err := store.Push(context.Background(), []policy.Source{{Name: "retries.yaml", Data: []byte("kind: VirtualService")}})
	fmt.Println("changed:", changed, err)

	// What mesh.WithPolicyFeed(store) does in every process.
	for sources, err := range store.Watch(context.Background()) {
		if err != nil {
			fmt.Println(err) // the last good documents stay in force
			continue
		}
		fmt.Printf("%s: %s\n", sources[0].Name, sources[0].Data)
		return
	}
	// Output:
	// nothing is published
	// changed: true <nil>
	// consul:mesh/shop/retries.yaml: kind: VirtualService
}
