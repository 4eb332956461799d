package mesh

import (
	"io"
	"net"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/nosidecar/mesh/policy"
	"github.com/nosidecar/mesh/policy/authz"
)

// A change is looked through while a handler takes its connection over: the request may have left the register, and the connection
// not have been in it. No call from outside can be held between the two, so this is asked of the register itself.
func TestConnectionTakenOverDuringAChangeIsDecidedAboutAgain(t *testing.T) {
	m, err := New(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	request := facts{view: authz.NewRequest(httptest.NewRequest("GET", "/", nil), "", 0)}
	before := m.server.running.changes.Load()
	if err := m.Apply(policy.Source{Name: "deny.yaml", Data: []byte(`
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: default}
spec: {action: DENY, rules: [{}]}
`)}); err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	defer near.Close()
	taken := m.server.running.takeOver(&request, before, near)
	far.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer read %d, %v; want the end of a connection that is denied", n, err)
	}
	taken.Close()
	if n := Running(m); n != 0 {
		t.Errorf("%d left in the register", n)
	}
}
