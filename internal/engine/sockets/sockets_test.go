package sockets

import (
	"net/http"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy"
)

// Sockets to the same address under different security are found and forgotten one by one, in any order.
func TestSocketsOfOneAddress(t *testing.T) {
	template, err := NewTemplate(&http.Transport{})
	if err != nil {
		t.Fatal(err)
	}
	kinds := []Security{{}, {Kind: Mutual}, {Kind: Originated}}
	for first := range kinds {
		set, err := New(template, new(policy.Cluster), nil)
		if err != nil {
			t.Fatal(err)
		}
		var opened []*Socket
		for _, kind := range kinds {
			opened = append(opened, set.Open("10.0.0.1:80", kind, nil))
		}
		other := set.Open("10.0.0.2:80", Security{}, nil)
		for i := range kinds {
			gone := (first + i) % len(kinds)
			if set.Share("10.0.0.1:80", kinds[gone]) != opened[gone] {
				t.Fatalf("%v leads to another socket", kinds[gone])
			}
			set.Close(opened[gone])
			if opened[gone].Enter(time.Now()) == nil {
				t.Fatalf("%v is closed while it is used", kinds[gone])
			}
			opened[gone].current.Load().Leave()
			set.Close(opened[gone])
			if opened[gone].Enter(time.Now()) != nil || set.Share("10.0.0.1:80", kinds[gone]) != nil {
				t.Errorf("%v is open after its last use", kinds[gone])
			}
		}
		n := 0
		set.each(func(s *Socket) {
			n++
			if s != other {
				t.Errorf("a closed socket to %s is left", s.key.address)
			}
		})
		if n != 1 {
			t.Errorf("%d sockets are left, want 1", n)
		}
	}
}
