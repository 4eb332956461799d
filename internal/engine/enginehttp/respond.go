package enginehttp

import (
	"net/http"

	"github.com/nosidecar/mesh/internal/engine"
	"github.com/nosidecar/mesh/internal/reply"
)

// Respond returns the response to a call that is refused with an answer. req describes the call.
func Respond(c *engine.Call, refused *engine.Refusal, req *http.Request) *http.Response {
	switch refused.Answer {
	case engine.AnswerRule:
		rule, match := c.Rule()
		return rule.Respond(req, match)
	case engine.AnswerFault:
		return refused.Fault.Response(req)
	case engine.AnswerOverloaded:
		return reply.Overflow(req)
	case engine.AnswerRateLimited:
		return reply.RateLimited(req)
	}
	return reply.New(req, http.StatusNotFound, nil)
}
