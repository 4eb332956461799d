package accesslog_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/accesslog"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/policy/telemetry"
)

var hostile = []string{
	"", "-", "plain", "with space", `with "quotes" and \`, "line\nbreak", "\r\n[2026] \"GET / HTTP/1.1\" 200", "tab\tand\x00nul\x7f",
	"\u2028\u2029\u0085", "\u202eright to left", "not UTF-8 \xff\xc3", "\U000e0001 tag", "日本語", `","response_code":200,"x":"`,
	strings.Repeat("long ", 2000), strings.Repeat("é", 3000), strings.Repeat("\xff", 5000), "\x1b[31mred",
}

// Whatever callers write into a field, a line stays one line, with the fields it has.
func checkLine(t *testing.T, text string) {
	t.Helper()
	line := accesslog.Line(accesslog.JSON, text)
	if !oneLine(line) {
		t.Errorf("JSON of %q: %q", text, line)
	}
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil || len(got) != 24 {
		t.Fatalf("JSON of %q has %d fields: %v: %q", text, len(got), err, line)
	}
	if want := text; utf8.ValidString(want) && len(want) <= 4096 {
		if want == "" {
			want = "-"
		}
		if got["user_agent"] != want {
			t.Errorf("user_agent %q was logged as %q", want, got["user_agent"])
		}
	}
	line = accesslog.Line(accesslog.Text, text)
	if !oneLine(line) {
		t.Errorf("text of %q: %q", text, line)
	}
	if n := countFields(line); n != 22 {
		t.Errorf("the text of %q has %d fields: %s", text, n, line)
	}
}

func TestNoLineCanBeForged(t *testing.T) {
	for _, text := range hostile {
		checkLine(t, text)
	}
}

func FuzzEscape(f *testing.F) {
	for _, text := range hostile {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) { checkLine(t, text) })
}

// oneLine reports whether line is a single line of characters that print.
func oneLine(line string) bool {
	rest, ended := strings.CutSuffix(line, "\n")
	return ended && utf8.ValidString(rest) && strings.IndexFunc(rest, func(r rune) bool { return !unicode.IsPrint(r) }) < 0
}

// countFields counts the fields of a line of text, those in quotes as one.
func countFields(line string) int {
	n, quoted := 1, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == ' ' && !quoted:
			n++
		}
	}
	return n
}

func TestFieldsAreCut(t *testing.T) {
	line := accesslog.Line(accesslog.JSON, strings.Repeat("é", 3000))
	var got map[string]any
	if err := json.Unmarshal([]byte(line), &got); err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("é", 2048) + "..."; got["user_agent"] != want {
		t.Errorf("a long field was logged as %d bytes, want %d", len(got["user_agent"].(string)), len(want))
	}
}

// A Handler gets fields that are cut, too.
func TestFieldsOfHandlersAreCut(t *testing.T) {
	leak.Check(t)
	out := new(lines)
	access, _ := newLog(t, accesslog.Config{Handler: slog.NewJSONHandler(out, nil)})
	request := newRequest("/" + strings.Repeat("p", 5000) + "?q")
	request.Header.Set("User-Agent", strings.Repeat("é", 3000))
	access.Observer().CallEnd(t.Context(), &mesh.Call{Request: request, Status: 200, GRPCStatus: -1})
	all := closed(t, access, out)
	if len(all) != 1 {
		t.Fatalf("logged %v", all)
	}
	want(t, all[0], map[string]any{"path": "/" + strings.Repeat("p", 4095) + "...", "user_agent": strings.Repeat("é", 2048) + "..."})
}

// A token in the query of a request is in no line; RFC 6750, section 2.3, has it there.
func TestTokensAreNotLogged(t *testing.T) {
	out := new(lines)
	access, _ := newLog(t, accesslog.Config{Writer: out})
	o := access.Observer()
	for _, uri := range []string{"", "/p?a=b&access_token=secret&c", "/p?access%5Ftoken=secret"} { // "" is a call's, which has no RequestURI
		request := newRequest("/p?access_token=secret")
		if request.RequestURI = uri; uri == "" {
			o.CallEnd(t.Context(), &mesh.Call{Request: request, Status: 200, GRPCStatus: -1})
		} else {
			o.InboundEnd(t.Context(), &mesh.Inbound{Request: request, Status: 200, GRPCStatus: -1})
		}
	}
	all := closed(t, access, out)
	if len(all) != 3 {
		t.Fatalf("logged %v", all)
	}
	for i, path := range []string{"/p?access_token=REDACTED", "/p?a=b&access_token=REDACTED&c", "/p?access%5Ftoken=REDACTED"} {
		want(t, all[i], map[string]any{"path": path})
	}
}

// So is what stands in the parameters that documents have for tokens, on both ends.
func TestTokensOfDocumentsAreNotLogged(t *testing.T) {
	out := new(lines)
	access, _ := newLog(t, accesslog.Config{Writer: out})
	o := access.Observer()
	side := telemetry.Side{SecretParams: []string{"jwt", "t k"}}
	settings := telemetry.New(side, side)
	request := newRequest("/p?a=b&jwt=secret&t+k=secret&access_token=secret&jwts=1")
	o.CallEnd(t.Context(), &mesh.Call{Request: request, Status: 200, GRPCStatus: -1, Telemetry: settings})
	o.InboundEnd(t.Context(), &mesh.Inbound{Request: request, Status: 200, GRPCStatus: -1, Telemetry: settings})
	all := closed(t, access, out)
	if len(all) != 2 {
		t.Fatalf("logged %v", all)
	}
	for _, line := range all {
		want(t, line, map[string]any{"path": "/p?a=b&jwt=REDACTED&t+k=REDACTED&access_token=REDACTED&jwts=1"})
	}
}

// Records that wait for a Writer that stalls do not keep all that callers have sent.
func TestWaitingRecordsAreSmall(t *testing.T) {
	leak.Check(t)
	out := newGate()
	access, _ := newLog(t, accesslog.Config{Writer: out})
	const size, calls = 1 << 20, 64
	before := leak.Heap()
	for range calls {
		request := newRequest("/")
		request.RequestURI = "/" + strings.Repeat("p", size)
		request.Header.Set("User-Agent", strings.Repeat("u", size))
		access.Observer().InboundEnd(t.Context(), &mesh.Inbound{Request: request, Status: 200, GRPCStatus: -1})
	}
	if grown := leak.Heap() - before; grown > size*calls/4 {
		t.Errorf("%d records that wait keep %d bytes", calls, grown)
	}
	close(out.open)
	all := closed(t, access, &out.lines)
	if len(all) != calls {
		t.Fatalf("%d lines, want %d", len(all), calls)
	}
	want(t, all[0], map[string]any{"path": "/" + strings.Repeat("p", 4095) + "...", "user_agent": strings.Repeat("u", 4096) + "..."})
}

// A short method, or the error of a call, does not keep in memory what it came with, such as a request line of a megabyte.
func TestWaitingRecordsKeepNoRequestLines(t *testing.T) {
	leak.Check(t)
	out := newGate()
	access, _ := newLog(t, accesslog.Config{Writer: out})
	const size, calls = 128 << 10, 64
	before := leak.Heap()
	o := access.Observer()
	for i := range calls {
		method := []string{"GET", "PROPFIND"}[i%2]
		line := method + " /" + strings.Repeat("x", size) + " HTTP/1.1\r\nHost: api\r\n\r\n"
		request, err := http.ReadRequest(bufio.NewReader(strings.NewReader(line)))
		if err != nil {
			t.Fatal(err)
		}
		request.TLS = &tls.ConnectionState{ServerName: strings.Repeat("s", size)}
		o.InboundEnd(t.Context(), &mesh.Inbound{Request: request, Status: 200, GRPCStatus: -1})
		call := &mesh.Call{Request: newRequest("/"), GRPCStatus: -1, Err: errors.New(strings.Repeat("e", size)), Flags: mesh.FlagRemoteReset}
		call.Target.Host = strings.Repeat("h", size)
		o.CallEnd(t.Context(), call)
	}
	if grown := leak.Heap() - before; grown > size*calls/4 {
		t.Errorf("%d records that wait keep %d bytes", 2*calls, grown)
	}
	close(out.open)
	all := closed(t, access, &out.lines)
	if len(all) != 2*calls {
		t.Fatalf("%d lines, want %d", len(all), 2*calls)
	}
	want(t, all[0], map[string]any{"method": "GET", "requested_server_name": strings.Repeat("s", 4096) + "..."})
	want(t, all[1], map[string]any{"response_code_details": "upstream_reset_before_response_started{remote_reset}"})
	want(t, all[2], map[string]any{"method": "PROPFIND"})
}

// The path of an outbound call is the one that is sent: a proxy passes the RequestURI of its own request along.
func TestPathsOfProxies(t *testing.T) {
	leak.Check(t)
	access, out := newLog(t, accesslog.Config{})
	request := newRequest("/inside?a=b")
	request.RequestURI = "/outside?c=d"
	access.Observer().CallEnd(t.Context(), &mesh.Call{Request: request, Status: 200, GRPCStatus: -1})
	all := closed(t, access, out)
	if len(all) != 1 {
		t.Fatalf("logged %v", all)
	}
	want(t, all[0], map[string]any{"path": "/inside?a=b"})
}
