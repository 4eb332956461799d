package admin

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/internal/grpccode"
)

// mostCauses is the number of causes that are counted separately per destination.
const mostCauses = 8

// cause is a kind of failure.
type cause struct {
	flags        mesh.Flags
	status, grpc int
	layer        string // of the mesh.Error, if there was one
}

// breakerLayer is the Layer of a mesh.Error for an open circuit. Its flag is the same as that of a full pool.
const breakerLayer = "breaker"

func causeOf(c *mesh.Call) (what cause, err error) {
	what, err = cause{flags: c.Flags, status: c.Status, grpc: c.GRPCStatus}, c.Err
	var failure *mesh.Error
	if errors.As(err, &failure) {
		what.layer, err = failure.Layer, failure.Err // the rest of the error is shown anyway
	}
	if what.layer == breakerLayer {
		err = nil // it adds nothing
	}
	return what, err
}

// causes counts the failures of the last minute by their causes.
type causes struct {
	mu   sync.Mutex
	list []tally
}

type tally struct {
	cause
	ring [windowSlots]struct {
		slot  int64
		count uint32
	}
	text string    // the text of a recent error
	at   time.Time // when text was set
}

func (c *causes) add(at time.Time, what cause, err error) {
	slot := slotOf(at)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.list, func(t tally) bool { return t.cause == what })
	if i < 0 {
		if i = len(c.list); i < mostCauses {
			c.list = append(c.list, tally{})
		} else {
			// Replace the least frequent one.
			i = 0
			for j := range c.list {
				if c.list[j].count(slot) < c.list[i].count(slot) {
					i = j
				}
			}
		}
		c.list[i] = tally{cause: what}
	}
	t := &c.list[i]
	if r := &t.ring[slot%windowSlots]; r.slot != slot {
		r.slot, r.count = slot, 1
	} else {
		r.count++
	}
	if err != nil && at.Sub(t.at) >= time.Second { // building the text costs more than everything else
		t.text, t.at = errorText(err), at
	}
}

// count returns how often the cause was seen in the minute before the end of a slot.
func (t *tally) count(slot int64) (n int) {
	for _, r := range t.ring {
		if r.slot > slot-windowSlots && r.slot <= slot {
			n += int(r.count)
		}
	}
	return n
}

// causeFigures is a cause in a report.
type causeFigures struct {
	Count      int    `json:"count"`
	Status     int    `json:"status,omitempty"`
	GRPCStatus *int   `json:"grpcStatus,omitempty"`
	Flags      string `json:"flags,omitempty"`
	Text       string `json:"text"`            // a description
	Error      string `json:"error,omitempty"` // the text of a recent error

	flags mesh.Flags
}

// read returns the causes of the last minute, the most frequent first.
func (c *causes) read(now time.Time) []causeFigures {
	slot := slotOf(now)
	c.mu.Lock()
	defer c.mu.Unlock()
	list := []causeFigures{}
	for i := range c.list {
		t := &c.list[i]
		n := t.count(slot)
		if n == 0 {
			continue
		}
		f := causeFigures{
			Count: n, Status: t.status, GRPCStatus: grpcStatus(t.grpc), Text: t.words(), Error: t.text, flags: t.flags,
		}
		if t.flags != 0 {
			f.Flags = t.flags.String()
		}
		list = append(list, f)
	}
	slices.SortStableFunc(list, func(a, b causeFigures) int { return cmp.Compare(b.Count, a.Count) })
	return list
}

// flagWords describes the flags, the most specific first.
var flagWords = []struct {
	flag mesh.Flags
	text string
}{
	{mesh.FlagFaultInjected, "a document injects the fault"},
	{mesh.FlagNoHealthyUpstream, "no healthy endpoint"},
	{mesh.FlagConnectFailure, "no connection could be made"},
	{mesh.FlagOverflow, "refused: the connection pool is full"},
	{mesh.FlagRateLimited, "refused by the local rate limit"},
	{mesh.FlagNoRoute, "no route matches"},
	{mesh.FlagNoCluster, "no document defines the subset or the port"},
	{mesh.FlagUpstreamTimeout, "took too long"},
	{mesh.FlagRemoteReset, "the endpoint reset the call"},
	{mesh.FlagConnectionTerminated, "the endpoint closed the connection"},
}

// words returns a description of the cause.
func (c cause) words() string {
	if c.layer == breakerLayer {
		return "refused: the circuit is open"
	}
	for _, w := range flagWords {
		if c.flags&w.flag != 0 {
			return w.text
		}
	}
	switch {
	case c.grpc > 0:
		return "gRPC status " + grpccode.Name(uint32(c.grpc))
	case c.status != 0:
		if name := http.StatusText(c.status); name != "" {
			return fmt.Sprintf("answered %d %s", c.status, name)
		}
		return fmt.Sprintf("answered %d", c.status)
	}
	return "no answer"
}
