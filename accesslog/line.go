package accesslog

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/nosidecar/mesh/internal/field"
)

// The fields of a line, in the order of the JSON format.
const (
	startTime = iota
	routeName
	method
	path
	protocol
	responseCode
	responseFlags
	responseCodeDetails
	connectionTerminationDetails // always "-": a listener closes connections that are denied before anybody observes them
	bytesReceived
	bytesSent
	duration
	upstreamServiceTime
	xForwardedFor
	userAgent
	requestID
	authority
	upstreamHost
	upstreamCluster
	upstreamLocalAddress
	downstreamLocalAddress
	downstreamRemoteAddress
	requestedServerName
	upstreamTransportFailureReason
	fieldCount
)

var keys = [fieldCount]string{
	"start_time", "route_name", "method", "path", "protocol", "response_code", "response_flags", "response_code_details",
	"connection_termination_details", "bytes_received", "bytes_sent", "duration", "upstream_service_time", "x_forwarded_for",
	"user_agent", "request_id", "authority", "upstream_host", "upstream_cluster", "upstream_local_address",
	"downstream_local_address", "downstream_remote_address", "requested_server_name", "upstream_transport_failure_reason",
}

// fields has the values of a line, except for the formatted time. fill replaces empty texts by "-".
type fields struct {
	text   [fieldCount]string
	number [fieldCount]int64
	start  time.Time

	// Kept from one line to the next, because consecutive lines often have the same values.
	second  int64  // the second of stamp
	stamp   []byte // start_time, up to the second
	address [2]addressText
}

// addressText is an address with its text in a line.
type addressText struct {
	address netip.AddrPort
	text    string
}

// numeric says which fields are numbers.
var numeric = [fieldCount]bool{responseCode: true, bytesReceived: true, bytesSent: true, duration: true}

// fill sets the values to those of a record.
func (f *fields) fill(r *record) {
	f.text, f.number, f.start = [fieldCount]string{}, [fieldCount]int64{}, r.start
	f.text[method] = r.method
	f.text[responseFlags] = r.flags.String()
	f.text[upstreamServiceTime], f.text[xForwardedFor] = r.serviceTime, r.forwardedFor
	f.text[userAgent], f.text[requestID], f.text[authority] = r.userAgent, r.requestID, r.authority
	f.text[upstreamHost], f.text[requestedServerName] = r.endpoint, r.serverName
	f.number[responseCode], f.number[bytesReceived], f.number[bytesSent] = int64(r.code), r.received, r.sent
	f.number[duration] = r.duration.Milliseconds()
	if r.side == outbound || r.side == inbound {
		f.text[path] = withoutTokens(r.requestURI(), r.secret)
		f.text[protocol] = version(r.major, r.minor)
		f.text[responseCodeDetails] = r.details()
	}
	switch r.side {
	case outbound:
		f.text[upstreamLocalAddress] = f.of(local, r.local)
	case outboundConn:
		f.text[upstreamLocalAddress] = f.of(local, r.local)
		if r.endpoint == "" {
			f.text[upstreamHost] = f.of(remote, r.remote)
		}
	default:
		f.text[downstreamLocalAddress] = f.of(local, r.local)
		if f.text[downstreamRemoteAddress] = r.remoteText; r.remote != nil {
			f.text[downstreamRemoteAddress] = f.of(remote, r.remote)
		}
	}
	f.text[routeName], f.text[upstreamCluster] = r.routeName(), r.cluster(f.text[downstreamLocalAddress])
	if r.err != nil {
		f.text[upstreamTransportFailureReason] = r.err.Error()
	}
	for i := range f.text {
		if f.text[i] == "" && !numeric[i] {
			f.text[i] = "-"
		}
	}
}

// The ends of a connection. The local one is usually the same for all lines.
const (
	local = iota
	remote
)

// of returns the text of an address.
func (f *fields) of(end int, a net.Addr) string {
	if a == nil {
		return ""
	}
	known := &f.address[end]
	tcp, ok := a.(*net.TCPAddr)
	if !ok || tcp == nil {
		return a.String()
	}
	if address := tcp.AddrPort(); address != known.address || known.text == "" {
		known.address, known.text = address, tcp.String()
	}
	return known.text
}

// appendStart appends the time, to the millisecond.
func (f *fields) appendStart(line []byte) []byte {
	at := f.start.UTC()
	if second := at.Unix(); second != f.second || len(f.stamp) == 0 {
		f.second, f.stamp = second, at.AppendFormat(f.stamp[:0], "2006-01-02T15:04:05.")
	}
	ms := at.Nanosecond() / 1e6
	line = append(line, f.stamp...)
	return append(line, byte('0'+ms/100), byte('0'+ms/10%10), byte('0'+ms%10), 'Z')
}

func version(major, minor int) string {
	switch {
	case major >= 2:
		return "HTTP/" + strconv.Itoa(major)
	case major == 0 || major == 1 && minor == 1: // 0 in a request that was made without http.NewRequest
		return "HTTP/1.1"
	}
	return "HTTP/" + strconv.Itoa(major) + "." + strconv.Itoa(minor)
}

// secretQueries has the query parameters that always contain tokens (RFC 6750, section 2.3).
var secretQueries = []string{"access_token"}

// withoutTokens returns the target of a request without the tokens in its query. secret has the parameters with tokens other than
// secretQueries.
func withoutTokens(uri string, secret []string) string {
	before, query, ok := strings.Cut(uri, "?")
	if !ok {
		return uri
	}
	if clean := field.RedactQuery(field.RedactQuery(query, secretQueries), secret); clean != query {
		return before + "?" + clean
	}
	return uri
}

func (r *record) requestURI() string {
	if r.uri != "" {
		return r.uri
	}
	u := url.URL{Path: r.path, RawPath: r.rawPath, RawQuery: r.query, ForceQuery: r.forceQuery, Opaque: r.opaque}
	return u.RequestURI()
}

// beforeJSON has the text before each value.
var beforeJSON = func() (all [fieldCount]string) {
	for i, key := range keys {
		all[i] = `,"` + key + `":`
		if !numeric[i] {
			all[i] += `"`
		}
		if i > 0 && !numeric[i-1] {
			all[i] = `"` + all[i] // ends the text before it
		}
	}
	all[0] = "{" + all[0][1:]
	return all
}()

// appendJSON appends a line of JSON.
func (f *fields) appendJSON(line []byte) []byte {
	line = append(line, beforeJSON[startTime]...)
	line = f.appendStart(line)
	for i := startTime + 1; i < fieldCount; i++ {
		line = append(line, beforeJSON[i]...)
		if numeric[i] {
			line = strconv.AppendInt(line, f.number[i], 10)
		} else {
			line = appendEscaped(line, f.text[i], inJSON)
		}
	}
	return append(line, "\"}\n"...) // the last value is a text
}

// textOrder has the fields of Istio's text format after the time, in order. Fields in quotes may share a pair of quotes.
var textOrder = [...]struct {
	fields []int
	quoted bool
}{
	{[]int{method, path, protocol}, true},
	{[]int{responseCode}, false},
	{[]int{responseFlags}, false},
	{[]int{responseCodeDetails}, false},
	{[]int{connectionTerminationDetails}, false},
	{[]int{upstreamTransportFailureReason}, true},
	{[]int{bytesReceived}, false},
	{[]int{bytesSent}, false},
	{[]int{duration}, false},
	{[]int{upstreamServiceTime}, false},
	{[]int{xForwardedFor}, true},
	{[]int{userAgent}, true},
	{[]int{requestID}, true},
	{[]int{authority}, true},
	{[]int{upstreamHost}, true},
	{[]int{upstreamCluster}, false},
	{[]int{upstreamLocalAddress}, false},
	{[]int{downstreamLocalAddress}, false},
	{[]int{downstreamRemoteAddress}, false},
	{[]int{requestedServerName}, false},
	{[]int{routeName}, false},
}

// appendText appends a line of text.
func (f *fields) appendText(line []byte) []byte {
	line = append(line, '[')
	line = f.appendStart(line)
	line = append(line, ']')
	for _, group := range textOrder {
		line = append(line, ' ')
		at := bare
		if group.quoted {
			line = append(line, '"')
			if at = inQuotes; len(group.fields) > 1 {
				at = bare // spaces separate them
			}
		}
		for i, field := range group.fields {
			if i > 0 {
				line = append(line, ' ')
			}
			if numeric[field] {
				line = strconv.AppendInt(line, f.number[field], 10)
			} else {
				line = appendEscaped(line, f.text[field], at)
			}
		}
		if group.quoted {
			line = append(line, '"')
		}
	}
	return append(line, '\n')
}

// output formats lines and passes them to the Handler or Writer.
type output struct {
	log    *Log
	fields fields
	buffer []byte
	lines  int // in buffer
}

const (
	flushSize = 32 << 10  // size of the buffer from which it is written
	keepSize  = 256 << 10 // a larger buffer is not reused
)

// add adds a line. It may be written only by flush.
func (o *output) add(r *record) {
	defer o.contain(1)
	if h := o.log.config.Handler; h != nil {
		o.handle(h, r)
		return
	}
	o.fields.fill(r)
	if o.log.config.Format == Text {
		o.buffer = o.fields.appendText(o.buffer)
	} else {
		o.buffer = o.fields.appendJSON(o.buffer)
	}
	if o.lines++; len(o.buffer) >= flushSize {
		o.flush()
	}
}

func (o *output) flush() {
	if o.lines == 0 {
		return
	}
	buffer, lines := o.buffer, o.lines
	defer o.contain(lines)
	if o.buffer, o.lines = buffer[:0], 0; cap(buffer) > keepSize {
		o.buffer = nil
	}
	if _, err := o.log.config.Writer.Write(buffer); err != nil {
		o.log.failed(err, lines)
	}
}

// contain must be deferred. It turns a panic of the Handler or Writer, or of a method of an error or address in the line, into an error
// of the log.
func (o *output) contain(lines int) {
	if p := recover(); p != nil {
		o.log.failed(fmt.Errorf("accesslog: panic while writing lines: %v", p), lines)
	}
}

// handle passes a line to a Handler, which does its own escaping and may keep the slog.Record.
func (o *output) handle(h slog.Handler, r *record) {
	ctx := context.Background()
	if !h.Enabled(ctx, slog.LevelInfo) {
		return
	}
	o.fields.fill(r)
	o.fields.text[startTime] = string(o.fields.appendStart(nil))
	var attrs [fieldCount]slog.Attr
	for i, key := range keys {
		if numeric[i] {
			attrs[i] = slog.Int64(key, o.fields.number[i])
		} else {
			text, cut := shorten(o.fields.text[i])
			if cut {
				text += "..."
			}
			attrs[i] = slog.String(key, text)
		}
	}
	line := slog.NewRecord(r.start.Add(r.duration), slog.LevelInfo, "access", 0)
	line.AddAttrs(attrs[:]...)
	if err := h.Handle(ctx, line); err != nil {
		o.log.failed(err, 1)
	}
}
