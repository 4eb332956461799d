package tlsid_test

import (
	"context"
	"errors"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/nosidecar/mesh/tlsid"
)

// TestKeeper_SourceThatNeverWaits: such a source is slowed down. One that yields nothing at all has failed.
func TestKeeper_SourceThatNeverWaits(t *testing.T) {
	for name, test := range map[string]struct {
		next  func(*tlsid.Identity) (*tlsid.Identity, error)
		most  int64 // in a minute
		fails bool
	}{
		"identities": {func(id *tlsid.Identity) (*tlsid.Identity, error) { return id, nil }, 100 + 60*10 + 1, false},
		"errors":     {func(*tlsid.Identity) (*tlsid.Identity, error) { return nil, errors.New("away") }, 10 + 60 + 1, true},
		"neither":    {func(*tlsid.Identity) (*tlsid.Identity, error) { return nil, nil }, 10 + 60 + 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ca, err := tlsid.NewDevCA("cluster.local")
				if err != nil {
					t.Fatal(err)
				}
				id, err := ca.Identity("default", "orders")
				if err != nil {
					t.Fatal(err)
				}
				var yields, failures atomic.Int64
				keeper := tlsid.Keep(watch(func(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
					return func(yield func(*tlsid.Identity, error) bool) {
						for yield(test.next(id)) {
							if yields.Add(1) > 100_000 {
								<-ctx.Done()
								return
							}
						}
					}
				}), tlsid.Hooks{Failed: func(error) { failures.Add(1) }})
				defer keeper.Close()
				time.Sleep(time.Minute)
				synctest.Wait()
				if n := yields.Load(); n > test.most || n < test.most/2 {
					t.Errorf("it yielded %d times in a minute, want up to %d", n, test.most)
				}
				if _, err := keeper.Identity(); (err != nil) != test.fails || (failures.Load() > 0) != test.fails {
					t.Errorf("%d failures, Identity: %v", failures.Load(), err)
				}
			})
		})
	}
}
