package accesslog

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
