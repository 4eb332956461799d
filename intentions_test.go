package mesh_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"testing"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/consul/connecttest"
	"github.com/nosidecar/mesh/policy"
)

// intends has the callers of the service payment be allowed or denied.
func intends(t testing.TB, m *mesh.Mesh, sources string) {
	t.Helper()
	document := fmt.Sprintf(`{"Kind": "service-intentions", "Name": "payment", "Sources": [%s]}`, sources)
	if err := m.Apply(policy.Source{Name: "config/service-intentions/payment.json", Data: []byte(document)}); err != nil {
		t.Fatal(err)
	}
}

func TestIntentionTurnedToDenyRefusesTheNextRequest(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	server := d.member(t, "payment", "")
	d.register("payment", "payment", serveMesh(t, server, whoCalls))
	c := d.member(t, "order", "").Client()
	var reused bool
	status := func(path string) int {
		t.Helper()
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }})
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://payment"+path, nil)
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		return resp.StatusCode
	}
	for range 2 { // the first opens the connection
		if got := status("/"); got != http.StatusOK {
			t.Fatalf("without intentions: %d", got)
		}
	}
	for _, step := range []struct {
		sources, path string
		want          int
	}{
		{`{"Name": "order", "Action": "allow"}`, "/", http.StatusOK},
		{`{"Name": "order", "Action": "deny"}`, "/", http.StatusForbidden},
		{`{"Name": "order", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/v1/"}}]}, {"Name": "*", "Action": "allow"}`, "/v1/x", http.StatusOK},
		{`{"Name": "order", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/v1/"}}]}, {"Name": "*", "Action": "allow"}`, "/v2/x", http.StatusForbidden},
		{`{"Name": "*", "Action": "allow"}`, "/v2/x", http.StatusOK},
		{`{"Name": "*", "Action": "deny"}`, "/v2/x", http.StatusForbidden},
	} {
		intends(t, server, step.sources)
		if got := status(step.path); got != step.want || !reused {
			t.Errorf("%s: GET %s: %d over the same connection %v, want %d", step.sources, step.path, got, reused, step.want)
		}
	}
	if err := server.Apply(policy.Source{Name: "bad.json", Data: []byte(`{"Kind": "service-intentions", "Name": "payment", "Sources": [{"Name": "order", "Action": "allow", "Peer": "x"}]}`)}); err == nil {
		t.Error("an intention that cannot be enforced: accepted")
	}
	if got := status("/"); got != http.StatusForbidden {
		t.Errorf("after intentions that are refused: %d, want what the last good ones say", got)
	}
}

func TestIntentionTurnedToDenyEndsARequestUnderWay(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	server := d.member(t, "payment", "")
	ended := make(chan error, 1)
	d.register("payment", "payment", serveMesh(t, server, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "begun\n")
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		ended <- context.Cause(r.Context())
	}))
	intends(t, server, `{"Name": "order", "Action": "allow"}`)
	resp, err := d.member(t, "order", "").Client().Get("http://payment/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	if line, err := body.ReadString('\n'); line != "begun\n" {
		t.Fatal(line, err)
	}
	intends(t, server, `{"Name": "order", "Action": "deny"}`)
	await.Receive(t, "the end of the request", ended)
	if _, err := body.ReadString('\n'); err == nil || errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the response ends as if it was whole: %v", err)
	}
}

func TestIntentionsOverRawConnections(t *testing.T) {
	noLeaks(t)
	d := newDatacentre(t)
	server := d.member(t, "payment", "")
	d.register("payment", "payment", echoTCP(t, server.ListenTCP))
	m := d.member(t, "order", "")
	echo := func() (net.Conn, error) {
		conn, err := m.DialContext(t.Context(), "tcp", "payment:5432")
		if err != nil {
			return nil, err
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err = io.WriteString(conn, "x"); err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		if err != nil {
			conn.Close()
			return nil, err
		}
		return conn, nil
	}
	intends(t, server, `{"Name": "order", "Action": "allow"}`)
	open, err := echo()
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for name, sources := range map[string]string{
		"denied":      `{"Name": "order", "Action": "deny"}`,
		"permissions": `{"Name": "order", "Permissions": [{"Action": "allow", "HTTP": {"PathPrefix": "/"}}]}`,
		"not named":   `{"Name": "other", "Action": "allow"}`,
	} {
		intends(t, server, sources)
		if conn, err := echo(); err == nil {
			conn.Close()
			t.Errorf("%s: a connection is served", name)
		} else if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: a connection is neither served nor closed", name)
		}
	}
	if _, err := open.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the open connection goes on: %v", err)
	}
}

func TestServiceOfTheWorkloadAndOfTheIdentity(t *testing.T) {
	d := newDatacentre(t)
	m, err := mesh.New(t.Context(), mesh.WithIdentity(connecttest.Source(d.Identity("dc1", "payment"))), mesh.WithWorkload(policy.Workload{Service: "web"}))
	if err == nil {
		m.Close()
		t.Error("a workload of one service with the identity of another: accepted")
	}
}
