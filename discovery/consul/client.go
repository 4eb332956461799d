package consul

import (
	"github.com/hashicorp/consul/api"

	"github.com/nosidecar/mesh/internal/consul"
)

// NewClient returns a client of the agent that config describes, nil being the environment (CONSUL_HTTP_ADDR and so on), as
// api.NewClient does, that many watches may share. config is not changed. The client
//   - reads the token file again for each request, where the token comes from there;
//   - speaks HTTP/2 over HTTPS, and has one connection for up to 250 blocking queries; if the agent does not answer its pings, the
//     connection is given up after 30 seconds;
//   - keeps at most 64 queries blocked over plain HTTP or a unix socket, each for 10 seconds and on a connection of its own, with 8
//     connections more for everything else. Further queries are answered at once and come again every second. An agent takes 200
//     connections from an address, all processes of a host together. If it refuses one, the bound is halved, and raised again over
//     time: fifty processes of a host that start at once take some 20 seconds to find what they can have.
//   - follows no redirect, and asks no proxy over plain HTTP where it would read the token or the key of a certificate, which are errors;
//   - reads at most 128 MiB of an answer, and tells of an error the beginning, without the token.
//
// So use HTTPS where there are many services or processes. A program needs one client. Any other *api.Client works too, without
// these bounds.
func NewClient(config *api.Config) (*api.Client, error) {
	return consul.NewClient(config)
}
