package jwt

import (
	"fmt"
	"sync"
	"testing"
)

// What is remembered is bounded, in number and in bytes; what is asked for stays; and what other keys verified is not known.
func TestKnownIsBounded(t *testing.T) {
	keys, others := new(Keys), new(Keys)
	others.text = "others"
	for _, length := range []int{10, 2048} {
		var k known
		often := fmt.Sprintf("%0*d", length, 1)
		k.add(often, keys, &Claims{})
		for i := range 10_000 {
			k.add(fmt.Sprintf("%0*d", length, i+2), keys, &Claims{})
			if i%64 == 0 && k.get(often, keys) == nil {
				t.Fatalf("after %d others a token that comes often is forgotten", i)
			}
		}
		entries, bytes := k.young.Load().entries.Load()+k.old.Load().entries.Load(), k.young.Load().bytes.Load()+k.old.Load().bytes.Load()
		if entries > 2*maxKnown || bytes > 2*(maxKnownBytes+4*maxToken) {
			t.Errorf("%d entries, %d bytes", entries, bytes)
		}
		if k.get(fmt.Sprintf("%0*d", length, 2), keys) != nil || k.get(often, others) != nil || k.get(often, nil) != nil {
			t.Error("known although forgotten, or verified by other keys")
		}
	}
}

// Many may ask and add at once.
func TestKnownAtOnce(t *testing.T) {
	var k known
	keys := new(Keys)
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for i := range 3 * maxKnown / 8 {
				k.add(fmt.Sprint(i), keys, &Claims{})
				k.get(fmt.Sprint(i/2), keys)
			}
		})
	}
	wait.Wait()
	if n := k.young.Load().entries.Load(); n > maxKnown+8 {
		t.Errorf("%d entries", n)
	}
}
