package mesh

import "net/http"

// ReplaceConnections makes every endpoint answer with rt, so that a benchmark sees what the mesh itself costs.
func ReplaceConnections(m *Mesh, rt http.RoundTripper) { m.engine.ReplaceConnections(rt) }

// Clusters returns how many targets the mesh keeps state for.
func Clusters(m *Mesh) int { return m.engine.Clusters() }
