package incoming

import (
	"io"
	"net/http"
	"strconv"

	"github.com/nosidecar/mesh/internal/field"
)

// Refuse answers a request with a status and a text. A gRPC call is answered with the gRPC code that stands for that status.
func Refuse(w http.ResponseWriter, r *http.Request, status int, code, text string) {
	h := w.Header()
	if field.IsGRPC(r.Header) {
		h["Content-Type"], h["Grpc-Status"], h["Grpc-Message"] = []string{"application/grpc"}, []string{code}, []string{text}
		w.WriteHeader(http.StatusOK)
		return
	}
	h["Content-Type"], h["Content-Length"] = []string{"text/plain"}, []string{strconv.Itoa(len(text))}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) // a peer that has gone needs no answer
}
