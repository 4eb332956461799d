package attempt

import (
	"net/http"
	"sync/atomic"

	"github.com/nosidecar/mesh/internal/body"
	"github.com/nosidecar/mesh/internal/deadline"
)

// Timed is what a try with a limit of its own, or with a trace, needs. The transport may keep parts of it.
type Timed struct {
	Context deadline.Context
	Sent    http.Request
	Body    body.Reader // see NeedsBody
	Traced  bool
	Begun   atomic.Bool // the transport has begun to write the request, if that is traced
}

// NeedsBody reports whether the try has to learn when its response ends, because nothing else ends its context.
func (t *Timed) NeedsBody() bool {
	return (t.Traced || t.Context.Limited()) && !t.Context.Follows()
}
