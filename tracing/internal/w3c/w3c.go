// Package w3c has the rules of W3C Trace Context, level 2, as test requests: what a traced service must send in its own calls when it gets
// them. They include the rules that the test suite of the specification checks, https://github.com/w3c/trace-context, and some more from
// its text.
package w3c

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// Field is a header with its name as sent.
type Field struct{ Name, Value string }

// Request is a request to a service, with what is expected of its calls.
type Request struct {
	Header []Field
	Calls  int // how many calls the service must make; 0 means one

	trace string // the trace ID of the calls; "" for a new one
	state string // the tracestate of the calls
	flags byte   // the flags of the calls, except those that the sampler decides
}

// Rule is one rule of the specification.
type Rule struct {
	Name     string
	Requests []Request
}

const (
	trace  = "12345678901234567890123456789012"
	span   = "1234567890123456"
	parent = "00-" + trace + "-" + span + "-01"
)

func traceparent(values ...string) []Field { return fields("traceparent", values) }

func fields(name string, values []string) (all []Field) {
	for _, v := range values {
		all = append(all, Field{name, v})
	}
	return all
}

// restarts returns requests for which a new trace must begin.
func restarts(parents ...string) (all []Request) {
	for _, p := range parents {
		all = append(all, Request{Header: traceparent(p), flags: 2})
	}
	return all
}

// continues returns requests whose trace must continue.
func continues(parents ...string) (all []Request) {
	for _, p := range parents {
		all = append(all, Request{Header: traceparent(p), trace: trace})
	}
	return all
}

// keeps returns a request whose tracestate must be propagated as want.
func keeps(want string, lines ...string) Request {
	return Request{Header: append(traceparent(parent), fields("tracestate", lines)...), trace: trace, state: want}
}

// drops returns requests whose tracestate must not be propagated.
func drops(states ...string) (all []Request) {
	for _, s := range states {
		all = append(all, keeps("", s))
	}
	return all
}

func members(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprintf("bar%02d=%02d", i+1, i+1))
	}
	return all
}

func printable(from, to byte) string {
	var b strings.Builder
	for c := from; c <= to; c++ {
		b.WriteByte(c)
	}
	return b.String()
}

// Rules returns all rules.
func Rules() []Rule {
	keyChars := printable('a', 'z') + "0123456789_-*/"
	valueChars := printable(' ', '+') + printable('-', '<') + printable('>', '~')
	many := members(33)
	return []Rule{
		{"no headers: a trace begins", []Request{{flags: 2}}},
		{"traceparent alone: the trace goes on, with another span", continues(parent)},
		{"traceparent twice: a trace begins", []Request{
			{Header: traceparent("00-12345678901234567890123456789011-"+span+"-01", parent), flags: 2},
			{Header: traceparent(parent, parent), flags: 2}, {Header: traceparent(parent + "," + parent), flags: 2},
		}},
		{"traceparent: other names are other headers", []Request{
			{Header: fields("trace-parent", []string{parent}), flags: 2}, {Header: fields("trace.parent", []string{parent}), flags: 2},
		}},
		{"traceparent: names in upper or lower case are the same", []Request{
			{Header: fields("TraceParent", []string{parent}), trace: trace}, {Header: fields("TrAcEpArEnT", []string{parent}), trace: trace},
			{Header: fields("TRACEPARENT", []string{parent}), trace: trace},
		}},
		{"version 00: nothing may follow", restarts(parent+".", parent+"-", parent+"-what-the-future-will-be-like")},
		{"a later version: more may follow, after a dash", append(
			continues("cc"+parent[2:], "cc"+parent[2:]+"-what-the-future-will-be-like"), restarts("cc"+parent[2:]+".what-the-future-will-be-like")...)},
		{"version ff: a trace begins", restarts("ff" + parent[2:])},
		{"version: only hexadecimal digits", restarts(".0"+parent[2:], "0."+parent[2:])},
		{"version: too long", restarts("0"+parent, "00"+parent)},
		{"version: too short", restarts(parent[1:])},
		{"trace id: not all zero", restarts("00-" + strings.Repeat("0", 32) + parent[35:])},
		{"trace id: only hexadecimal digits", restarts("00-."+trace[1:]+parent[35:], "00-"+trace[:31]+"."+parent[35:])},
		{"trace id: only lower case", restarts("00-" + "A" + trace[1:] + parent[35:])},
		{"trace id: too long", restarts("00-" + trace + "3" + parent[35:])},
		{"trace id: too short", restarts("00-" + trace[:31] + parent[35:])},
		{"span id: not all zero", restarts("00-" + trace + "-0000000000000000-01")},
		{"span id: only hexadecimal digits", restarts("00-"+trace+"-."+span[1:]+"-01", "00-"+trace+"-"+span[:15]+".-01")},
		{"span id: too long", restarts("00-" + trace + "-" + span + "7-01")},
		{"span id: too short", restarts("00-" + trace + "-" + span[:15] + "-01")},
		{"flags: only hexadecimal digits", restarts(parent[:53]+".0", parent[:53]+"0.")},
		{"flags: too long", restarts(parent[:53] + "001")},
		{"flags: too short", restarts(parent[:53] + "1")},
		{"flags: random is passed on", []Request{
			{Header: traceparent(parent[:53] + "02"), trace: trace, flags: 2}, {Header: traceparent(parent[:53] + "03"), trace: trace, flags: 2},
			{Header: traceparent(parent[:53] + "01"), trace: trace}, {Header: traceparent(parent[:53] + "00"), trace: trace},
		}},
		{"flags: unknown ones are not passed on", []Request{{Header: traceparent(parent[:53] + "ff"), trace: trace, flags: 2}}},
		{"traceparent: white space around it", continues(" "+parent, "\t"+parent, parent+" ", parent+"\t", "\t "+parent+" \t")},

		{"tracestate alone is dropped", []Request{
			{Header: fields("tracestate", []string{"foo=1"}), flags: 2}, {Header: fields("tracestate", []string{"foo=1,bar=2"}), flags: 2},
		}},
		{"tracestate of a traceparent that is malformed is dropped", []Request{
			{Header: append(traceparent(parent[:54]), Field{"tracestate", "foo=1"}), flags: 2},
		}},
		{"tracestate is sent on", []Request{keeps("foo=1,bar=2", "foo=1,bar=2")}},
		{"tracestate: other names are other headers", []Request{
			{Header: append(traceparent(parent), Field{"trace-state", "foo=1"}), trace: trace},
			{Header: append(traceparent(parent), Field{"trace.state", "foo=1"}), trace: trace},
		}},
		{"tracestate: names in upper or lower case are the same", []Request{
			{Header: append(traceparent(parent), Field{"TraceState", "foo=1"}), trace: trace, state: "foo=1"},
			{Header: append(traceparent(parent), Field{"TrAcEsTaTe", "foo=1"}), trace: trace, state: "foo=1"},
			{Header: append(traceparent(parent), Field{"TRACESTATE", "foo=1"}), trace: trace, state: "foo=1"},
		}},
		{"tracestate: an empty one is none", []Request{keeps("", ""), keeps("foo=1", "foo=1", ""), keeps("foo=1", "", "foo=1"), keeps("foo=1,bar=2", "foo=1, ,bar=2")}},
		{"tracestate: several headers are one, in their order", []Request{keeps("foo=1,bar=2,rojo=1,congo=2,baz=3", "foo=1,bar=2", "rojo=1,congo=2", "baz=3")}},
		{"tracestate: the same key twice", append(drops("foo=1,foo=1", "foo=1,foo=2"), keeps("", "foo=1", "foo=1"), keeps("", "foo=1", "foo=2"))},
		{"tracestate: all characters that are allowed", []Request{
			keeps(keyChars+"="+valueChars, keyChars+"="+valueChars), keeps(keyChars+"@a-z0-9_-*/="+valueChars, keyChars+"@a-z0-9_-*/="+valueChars),
			keeps("0foo@bar=1", "0foo@bar=1"),
		}},
		{"tracestate: white space around members", []Request{
			keeps("foo=1,bar=2,baz=3", "foo=1 \t , \t bar=2, \t baz=3"), keeps("foo=1,bar=2,baz=3", "foo=1\t \t,\t \tbar=2,\t \tbaz=3"),
			keeps("foo=1", " foo=1"), keeps("foo=1", "\tfoo=1"), keeps("foo=1", "foo=1 "), keeps("foo=1", "foo=1\t"), keeps("foo=1", "\t foo=1 \t"),
		}},
		{"tracestate: keys with other characters", drops("foo =1", "FOO=1", "foo.bar=1")},
		{"tracestate: malformed keys of vendors", drops("foo@=1,bar=2", "@foo=1,bar=2", "foo@@bar=1,bar=2", "foo@bar@baz=1,bar=2")},
		{"tracestate: 32 members at most", []Request{
			keeps(strings.Join(many[:32], ","), strings.Join(many[:10], ","), strings.Join(many[10:20], ","), strings.Join(many[20:32], ",")),
			keeps("", strings.Join(many[:10], ","), strings.Join(many[10:20], ","), strings.Join(many[20:], ",")),
		}},
		{"tracestate: the length of keys", []Request{
			keeps("foo=1,"+strings.Repeat("z", 256)+"=1", "foo=1", strings.Repeat("z", 256)+"=1"), keeps("", "foo=1", strings.Repeat("z", 257)+"=1"),
			keeps("foo=1,"+strings.Repeat("t", 241)+"@"+strings.Repeat("v", 14)+"=1", "foo=1", strings.Repeat("t", 241)+"@"+strings.Repeat("v", 14)+"=1"),
			keeps("", "foo=1", strings.Repeat("t", 242)+"@v=1"), keeps("", "foo=1", "t@"+strings.Repeat("v", 15)+"=1"),
		}},
		{"tracestate: malformed values", drops("foo=bar=baz", "foo=,bar=3", "foo")},

		{"several calls are of the trace that came, each with its own span", []Request{{Header: traceparent(parent), trace: trace, Calls: 3}}},
		{"several calls without a trace that came", []Request{{Calls: 3, flags: 2}}},
		{"several calls with a malformed trace", []Request{{Header: traceparent("00-" + strings.Repeat("0", 32) + parent[35:]), Calls: 3, flags: 2}}},
	}
}

// Check sends all requests to a service and checks its calls. send sends a request and returns the headers of the calls that the service
// made.
func Check(t *testing.T, send func(t *testing.T, header []Field, calls int) []http.Header) {
	for _, rule := range Rules() {
		t.Run(rule.Name, func(t *testing.T) {
			for _, r := range rule.Requests {
				calls := max(1, r.Calls)
				sent := send(t, r.Header, calls)
				if len(sent) != calls {
					t.Fatalf("%q: %d calls were made, want %d", r.Header, len(sent), calls)
				}
				r.check(t, sent)
			}
		})
	}
}

func (r *Request) check(t *testing.T, sent []http.Header) {
	t.Helper()
	spans := map[string]bool{}
	for _, h := range sent {
		got := h["Traceparent"]
		if len(got) != 1 || len(got[0]) != 55 || got[0][:3] != "00-" || strings.Trim(got[0], "0123456789abcdef-") != "" {
			t.Errorf("%q: traceparent %q was sent, want one of version 00", r.Header, got)
			continue
		}
		id, flags := got[0][3:35], got[0][54]-'0'
		came := slices.ContainsFunc(r.Header, func(f Field) bool { return strings.Contains(f.Value, id) })
		if r.trace != "" && id != r.trace || r.trace == "" && came {
			t.Errorf("%q: traceparent %s was sent, want the trace %q (\"\": a new one)", r.Header, got[0], r.trace)
		}
		if spans[got[0][36:52]] = true; r.trace != "" && got[0][36:52] == span {
			t.Errorf("%q: the span %s was sent on as it came", r.Header, span)
		}
		if got[0][53] != '0' || flags&^1 != r.flags {
			t.Errorf("%q: flags %s were sent, want %d beside sampled", r.Header, got[0][53:], r.flags)
		}
		if state := strings.Join(h["Tracestate"], "|"); state != r.state {
			t.Errorf("%q: tracestate %q was sent, want %q", r.Header, state, r.state)
		}
	}
	if len(spans) != len(sent) {
		t.Errorf("%q: %d calls were sent with %d spans", r.Header, len(sent), len(spans))
	}
}

// Get sends an HTTP/1.1 request with the headers exactly as given, which net/http would normalise.
func Get(t *testing.T, address string, header []Field) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n")
	for _, f := range header {
		fmt.Fprintf(&b, "%s: %s\r\n", f.Name, f.Value)
	}
	b.WriteString("\r\n")
	if _, err := conn.Write([]byte(b.String())); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%q: %s", header, resp.Status)
	}
}
