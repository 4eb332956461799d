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
	Body    body.Reader // unused if the try follows its call; see [deadline.Context.Follows]
	Traced  bool
	Begun   atomic.Bool // the transport has begun to write the request, if that is traced
}
