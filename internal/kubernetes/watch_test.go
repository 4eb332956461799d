package kubernetes_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/nosidecar/mesh/internal/kubernetes"
	"github.com/nosidecar/mesh/internal/kubernetes/kubetest"
	"github.com/nosidecar/mesh/internal/leak"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

var things = kubernetes.Resource{Group: "example.com", Version: "v1", Plural: "things", Kind: "Thing"}

func thing(name, value string) string {
	return fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Thing","metadata":{"namespace":"a","name":%q,"labels":{"value":%q}},"spec":{"value":%q}}`, name, value, value)
}

// text is a state in one line.
func text(s kubernetes.State[string]) string {
	var all []string
	for key, value := range s.Objects {
		all = append(all, key.Name+"="+value)
	}
	slicesSort(all)
	var changed []string
	for _, key := range s.Changed {
		changed = append(changed, key.Name)
	}
	return strings.Join(all, " ") + " [" + strings.Join(changed, " ") + "]"
}

func TestAStateIsWholeAndFollowsChanges(t *testing.T) {
	for _, mode := range []string{"streamed", "refused", "torn"} {
		t.Run(mode, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := kubetest.New(things)
				s.NoWatchList, s.Torn = mode == "refused", mode == "torn"
				s.Apply(thing("x", "1"), thing("y", "1"))
				w := watch(t, s.Memory(t))
				w.want("x=1 y=1 [x y]")
				s.Apply(thing("x", "2"), thing("z", "1"))
				w.want("x=2 y=1 z=1 [x z]")
				s.Delete("Thing", "a", "y")
				w.want("x=2 z=1 [y]")
				s.EndWatches()
				s.Delete("Thing", "a", "x")
				w.want("z=1 [x]")
				s.EndWatches()
				s.Expire()
				s.Apply(thing("z", "2"))
				w.want("z=2 [z]")
			})
		})
	}
}

var _ = context.Canceled
