package mesh

import (
	"net"
	"net/http"
	"strconv"

	"github.com/nosidecar/mesh/internal/cors"
	"github.com/nosidecar/mesh/internal/response"
	"github.com/nosidecar/mesh/policy/route"
)

// visited is the answer to a request of a page of another origin.
type visited struct {
	response.Recorder
	visit cors.Visit
}

// cors applies the CORS policy of a request, after it was authorized and before the limits, as in Envoy: their answers have the fields of the policy,
// too. It returns the writer of the answer, and reports whether it was answered.
func (h *handler) cors(w http.ResponseWriter, r *http.Request, in *inbound) (of http.ResponseWriter, over bool) {
	view := route.NewRequest(r)
	view.Scheme, view.Port = in.called(r)
	policy := in.rules.CORS(&view)
	if policy == nil {
		return w, false
	}
	visit, ok := policy.Visit(r.Method, r.Header)
	if !ok {
		return w, false
	}
	if visit.Ends() {
		in.Preflight = true
		visit.Edit(w.Header())
		w.WriteHeader(http.StatusOK)
		return w, true
	}
	v := &visited{visit: visit}
	if in.recorder == nil {
		in.recorder = &v.Recorder
		w = in.recorder.Watch(w)
	}
	in.recorder.Editor = &v.visit
	return w, false
}

// called returns the scheme and the port that the sender of a request called, as far as it says so. Its mTLS is the mesh's: what it called is http.
func (in *inbound) called(r *http.Request) (scheme string, port int) {
	scheme, port = "http", 80
	if in.state != nil && in.Peer == "" {
		scheme, port = "https", 443
	}
	if _, written, err := net.SplitHostPort(r.Host); err == nil {
		if n, err := strconv.Atoi(written); err == nil {
			port = n
		}
	}
	return scheme, port
}
