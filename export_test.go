package mesh

import "net/http"

// ReplaceConnections makes every endpoint answer with rt, so that a benchmark sees what the mesh itself costs.
func ReplaceConnections(m *Mesh, rt http.RoundTripper) { m.engine.Template().Replace(rt) }

// Clusters returns how many targets the mesh keeps state for.
func Clusters(m *Mesh) int { return m.engine.Clusters() }

// Running returns how many requests and connections are in the register.
func Running(m *Mesh) int {
	n := 0
	for i := range m.server.running.shards {
		s := &m.server.running.shards[i]
		s.mu.Lock()
		for e := s.first; e != nil; e = e.next {
			n++
		}
		s.mu.Unlock()
	}
	return n
}
