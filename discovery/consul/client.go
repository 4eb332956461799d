package consul

import (
	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul"
)

// NewClient returns a client for the agent that config describes, as api.NewClient does. Many watches may share it. nil means the
// environment (CONSUL_HTTP_ADDR and so on). config is not changed. The client
//   - reads the token file again for each request, if the token comes from a file;
//   - uses HTTP/2 over HTTPS, with one connection for up to 250 blocking queries. It gives the connection up if the agent has not answered
//     its pings for 30 seconds;
//   - over plain HTTP or a unix socket, keeps at most 64 queries blocked, each for 10 seconds and on a connection of its own, and has 8
//     more connections for everything else. Further queries are answered at once and repeated every second. An agent accepts 200
//     connections from one address, for all processes of a host together. If it refuses one, the client halves its bound and raises it
//     again over time. Fifty processes of a host that start together need about 20 seconds to settle.
//   - follows no redirect, and uses no proxy over plain HTTP that would see the token or the key of a certificate. Both are errors;
//   - reads no more of an answer than what was asked for can have: 128 MiB of documents in the KV store, 64 MiB of instances, 32 MiB of config
//     entries, 4 MiB of anything else, and half a million objects of JSON at most. More is an error;
//   - puts only the beginning of an error's text into its own errors, without the token.
//
// So use HTTPS if there are many services or processes. A program needs one client.
//
// Any other *api.Client works too, without these bounds, and nothing can add them: it hides its http.Client. A program that makes its own
// trusts the agent with its memory (an answer, or the text of an error, may have any length) and with its token (a redirect is followed).
func NewClient(config *api.Config) (*api.Client, error) {
	return consul.NewClient(config)
}
