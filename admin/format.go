package admin

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// printable returns a text with spaces for line breaks, tabs, control characters, and characters that change the direction of a line.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// clock returns the time of day.
func clock(t time.Time) string { return t.UTC().Format("15:04:05") }

// short returns a duration for people to read, with a precision that suits its length.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < time.Second:
		return ms(milliseconds(d))
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// ms returns a number of milliseconds for people to read, with two or three significant digits.
func ms(v float64) string {
	switch {
	case v == 0:
		return "0 ms"
	case v < 1:
		return strconv.FormatFloat(v, 'f', 2, 64) + " ms"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64) + " ms"
	case v < 1000:
		return strconv.FormatFloat(v, 'f', 0, 64) + " ms"
	case v < 60_000:
		return strconv.FormatFloat(v/1000, 'f', 1, 64) + " s"
	}
	return short(time.Duration(v) * time.Millisecond)
}

// perSecond returns a rate for people to read.
func perSecond(v float64) string {
	switch {
	case v == 0:
		return "0/s"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64) + "/s"
	case v < 10_000:
		return strconv.FormatFloat(v, 'f', 0, 64) + "/s"
	}
	return strconv.FormatFloat(v/1000, 'f', 0, 64) + " k/s"
}

// percent returns a share, from 0 to 1, in percent.
func percent(share float64) string {
	switch v := share * 100; {
	case v == 0:
		return "0 %"
	case v < 0.1:
		return "< 0.1 %"
	case v < 10:
		return strconv.FormatFloat(v, 'f', 1, 64) + " %"
	case v > 99 && v < 100:
		return "99 %"
	default:
		return strconv.FormatFloat(math.Round(v), 'f', 0, 64) + " %"
	}
}

// size returns a number of bytes for people to read.
func size(n int64) string {
	switch {
	case n < 10_000:
		return fmt.Sprintf("%d B", n)
	case n < 10_000_000:
		return fmt.Sprintf("%d kB", n/1000)
	case n < 10_000_000_000:
		return fmt.Sprintf("%d MB", n/1_000_000)
	}
	return fmt.Sprintf("%d GB", n/1_000_000_000)
}

// String returns the target for people to read, without the suffix that all services of a cluster share.
func (t target) String() string {
	name := t.Host
	if before, rest, ok := strings.Cut(name, ".svc."); ok && !strings.Contains(rest, "/") {
		name = before
	}
	if t.Port != 0 {
		name += ":" + strconv.Itoa(t.Port)
	}
	if t.Subset != "" {
		name += " (" + t.Subset + ")"
	}
	if name == "" {
		return "no destination"
	}
	return name
}

// Name returns the name of the destination on the page.
func (d *destinationOf) Name() string {
	if d.Others {
		return "other destinations"
	}
	return d.target.String()
}

func callerName(c *callerOf) string {
	if c.Others {
		return "other callers"
	}
	return peerName(c.ID)
}

// peerName returns the short form of a SPIFFE ID: the namespace and the service account.
func peerName(id string) string {
	if id == "" {
		return "peers without an identity"
	}
	if _, path, ok := strings.Cut(strings.TrimPrefix(id, "spiffe://"), "/"); ok {
		if parts := strings.Split(path, "/"); len(parts) == 4 && parts[0] == "ns" && parts[2] == "sa" {
			return parts[1] + "/" + parts[3]
		}
	}
	return id
}
