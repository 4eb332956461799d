package accesslog

import (
	"context"

	"github.com/nosidecar/mesh"
)

// Line returns the line of a call as a writer gets it, of whose fields the caller chooses all.
func Line(format Format, text string) string {
	r := record{
		method: text, uri: text, major: 2, policy: text + "/" + text, denied: true, serviceTime: text, forwardedFor: text, userAgent: text,
		requestID: text, authority: text, serverName: text, endpoint: text, route: text, remoteText: text,
	}
	r.target.Host, r.target.Subset = text, text
	var f fields
	f.fill(&r)
	if format == Text {
		return string(f.appendText(nil))
	}
	return string(f.appendJSON(nil))
}

// Writing returns what the goroutine of the log does with the line of a call, again and again.
func (l *Log) Writing(call *mesh.Call, in *mesh.Inbound) func() {
	unread := &Log{config: l.config}
	unread.records.New = func() any { return new(record) }
	unread.queue.init(1)
	if call != nil {
		unread.callEnd(context.Background(), call)
	} else {
		unread.inboundEnd(context.Background(), in)
	}
	batch, _ := unread.queue.take(nil)
	out := output{log: l}
	return func() { out.add(batch[0]) }
}
