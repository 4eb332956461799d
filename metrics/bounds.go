package metrics

import (
	"cmp"
	"maps"
	"net/http"
	"sync"

	"github.com/nosidecar/mesh/internal/asserted"
	"github.com/nosidecar/mesh/internal/field"
	"github.com/nosidecar/mesh/internal/workload"
	"github.com/nosidecar/mesh/metrics/internal/peermeta"
)

// hosts bounds the number of hosts that get a label value of their own although no document names them. With DNS, every name may
// turn out to be a service, and callers may take names from the requests that they serve.
type hosts struct {
	most int

	mu   sync.Mutex
	used map[string]int64 // when the host was last used, in Unix seconds
}

// admit reports whether a host may have a label value of its own.
func (h *hosts) admit(host string, documented bool, now int64) bool {
	if documented {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, known := h.used[host]; !known && len(h.used) >= h.most {
		return false
	}
	h.used[host] = now
	return true
}

func (h *hosts) sweep(before int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	maps.DeleteFunc(h.used, func(_ string, used int64) bool { return used < before })
}

// claims are the workloads that authenticated peers claim to be. The number of workloads per peer is bounded: otherwise one peer
// could create any number of series.
type claims struct {
	mu      sync.Mutex
	used    map[claim]int64 // when the claim was last used, in Unix seconds
	perPeer map[string]int
}

type claim struct {
	peer string
	workload.Workload
}

const (
	mostClaimsOfPeer = 64
	mostClaims       = 16 << 10
)

func (c *claims) admit(peer string, w workload.Workload, now int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := claim{peer, w}
	if _, known := c.used[key]; !known {
		if c.perPeer[peer] >= mostClaimsOfPeer || len(c.used) >= mostClaims {
			return false
		}
		c.perPeer[peer]++
	}
	c.used[key] = now
	return true
}

func (c *claims) sweep(before int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key, used := range c.used {
		if used >= before {
			continue
		}
		delete(c.used, key)
		if c.perPeer[key.peer]--; c.perPeer[key.peer] == 0 {
			delete(c.perPeer, key.peer)
		}
	}
}

// tooLong stands for metadata that is too long to be trusted, and so need not be kept. It is refused in the same way.
const tooLong = "too long"

// peerMetadata returns the metadata of a peer in a header, "" if there are none.
func peerMetadata(header http.Header) string {
	value := field.First(header, asserted.PeerMetadata)
	if len(value) > peermeta.MaxSize {
		return tooLong
	}
	return value
}

// trustedClaim returns the workload that a peer claims to be. A claim is trusted only if the peer has proved an identity, and only if
// it is about the namespace of that identity.
func (m *Metrics) trustedClaim(peer, value string, now int64) (workload.Workload, bool) {
	if value == "" || peer == "" {
		return workload.Workload{}, false
	}
	said, err := peermeta.Decode(value)
	if err == nil && said.Namespace == workload.AccountOf(peer).Namespace && said.Namespace != "" {
		w := workload.Describe(said.Workload, said.Namespace, cmp.Or(said.Cluster, m.settings.own.Cluster), said.Labels)
		if m.claims.admit(peer, w, now) {
			return w, true
		}
	}
	m.state.metadataRefused.Inc()
	return workload.Workload{}, false
}
