package authz_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"github.com/nosidecar/mesh/policy/authz"
)

// FuzzHeadersOverHTTP2 sends headers and hosts that only HTTP/2 carries as they are. Whatever a handler would take for a value
// that a DENY policy names is denied, and an ALLOW policy allows nothing else than its value.
func FuzzHeadersOverHTTP2(f *testing.F) {
	peer := newPeerHTTP2(f, judgeHTTP2(f))
	for kind := range uint8(5) {
		for _, lines := range [][2]string{
			{"admin", ""}, {" admin", "user"}, {"admin\t", "admin"}, {"user, admin", ""}, {"user", ",admin ,"}, {"\u00a0admin", "x"}, {"\"admin\"", "a"},
			{"YWRtaW4=", "dXNlcg"}, {" YWRtaW4", ""}, {"dXNlcg==,YWRtaW4=", ""}, {"Secret.Example", ""}, {"secret.example.:80", "a"}, {"a", "secret.example."},
			{"u@secret.example", ""}, {"secret.example:", ""}, {"[secret.example]:80", ""}, {"adm\u0131n", ""}, {"\u017fecret.example", "a"}, {"a", "\u017fecret.example"},
			{"[secret.example.]:", ""}, {"secret.example\u0085", ""}, {" u@secret.example. ", ""}, {"", "admin"}, {"admin,", "admin"},
		} {
			f.Add(kind, lines[0], lines[1], kind%2 == 0)
		}
	}
	f.Fuzz(func(t *testing.T, kind uint8, first, second string, twice bool) {
		name := []string{"x-role", "x-role-bin", "user-agent", "host", ":path"}[kind%5]
		fields := [][2]string{{name, first}}
		authority, path := "shop.example", "/"
		switch name {
		case "host":
			authority, fields = first, nil
		case ":path":
			path, fields, name = "http://"+first, nil, "host"
		}
		if twice {
			fields = append(fields, [2]string{name, second})
		}
		if fault := peer.send(t, http.MethodGet, authority, path, fields); fault != "" {
			t.Errorf(":authority %q, :path %q and %q: %s", authority, path, fields, fault)
		}
	})
}

// Over HTTP/2, net/http takes anything for a method. What is none is denied wherever a policy is enforced, whatever a handler takes it for.
func TestMethodsOverHTTP2(t *testing.T) {
	compiled := func(action authz.Action, o authz.Operation) *authz.Authorizer {
		a, err := authz.Compile([]authz.Policy{{Name: "ns/p", Action: action, Rules: []authz.Rule{{To: []authz.Operation{o}}}}}, authz.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	denies := compiled(authz.Deny, authz.Operation{Methods: []string{"DELETE"}})
	allowsOthers := compiled(authz.Allow, authz.Operation{NotMethods: []string{"DELETE"}})
	var arrived []string
	peer := newPeerHTTP2(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived = append(arrived, r.Method)
		view := authz.NewRequest(r, "", 0)
		for _, a := range []*authz.Authorizer{denies, allowsOthers} {
			d := a.Decide(&view)
			if other := r.Method == "PATCH" || r.Method == "delete"; d.Allowed != other || d.BadRequest != (!other && r.Method != "DELETE") {
				w.Header().Add("X-Fault", d.Reason)
			}
		}
	}))
	sent := []string{"DELETE", "DELETE ", " DELETE", "DELETE /", "DEL\"ETE", "DELETE\u00a0", "PATCH", "delete"}
	for _, method := range sent {
		if fault := peer.send(t, method, "shop.example", "/", nil); fault != "" {
			t.Errorf("%q: %s", method, fault)
		}
	}
	if len(arrived) != len(sent) {
		t.Errorf("%q arrived, of %q", arrived, sent)
	}
}

// judgeHTTP2 returns a handler that holds decisions about a request against what it would take its headers for itself. What is
// wrong goes into the header X-Fault of its response.
func judgeHTTP2(tb testing.TB) http.Handler {
	compiled := func(action authz.Action, r authz.Rule) *authz.Authorizer {
		a, err := authz.Compile([]authz.Policy{{Name: "ns/p", Action: action, Rules: []authz.Rule{r}}}, authz.Config{})
		if err != nil {
			tb.Fatal(err)
		}
		return a
	}
	type policies struct{ denies, deniesPrefix, allows, allowsOthers *authz.Authorizer }
	byName := make(map[string]policies)
	for _, name := range []string{"X-Role", "X-Role-Bin", "User-Agent"} {
		key := "request.headers[" + name + "]"
		one := func(values, notValues []string) authz.Rule {
			return authz.Rule{When: []authz.Condition{{Key: key, Values: values, NotValues: notValues}}}
		}
		byName[name] = policies{
			compiled(authz.Deny, one([]string{"admin"}, nil)), compiled(authz.Deny, one([]string{"adm*"}, nil)),
			compiled(authz.Allow, one([]string{"admin"}, nil)), compiled(authz.Allow, one(nil, []string{"admin"})),
		}
	}
	hosts := compiled(authz.Deny, authz.Rule{To: []authz.Operation{{Hosts: []string{"secret.example", "secret.example:*"}}}})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		view := authz.NewRequest(r, "", 0)
		fault := func(text string) { w.Header().Add("X-Fault", text) }
		for name, p := range byName {
			lines := r.Header[name]
			for _, value := range taken(name, lines) {
				if value == "admin" && (p.denies.Decide(&view).Allowed || p.allowsOthers.Decide(&view).Allowed) {
					fault(name + ": a denied value passes")
				}
				if strings.HasPrefix(value, "adm") && p.deniesPrefix.Decide(&view).Allowed {
					fault(name + ": a denied prefix passes")
				}
			}
			if p.allows.Decide(&view).Allowed && (len(lines) != 1 || lines[0] != "admin" && decoded(lines[0]) != "admin") {
				fault(name + ": another value is allowed")
			}
		}
		for _, host := range append(r.Header["Host"], r.Host, r.URL.Host) {
			host = strings.TrimSpace(host)
			if name, _, err := net.SplitHostPort(host); err == nil {
				host = name
			}
			if strings.EqualFold(strings.TrimRight(host, "."), "secret.example") && hosts.Decide(&view).Allowed {
				fault("a denied host passes")
			}
		}
	})
}

// taken returns what handlers may take the lines of a header for.
func taken(name string, lines []string) (values []string) {
	if len(lines) > 0 {
		lines = append(lines[:len(lines):len(lines)], strings.Join(lines, ","))
	}
	for _, line := range lines {
		elements := []string{line}
		if name != "User-Agent" {
			elements = append(elements, strings.Split(line, ",")...)
		}
		for _, e := range elements {
			values = append(values, e, strings.TrimSpace(e), textproto.TrimString(e))
			if strings.HasSuffix(name, "-Bin") {
				values = append(values, decoded(strings.TrimSpace(e)))
			}
		}
	}
	return values
}

// decoded returns the value of a binary header.
func decoded(value string) string {
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(value, "="))
	if err != nil {
		return ""
	}
	return string(b)
}

// peerHTTP2 is a client that sends what no client would. Its connection lasts until the server ends it.
type peerHTTP2 struct {
	addr string

	conn    net.Conn
	framer  *http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
	stream  uint32
}

func newPeerHTTP2(tb testing.TB, h http.Handler) *peerHTTP2 {
	server := httptest.NewUnstartedServer(h)
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	p := &peerHTTP2{addr: server.Listener.Addr().String()}
	tb.Cleanup(func() {
		p.close()
		server.Close()
	})
	return p
}

func (p *peerHTTP2) close() {
	if p.conn != nil {
		_ = p.conn.Close()
		p.conn = nil
	}
}

// send sends a request and returns the header X-Fault of the response. A request that the server refuses has none.
func (p *peerHTTP2) send(t *testing.T, method, authority, path string, fields [][2]string) string {
	t.Helper()
	if p.conn == nil {
		p.dial(t)
	}
	p.block.Reset()
	all := append([][2]string{{":method", method}, {":scheme", "http"}, {":authority", authority}, {":path", path}}, fields...)
	for _, f := range all {
		if len(f[1]) > 4096 {
			return "" // a frame would not hold it
		}
		if err := p.encoder.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true}); err != nil {
			t.Fatal(err)
		}
	}
	_ = p.conn.SetDeadline(time.Now().Add(time.Minute))
	id := p.stream
	p.stream += 2
	err := p.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndStream: true, EndHeaders: true})
	for err == nil {
		var frame http2.Frame
		if frame, err = p.framer.ReadFrame(); err != nil {
			break
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = p.framer.WriteSettingsAck()
			}
		case *http2.GoAwayFrame:
			p.close()
			return ""
		case *http2.RSTStreamFrame:
			if frame.StreamID == id {
				return ""
			}
		case *http2.MetaHeadersFrame:
			for _, f := range frame.Fields {
				if frame.StreamID == id && f.Name == "x-fault" {
					return f.Value
				}
			}
			if frame.StreamID == id {
				return ""
			}
		}
	}
	p.close() // the server may end the connection of a peer that is rude
	if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
		t.Fatal(err)
	}
	return ""
}

func (p *peerHTTP2) dial(t *testing.T) {
	t.Helper()
	conn, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	p.conn, p.stream = conn, 1
	p.framer = http2.NewFramer(p.conn, p.conn)
	p.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	p.encoder = hpack.NewEncoder(&p.block)
	_ = p.conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := p.conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	if err := p.framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
}
