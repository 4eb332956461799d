package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"sync/atomic"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/tlsid"
)

// authority returns a development CA. A program of yours would have its identity from files or a Workload API.
func authority() *tlsid.DevCA {
	ca, err := tlsid.NewDevCA("cluster.local")
	if err != nil {
		log.Fatal(err)
	}
	return ca
}

// member makes the mesh of a process in the namespace myapp that runs as a service account.
func (s *scene) member(ca *tlsid.DevCA, account string) *mesh.Mesh {
	return s.mesh(
		mesh.WithIdentity(ca.Source("myapp", account)),
		mesh.WithWorkload(policy.Workload{Namespace: "myapp", Labels: map[string]string{"app": account}}),
	)
}

func identities(s *scene) {
	const calls = 100
	ca := authority()
	var intruders atomic.Int64
	user := handling("user-service", func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || mesh.PeerID(r.Context()) != "spiffe://cluster.local/ns/myapp/sa/order-service" {
			intruders.Add(1)
		}
	})
	user.mesh, user.account = s.member(ca, "user-service"), "user-service"
	s.service("user-service", user)

	callAll := func(client *http.Client, method string) answers {
		return times(calls, 10, func(int) answer { return s.call(client, method, "http://user-service:3000/api/profile") })
	}
	order, web := s.member(ca, "order-service").Client(), s.member(ca, "web").Client()
	ca.Rotate() // calls go on over new connections
	gets, deletes, webs := callAll(order, http.MethodGet), callAll(order, http.MethodDelete), callAll(web, http.MethodGet)

	// A connection without a certificate gets no answer, not even a refusal.
	conn, err := net.Dial("tcp", user.listening)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	io.WriteString(conn, "GET /api/profile HTTP/1.1\r\nHost: user-service\r\n\r\n")
	plaintext, _ := io.ReadAll(conn)

	s.row("calls", "made", "specified", "measured")
	s.row("GET by order-service: 200", calls, "all", gets.ok())
	s.row("DELETE by order-service: 403", calls, "all", deletes.with(http.StatusForbidden))
	s.row("GET by web: 403", calls, "all", webs.with(http.StatusForbidden))
	s.row("bytes answered to plaintext", "", 0, len(plaintext))
	// The document also answers 1 call in 10,000 with 503, on purpose.
	s.expect(gets.ok() >= calls-2, "200 for order-service; %d of %d", gets.ok(), calls)
	s.expect(deletes.with(http.StatusForbidden) >= calls-2, "403 for another method; %d of %d", deletes.with(http.StatusForbidden), calls)
	s.expect(webs.with(http.StatusForbidden) >= calls-2, "403 for another caller; %d of %d", webs.with(http.StatusForbidden), calls)
	s.expect(intruders.Load() == 0, "nothing that is denied reaches the handler; %d did", intruders.Load())
	s.expect(len(plaintext) == 0, "no answer to plaintext; got %q", plaintext)
}
