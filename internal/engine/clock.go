package engine

import (
	"sync/atomic"
	"time"
)

// dateKept is how long a clock derives the date from one that it has read: if the date is set, calls show that as much later.
const dateKept = 100 * time.Millisecond

// clock tells the time for half the price of time.Now, which reads two clocks, one of them only for the date.
type clock struct {
	read atomic.Pointer[time.Time] // the last time that included the date
}

func (c *clock) now() moment {
	if read := c.read.Load(); read != nil {
		if since := time.Since(*read); since >= 0 && since < dateKept {
			return moment{read, since}
		}
	}
	now := time.Now()
	c.read.Store(&now)
	return moment{read: &now}
}

// moment is a time that a clock has told.
type moment struct {
	read  *time.Time
	since time.Duration
}

func (m moment) time() time.Time { return m.read.Add(m.since) }

// roughly returns a time that is up to dateKept earlier, and costs nothing.
func (m moment) roughly() time.Time { return *m.read }

// until returns the time from m to at.
func (m moment) until(at time.Time) time.Duration { return at.Sub(*m.read) - m.since }

// elapsed reads the clock.
func (m moment) elapsed() time.Duration { return time.Since(*m.read) - m.since }
