package cors

import (
	"strconv"
	"strings"
)

// Mistakes are warnings about what whoever wrote a policy can hardly have meant: warn is called with the name of a field, its index in its list
// or -1, and the warning.
func (c *Config) Mistakes(warn func(field string, index int, message string)) {
	for i, o := range c.Origins {
		if why := o.never(); why != "" {
			warn("allowOrigins", i, "matches no origin that a browser sends: "+why)
		}
	}
	if !c.Credentials {
		return
	}
	if origin := c.Stranger(); origin != "" {
		warn("allowCredentials", -1, "lets pages of other sites act with the credentials of their visitors: the origins that are allowed include "+
			origin+": allow the origins of your own pages alone")
	}
	for i, name := range c.Expose {
		if name == "*" {
			warn("exposeHeaders", i, "the star stands for no header in answers to requests with credentials: name the headers")
		}
	}
}

// Stranger returns an origin that the policy allows although whoever wrote it can hardly have meant that: that of any site, or of one whose
// name only begins as a name in the policy. It is empty if there is none.
func (c *Config) Stranger() string {
	p, err := New(*c)
	if err != nil {
		return ""
	}
	for _, any := range []string{"https://attacker.invalid", "http://attacker.invalid", "null"} { // any site can show a page without an origin
		if p.Allows(any) {
			return any
		}
	}
	for _, o := range c.Origins {
		_, host, ok := strings.Cut(o.Value, "://")
		if o.Kind == Prefix && ok && !strings.Contains(host, ":") {
			return strings.TrimSuffix(o.Value, ".") + ".attacker.invalid"
		}
	}
	return ""
}

// never returns why a browser sends no origin that the match takes, and "" if it may. Only those of http and https are known that well.
func (m Match) never() string {
	if m.Kind == Regex || m.Value == "*" || m.Kind == Exact && m.Value == "null" {
		return ""
	}
	scheme, host, ok := strings.Cut(m.Value, "://")
	_, port, ported := strings.Cut(host[strings.LastIndexByte(host, ']')+1:], ":") // behind an address of IPv6
	switch {
	case !ok && m.Kind == Exact:
		return "it has no scheme: write it like https://app.example"
	case !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https"):
		return ""
	case strings.ContainsAny(host, "/?#"):
		return "an origin ends with its host or its port: remove what follows"
	case strings.Contains(host, "*"):
		return "only a regex can stand for several hosts"
	case strings.ToLower(m.Value) != m.Value:
		return "it is sent in lower case"
	case m.Kind == Exact && ported && port == defaultPort(scheme):
		return "the default port of the scheme is left out"
	case m.Kind == Exact && ported && !isPort(port):
		return "its port is none from 1 to 65535"
	}
	return ""
}

// defaultPort returns the port of a scheme, which origins do not name.
func defaultPort(scheme string) string {
	if scheme == "http" {
		return "80"
	}
	return "443"
}

// isPort reports whether text is a port as browsers write it.
func isPort(text string) bool {
	n, err := strconv.ParseUint(text, 10, 16)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == text
}
